"""The services' own settings as an object of a class of theirs (`config_type`), which pydantic checks. A shard imports
this, and pydantic, only where an app has such a class.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from onelane import plugins
from onelane.core import redaction
from onelane.errors import BadConfig, BadService
from onelane.server import user_code


def typed_settings(kind: str, values: Mapping[str, Any], *, app: str) -> Any:
    """The object of `kind` that `values` give; see `settings.build_settings`."""
    cls = _class(kind, app)
    # A name that is no field is probably misspelt.
    faults = [f"{name}: is not a setting of {kind}" for name in sorted(set(values) - _names(cls, values))]
    try:
        settings = TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        # Without its cause, whose text has the values, secrets too.
        raise BadConfig(f"apps.{app}.config", [*map(_fault, error.errors()), *faults]) from None
    except Exception as error:
        # Of the type's own: a `__post_init__` or a default of the service's.
        raise BadConfig(f"apps.{app}.config", [f"{kind} has raised {user_code.summary(error)}", *faults]) from error
    if faults:
        raise BadConfig(f"apps.{app}.config", faults)
    return settings


def _class(kind: str, app: str) -> Any:
    try:
        cls = getattr(plugins.import_plug(kind), kind.partition(":")[2], None)
    except BadService as error:
        raise BadConfig(f"apps.{app}.config_type", [str(error)]) from error.__cause__
    if not _is_frozen(cls):
        expected = "expected a frozen dataclass, or a pydantic model with frozen=True"
        raise BadConfig(f"apps.{app}.config_type", [f"{kind} is {cls!r}, {expected}"])
    return cls


def _names(kind: Any, values: Mapping[str, Any]) -> set[str]:
    if not issubclass(kind, BaseModel):
        return {field.name for field in fields(kind)}
    if kind.model_config.get("extra") in ("allow", "forbid"):
        return set(values)
    return {name for field, info in kind.model_fields.items() for name in (field, info.alias or field)}


def _is_frozen(cls: Any) -> bool:
    if isinstance(cls, type) and issubclass(cls, BaseModel):
        return bool(cls.model_config.get("frozen"))
    return isinstance(cls, type) and is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]


def _fault(details: Any) -> str:
    names, value = [str(name) for name in details["loc"]], details["input"]
    fault = f"{'.'.join(names) or 'it'}: {details['msg'].removeprefix('Value error, ')}"
    if details["type"] in ("value_error", "missing") and not isinstance(value, bool | int | float):
        return fault
    is_secret = isinstance(value, str) or redaction.looks_secret(names)
    return f"{fault}, seen {redaction.shown(value, is_secret=is_secret)}"
