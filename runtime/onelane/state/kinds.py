"""Which kinds can be encoded as msgpack: a look at the type, once, when a service declares a dict of it.

A kind that cannot is described by each of its fields that is at fault, wherever it is nested.
"""

import threading
from dataclasses import is_dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints, is_typeddict

PLAIN: tuple[Any, ...] = (bool, int, float, str, bytes, list, dict, set, tuple)
"""Kinds for which msgspec need not be asked."""


def encodable_faults(kind: Any) -> list[str]:
    """What of a kind cannot be encoded, for example `Room.lock: threading.Lock`; empty where all of it can."""
    if kind in PLAIN:
        return []
    inspection = _Inspection()
    inspection.is_encodable(kind, "")
    return list(dict.fromkeys(inspection.faults)) or _whole(kind)


class _Inspection:
    """A walk through a type and those of its fields."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._classes: dict[Any, bool] = {}
        """A class with fields → whether it is encodable; True while it is looked at, since it may be recursive."""

    def is_encodable(self, kind: Any, place: str) -> bool:
        """place: the field that has this type; "" for the kind itself."""
        cls = get_origin(kind) or kind
        if not _has_fields(cls):
            return self._is_encodable(kind, place, _arguments(kind, place))
        if cls not in self._classes:
            self._classes[cls] = True
            self._classes[cls] = self._is_encodable(kind, place, _fields(cls))
        return self._classes[cls] and self._are_encodable(_arguments(kind, place))

    def _are_encodable(self, parts: list[tuple[Any, str]]) -> bool:
        """Looks at every part, so that every fault is named."""
        return False not in [self.is_encodable(*part) for part in parts]

    def _is_encodable(self, kind: Any, place: str, parts: list[tuple[Any, str]]) -> bool:
        """parts: types inside, each with its place."""
        if not self._are_encodable(parts):
            return False
        reason = _reason(kind)
        if reason is None:
            return True
        self.faults.append((f"{place}: " if place else "") + _name(kind) + (f" ({reason})" if reason else ""))
        return False


def _arguments(kind: Any, place: str) -> list[tuple[Any, str]]:
    """The types in the brackets of a generic type, at its place."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal or isinstance(arguments and arguments[0], list):
        return []
    # Of an `Annotated` the rest is data.
    types = arguments[:1] if hasattr(kind, "__metadata__") else arguments
    return [(argument, place) for argument in types if argument is not ... and argument != ()]


def _fields(cls: Any) -> list[tuple[Any, str]]:
    """The types of the fields of a class, each with its name."""
    if not _has_fields(cls):
        return []
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception:
        # For example of a name that is imported for type checkers alone: `_reason` has it.
        return []
    names = getattr(cls, "__dataclass_fields__", hints)
    return [(hint, f"{cls.__qualname__}.{name}") for name, hint in hints.items() if name in names and _is_field(hint)]


def _is_field(hint: Any) -> bool:
    return hint is not ClassVar and get_origin(hint) is not ClassVar


def _has_fields(cls: Any) -> bool:
    if not isinstance(cls, type):
        return False
    is_tuple = issubclass(cls, tuple) and hasattr(cls, "_fields")
    marks = ("__struct_fields__", "__attrs_attrs__")
    return is_dataclass(cls) or is_typeddict(cls) or is_tuple or any(hasattr(cls, mark) for mark in marks)


def _reason(kind: Any) -> str | None:
    """Why msgspec does not know a type, "" where there is no more to it; None where it does."""
    from msgspec.inspect import CustomType, type_info

    try:
        is_unknown = kind is not object and isinstance(type_info(kind), CustomType)
    except Exception as error:
        return "" if str(error).startswith("Type '") else str(error).partition(" - type")[0]
    return "" if is_unknown else None


def _whole(kind: Any) -> list[str]:
    """Why msgspec takes no value of a kind whose every part it would take."""
    from msgspec.msgpack import Decoder

    try:
        Decoder(kind)
    except Exception as error:
        return [f"{_name(kind)}: {error}"]
    return []


def _name(kind: Any) -> str:
    if kind is threading.Lock:
        # Before Python 3.13 a function, which has another name.
        return "threading.Lock"
    if get_args(kind) or not hasattr(kind, "__qualname__"):
        return str(kind)
    return (
        kind.__qualname__ if kind.__module__ in {"builtins", "__main__"} else f"{kind.__module__}.{kind.__qualname__}"
    )
