"""A keyed dict that finds faults: in the turn of a key it refuses the entry of another, and keys that are none.

For tests and `strict = true`; production has plain dicts, where such a touch goes unnoticed: it reads an entry that a
turn is changing, or that is not loaded, and what it writes is not written with its key's turn.
Leaves out: code in no turn (start, streams, free methods), which may look at every entry that is here; `len`, `repr`.
"""

from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from typing import Any

from onelane.core.context import current_call
from onelane.errors import NoRoutingKey, NotItsKey
from onelane.state.entries import canonical_key


def held_keys() -> list[str]:
    """The keys (canonical text) whose turns this code has, the innermost first; empty outside of any turn."""
    keys, context = [], current_call()
    while context is not None:
        turn = getattr(context, "turn", None)
        if turn is not None:
            keys.append(turn.key)
        context = getattr(context, "outer", None)
    return keys


class StrictDict(dict[Any, Any]):
    """See the module. Every method that reaches an entry raises NotItsKey for another key's, and NoRoutingKey."""

    __slots__ = ("_name",)
    __hash__ = None

    def __init__(self, name: str) -> None:
        """name: the dict's, for the errors."""
        super().__init__()
        self._name = name

    def _check(self, keys: Iterable[Any]) -> None:
        held = held_keys()
        for key in keys:
            text = canonical_key(key)
            if text is None:
                raise NoRoutingKey(self._name, key)
            if held and text not in held:
                raise NotItsKey(self._name, text, held=held[0])

    def _check_all(self) -> None:
        self._check(tuple(super().keys()))

    def __getitem__(self, key: Any) -> Any:
        self._check((key,))
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check((key,))
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        self._check((key,))
        super().__delitem__(key)

    def __contains__(self, key: object) -> bool:
        self._check((key,))
        return super().__contains__(key)

    def get(self, key: Any, default: Any = None, /) -> Any:
        self._check((key,))
        return super().get(key, default)

    def setdefault(self, key: Any, default: Any = None, /) -> Any:
        self._check((key,))
        return super().setdefault(key, default)

    def pop(self, key: Any, /, *default: Any) -> Any:
        self._check((key,))
        return super().pop(key, *default)

    def update(self, *others: Any, **named: Any) -> None:
        new = dict(*others, **named)
        self._check(new)
        super().update(new)

    def __ior__(self, other: Any, /) -> "StrictDict":
        self.update(other)
        return self

    def popitem(self) -> tuple[Any, Any]:
        self._check_all()
        return super().popitem()

    def clear(self) -> None:
        self._check_all()
        super().clear()

    def copy(self) -> dict[Any, Any]:
        self._check_all()
        return dict(super().items())

    def __or__(self, other: Any, /) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any, /) -> Any:
        return other | self.copy()

    def __eq__(self, other: object) -> bool:
        self._check_all()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __iter__(self) -> Iterator[Any]:
        self._check_all()
        return super().__iter__()

    def __reversed__(self) -> Iterator[Any]:
        self._check_all()
        return super().__reversed__()

    def keys(self) -> KeysView[Any]:  # type: ignore[override]
        self._check_all()
        return super().keys()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        self._check_all()
        return super().values()

    def items(self) -> ItemsView[Any, Any]:  # type: ignore[override]
        self._check_all()
        return super().items()
