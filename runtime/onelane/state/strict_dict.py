"""A keyed dict that finds faults: it gives an entry in the turn of its key alone, and refuses keys that are none.

For tests and development (`strict = true`). Otherwise the dicts are plain, and such a touch goes unnoticed: it reads an
entry that a turn is changing, or that is not loaded, and what it writes is not written with its key's turn.
Leaves out: `len` and `repr`; outside of any turn the keys alone, so that a timer may take the turn of each; code of no
shard, such as a test that looks at a service; values, which may be touched wherever code has brought them.
"""

from collections.abc import ItemsView, Iterable, Iterator, KeysView, MutableMapping, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from threading import current_thread, get_ident
from typing import Any

from onelane.core.context import bound_shard, current_call
from onelane.errors import NoRoutingKey, NotItsKey
from onelane.state.entries import canonical_key

_key_of_hook: ContextVar[str | None] = ContextVar("onelane.key_of_hook", default=None)
"""The key for which a hook (`on_arrive`, `on_leave`) runs: it has no turn then, nor has anything else."""


@contextmanager
def in_hook_of(key: str) -> Iterator[None]:
    """Inside the block the entries of a key (canonical text) may be touched."""
    token = _key_of_hook.set(key)
    try:
        yield
    finally:
        _key_of_hook.reset(token)


def held_keys() -> list[str]:
    """The keys (canonical text) whose turns this code has, the innermost first. A task that a turn has started, and
    that outlives it, has none."""
    hook, context = _key_of_hook.get(), current_call()
    keys = [] if hook is None else [hook]
    while context is not None:
        turn = getattr(context, "turn", None)
        if turn is not None and turn.inside:
            keys.append(turn.key)
        context = getattr(context, "outer", None)
    return keys


class StrictDict(dict[Any, Any]):
    """See the module. Every method that reaches an entry raises NotItsKey where that is out of its turn."""

    __slots__ = ("_app", "_lane", "_name")
    __hash__ = None

    def __init__(self, name: str, *, app: str) -> None:
        """name: the dict's. For the errors, as the app's."""
        super().__init__()
        self._name = name
        self._app = app
        self._lane = get_ident()

    def _held_keys(self) -> list[str]:
        """None on another thread: a job that a turn awaits has a copy of its context, and runs beside the lane."""
        return held_keys() if get_ident() == self._lane else []

    def _check(self, keys: Iterable[Any]) -> None:
        held = self._held_keys()
        is_of_shard = current_call() is not None or bound_shard() is not None
        for key in keys:
            text = canonical_key(key)
            if text is None:
                raise NoRoutingKey(self._name, key)
            if text not in held and is_of_shard:
                innermost = held[0] if held else None
                raise NotItsKey(self._app, self._name, text, spelled=key, held=innermost, code=self._code())

    def _code(self) -> str:
        """What runs now, for the errors."""
        if get_ident() != self._lane:
            return f"the thread {current_thread().name}"
        context = current_call()
        return context.method if context is not None else ""

    def _check_all(self) -> None:
        self._check(tuple(super().keys()))

    def _check_listing(self) -> None:
        if self._held_keys():
            self._check_all()

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
        self._check_listing()
        return super().__iter__()

    def __reversed__(self) -> Iterator[Any]:
        self._check_listing()
        return super().__reversed__()

    def keys(self) -> KeysView[Any]:  # type: ignore[override]
        self._check_listing()
        return super().keys()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        self._check_all()
        return super().values()

    def items(self) -> ItemsView[Any, Any]:  # type: ignore[override]
        self._check_all()
        return super().items()


class Unchecked(MutableMapping[Any, Any]):
    """The entries of a strict dict for the runtime, which loads, writes, moves and forgets those of any key."""

    def __init__(self, entries: StrictDict) -> None:
        self._entries = entries

    def __getitem__(self, key: Any) -> Any:
        return dict.__getitem__(self._entries, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        dict.__setitem__(self._entries, key, value)

    def __delitem__(self, key: Any) -> None:
        dict.__delitem__(self._entries, key)

    def __contains__(self, key: object) -> bool:
        return dict.__contains__(self._entries, key)

    def __iter__(self) -> Iterator[Any]:
        return dict.__iter__(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
