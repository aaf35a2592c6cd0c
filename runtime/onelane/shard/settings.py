"""The services' own settings, `[apps.NAME.config]`: one typed, frozen object, and the differences between two of them.

Promises: settings that do not fit their type never become an object, and every fault is reported by its name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

from pydantic import BaseModel, TypeAdapter, ValidationError

from onelane import plugins
from onelane.core import redaction
from onelane.errors import BadConfig, BadService
from onelane.server import user_code


class Settings(Mapping[str, Any]):
    """Settings of an app without `config_type`: an immutable mapping whose values are attributes as well."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_values", {name: _frozen(value) for name, value in values.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"config has no {name!r}; it has {sorted(self._values)}") from None

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"config.{name} cannot be set: change the file, and reload it")

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Settings({self._values!r})"


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Settings(value)
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def build_settings(kind: str | None, values: Mapping[str, Any], *, app: str) -> Any:
    """The settings object of an app. kind: "package.module:Class" of a frozen dataclass or pydantic model, or None.

    Raises:
        BadConfig: there is no such class, it is not frozen, or the values do not fit; all faults at once.
    """
    if kind is None:
        return Settings(values)
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


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings that differ, by dotted name. Texts are not shown, nor numbers whose names look like secrets."""
    changes: list[str] = []
    for name in sorted({*old, *new}):
        before, after, place = old.get(name), new.get(name), f"{prefix}{name}"
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += differences(before, after, f"{place}.")
        elif name not in new:
            changes.append(f"{place}: removed")
        elif _is_number(before) and _is_number(after) and not redaction.looks_secret(place.split(".")):
            changes.append(f"{place}: {before} → {after}")
        else:
            changes.append(f"{place}: {'changed' if name in old else 'new'}")
    return changes
