"""Checks of settings, which are frozen dataclasses: pydantic compares what is read, from a file or from a caller, with
their types and with the marks in these (`Check`, `Convert`, annotated-types).

Promises: pydantic is imported where something is checked first, and nowhere else. A shard gets settings that its
supervisor has checked, as JSON; without pydantic an idle shard is smaller by a fifth.
"""

import functools
import json
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")


class Checked:
    """Base of the dataclasses that `checked` makes: a name that is no field is a fault."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}


class Check:
    """In `Annotated`: a function that returns a value of the type as it is kept, or raises ValueError."""

    def __init__(self, check: Callable[[Any], Any]) -> None:
        self._check = check

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._check, handler(source))


class Convert:
    """In `Annotated`: a function that makes a value of the type of what was read, or raises ValueError."""

    def __init__(self, convert: Callable[[Any], Any]) -> None:
        self._convert = convert

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self._convert, handler(source))


@dataclass(frozen=True, slots=True)
class Secret:
    """A text that is not shown."""

    text: str = field(repr=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        from_text = core_schema.no_info_after_validator_function(cls, core_schema.str_schema())
        return core_schema.union_schema([core_schema.is_instance_schema(cls), from_text])


NO_SECRET = Secret("")


def checked(kind: type[T], values: Any) -> T:
    """The settings that `values` give, a mapping of their names.

    Raises:
        pydantic.ValidationError: they are not valid; with all faults.
    """
    settings: T = _adapter(kind).validate_python(values)  # type: ignore[arg-type]
    return settings


@functools.cache
def _adapter(kind: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def changed(settings: T, **values: Any) -> T:
    """A copy with other values, which are not checked."""
    other = copy(settings)
    vars(other).update(values)
    return other


def to_json(settings: Any) -> str:
    """Checked settings as JSON, secrets too."""
    from msgspec import to_builtins

    return json.dumps(to_builtins(settings, enc_hook=str))


def from_json(kind: type[T], text: str) -> T:
    """The settings that `to_json` has written. What another release of onelane has in addition is ignored."""
    from msgspec import convert

    return convert(json.loads(text), kind, dec_hook=lambda kind, value: kind(value))
