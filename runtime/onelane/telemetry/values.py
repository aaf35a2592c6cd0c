"""Values of any type converted to those that OpenTelemetry allows in attributes."""

from collections.abc import Sequence
from typing import Any


def plain_tree(value: Any, depth: int = 6) -> Any:
    """`value` with its containers copied and each leaf converted; containers nested deeper than `depth` become text."""
    if value is None:
        return None
    if isinstance(value, dict) and depth:
        return {as_text(name): plain_tree(leaf, depth - 1) for name, leaf in value.items()}
    if isinstance(value, list | tuple) and depth:
        converted = [plain_tree(leaf, depth - 1) for leaf in value]
        return converted if isinstance(value, list) else tuple(converted)
    return attribute_value(value)


def attribute_value(value: Any) -> Any:
    """`value` as an attribute's value: a string, boolean, number, or list of these; other types become text."""
    value_type = type(value)
    if value_type in _PLAIN_TYPES or (value_type is int and _INT64_MIN <= value <= _INT64_MAX):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        return [_scalar(element) for element in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    """A string, boolean, float or 64-bit integer. An instance of a subclass becomes its base type, other types text."""
    if isinstance(value, str):
        # Not `str(value)`: a subclass may override `__str__`.
        return str.__str__(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float.__float__(value)
    try:
        if isinstance(value, int) and _INT64_MIN <= value <= _INT64_MAX:
            return int(value)
        return str(value)
    except Exception:
        return f"<{type(value).__qualname__}>"


def as_text(value: Any) -> str:
    """A name of any type as a plain string."""
    return value if type(value) is str else str(_scalar(value))


_PLAIN_TYPES = frozenset({str, bool, float})


_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
