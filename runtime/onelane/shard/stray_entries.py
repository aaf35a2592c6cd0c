"""Entries of keyed dicts that were written outside of turns while their key left, or after it: they follow no key.

A periodic callback or a task of the service's own may write at any time, also between the encoding of a key and the
acknowledgement of its new owner. Such a write is lost; here it is found, logged and counted, where that is cheap.
"""

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice

from onelane.shard.moved_keys import moved_key
from onelane.state.keyed import KeyedDicts
from onelane.v1 import siblings_pb2

SWEPT_KEYS = 256
"""Keys that are looked at before the loop looks at its sockets again."""


class StrayEntries:
    """See the module. Owned by one lane. Keys are canonical text."""

    def __init__(self, keyed: KeyedDicts) -> None:
        self._keyed = keyed

    def drop(self, keys: Iterable[str]) -> None:
        """Remove the entries of keys whose state is not here, or is only now to come."""
        for key in keys:
            for name in self._keyed.clear(key):
                self._lose(name, key)

    async def sweep(self, is_own: Callable[[str], bool], *, is_over: Callable[[], bool]) -> None:
        """Drop what was written of keys that have left, or it would be here when they are back. is_over: another change
        begins, which looks at them too."""
        keys = self._keyed.keys()
        while not is_over() and (piece := list(islice(keys, SWEPT_KEYS))):
            self.drop(key for key in piece if not is_own(key))
            await asyncio.sleep(0)

    def compare(self, moved: siblings_pb2.MovedKey) -> None:
        """Find what has changed of a key, which is to be forgotten now, since it was encoded."""
        entries = moved_key(moved.key, self._keyed.entries_of(moved.key)).entries
        if entries == moved.entries:
            return
        sent, now = ({(entry.dict, entry.value) for entry in listed} for listed in (moved.entries, entries))
        for name in sorted({name for name, _ in sent ^ now}):
            self._lose(name, moved.key)

    def _lose(self, name: str, key: str) -> None:
        self._keyed.lose("outside_turn", f"keyed {name!r}, key {key!r}: written outside of a turn as the key left")
