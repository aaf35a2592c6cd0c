"""Header blocks that many calls have in common: each end of a link sends one once, and names it by its number then."""

from collections.abc import Callable
from typing import Any, Final

from onelane.wire.framing import Headers
from onelane.wire.link import LinkSession
from onelane.wire.link_frames import MAX_KNOWN, MAX_KNOWN_BLOCK, LinkBroken, write_block

UNKNOWN: Final = -1


class SentBlocks:
    """The blocks that the peer knows. What comes but once is not among them: it would take the place of others."""

    __slots__ = ("_count", "_last", "_last_number", "_link", "_numbers")

    def __init__(self, link: LinkSession) -> None:
        self._link = link
        self._numbers: dict[Any, int] = {}
        """Of each block, by what it says; UNKNOWN for what has come once, or is too large."""
        self._count = 0
        self._last: Any = None
        """What was asked for last and is known: the hash of many headers costs as much as all else that is sent."""
        self._last_number = UNKNOWN

    def number_of(self, key: Any, write: Callable[[Any], Headers]) -> int:
        """The number by which the peer knows the headers that `write` makes of `key`; UNKNOWN where it does not."""
        if key is self._last:
            return self._last_number
        number: int | None = self._numbers.get(key)
        if number is None or number < 0:
            return self._learn(key, number, write)
        self._last, self._last_number = key, number
        return number

    def _learn(self, key: Any, seen: int | None, write: Callable[[Any], Headers]) -> int:
        number = UNKNOWN
        if seen is None:
            if len(self._numbers) >= MAX_KNOWN:
                self._numbers.clear()
                self._count, self._last = 0, None
        else:
            block = write_block(write(key))
            if len(block) <= MAX_KNOWN_BLOCK:
                number = self._count
                self._count = number + 1
                self._link.tell_block(number, block)
        self._numbers[key] = number
        return number


def check_block(number: int, block: bytes) -> None:
    """Check a block that the peer wants to name by a number.

    Raises:
        LinkBroken: it has too many, or the block is too large.
    """
    if number >= MAX_KNOWN:
        raise LinkBroken(f"a header block has the number {number}, at most {MAX_KNOWN - 1}")
    if len(block) > MAX_KNOWN_BLOCK:
        raise LinkBroken(f"a header block to be remembered has {len(block)} bytes, at most {MAX_KNOWN_BLOCK}")
