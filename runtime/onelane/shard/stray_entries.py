"""Entries of keyed dicts that were written outside of turns while their key left, or after it: they follow no key.

A periodic callback or a task of the service's own may write at any time, also between the encoding of a key and the
acknowledgement of its new owner. Such a write is lost; here it is found, logged and counted once, where that is cheap.
So is what a turn writes after it was given up (`given_up_keys`).
"""

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

from onelane.shard.given_up_keys import GivenUpKeys
from onelane.shard.moved_keys import moved_key
from onelane.state.keyed import KeyedDicts
from onelane.v1 import siblings_pb2

SWEPT_KEYS = 256
"""Keys that are looked at before the loop looks at its sockets again."""


class StrayEntries:
    """See the module. Owned by one lane. Keys are canonical text."""

    def __init__(self, keyed: KeyedDicts, given_up: GivenUpKeys) -> None:
        self._keyed = keyed
        self._given_up = given_up

    def drop(self, keys: Iterable[str]) -> None:
        """Remove the entries of keys whose state is not here, or is only now to come."""
        for key in keys:
            for name in self._keyed.clear(key):
                self._lose(name, key)

    async def sweep(self, is_own: Callable[[str], bool], *, is_over: Callable[[], bool]) -> None:
        """Drop what was written of keys that have left, or it would be here when they are back. is_over: another change
        begins, which looks at them too."""
        keys = self._keyed.keys(counts=False)
        while not is_over() and (piece := list(islice(keys, SWEPT_KEYS))):
            self.drop(key for key in piece if not is_own(key))
            await asyncio.sleep(0)

    def compare(self, moved: siblings_pb2.MovedKey) -> None:
        """Find what has changed of a key, which is to be forgotten now, since it was encoded."""
        now = moved_key(moved.key, self._keyed.entries_of(moved.key, counts=False))
        if now.entries == moved.entries:
            return
        before, after = _by_place(moved), _by_place(now)
        # A value that could not be encoded, then and now, is in neither: it is counted already.
        for place in sorted(before.keys() | after.keys()):
            if before.get(place) != after.get(place):
                self._lose(place.dict_name, moved.key)

    def _lose(self, name: str, key: str) -> None:
        if self._given_up.has(key):
            self._given_up.lose(name, key)
        else:
            self._keyed.lose("outside_turn", f"keyed {name!r}, key {key!r}: written outside of a turn as the key left")


class _Place(NamedTuple):
    """An entry, whatever its value."""

    dict_name: str
    text: str
    raw: bytes
    integer: str
    composite: str


def _by_place(moved: siblings_pb2.MovedKey) -> dict[_Place, bytes]:
    return {_Place(e.dict, e.text, e.raw, e.integer, e.composite): e.value for e in moved.entries}
