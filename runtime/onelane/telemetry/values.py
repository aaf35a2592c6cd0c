"""Attribute values as OpenTelemetry has them, made of whatever a user gives."""

from collections.abc import Sequence
from typing import Any


def whole(value: Any, depth: int = 6) -> Any:
    """`value` with everything in it made plain; what is nested deeper than any record of ours becomes text."""
    if value is None:
        return None
    if isinstance(value, dict) and depth:
        return {text(name): whole(one, depth - 1) for name, one in value.items()}
    if isinstance(value, list | tuple) and depth:
        made = [whole(one, depth - 1) for one in value]
        return made if isinstance(value, list) else tuple(made)
    return plain(value)


def plain(value: Any) -> Any:
    """An attribute's value as OpenTelemetry has them: texts, truth values, numbers, lists of these; else its text."""
    kind = type(value)
    if kind in _PLAIN or (kind is int and _LEAST <= value <= _MOST):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        return [_scalar(one) for one in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    """A text, a truth value, a number of 64 bits: of a subclass, such as an enum's, its value; of all else its text."""
    if isinstance(value, str):
        # Not `str(value)`, which is for the subclass to say.
        return str.__str__(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float.__float__(value)
    try:
        if isinstance(value, int) and _LEAST <= value <= _MOST:
            return int(value)
        return str(value)
    except Exception:
        return f"<{type(value).__qualname__}>"


def text(value: Any) -> str:
    """A name that somebody has given, as text whatever it is."""
    return value if type(value) is str else str(_scalar(value))


_PLAIN = frozenset({str, bool, float})


_LEAST, _MOST = -(2**63), 2**63 - 1
