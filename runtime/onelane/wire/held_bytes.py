"""How many bytes the connections of one shard hold for their peers, and which of them must let go of some.

Held are the messages that have come in pieces, until their call ends or its handler has read them, and the answers that
clients have not taken. Promises: pure; the connections that hold most let go of most, so that a peer which fills the
memory costs no other peer a call.
"""

from collections.abc import Iterable
from typing import Protocol

CONNECTION_BYTES = "connection_bytes"
"""Reason of a call that was ended because its connection holds too much."""
SHARD_BYTES = "shard_bytes"
"""Reason of a call that was ended because all connections of its shard together hold too much."""


class Holder(Protocol):
    """A connection, as the sum sees it."""

    trusted: bool
    """It carries the calls of many clients: only the bound of the shard is its bound."""

    def let_go(self, level: int, reason: str, *, keeps_oldest: bool) -> int:
        """End calls, the newest first, until at most `level` bytes are held; returns what is held then.

        keeps_oldest: not the oldest call, however much it holds: it may be large by itself.
        """


class HeldBytes:
    """See the module. Owned by one listener."""

    def __init__(self, *, limit: int, per_connection: int) -> None:
        self.total = 0
        self._limit = limit
        self._per_connection = per_connection
        self._held: dict[Holder, int] = {}

    def report(self, holder: Holder, held: int) -> None:
        """A connection holds so many bytes now."""
        before = self._held.get(holder, 0)
        self._set(holder, held)
        if held <= before:
            return
        if held > self._per_connection and not holder.trusted:
            level = _less(self._per_connection)
            self._set(holder, holder.let_go(level, CONNECTION_BYTES, keeps_oldest=True))
        if self.total > self._limit:
            self._relieve()

    def forget(self, holder: Holder) -> None:
        """A connection has closed."""
        self.total -= self._held.pop(holder, 0)

    def _relieve(self) -> None:
        is_alone = len(self._held) == 1
        level = fair_level(self._held.values(), _less(self._limit))
        for holder in [holder for holder, held in self._held.items() if held > level]:
            self._set(holder, holder.let_go(level, SHARD_BYTES, keeps_oldest=is_alone))

    def _set(self, holder: Holder, held: int) -> None:
        self.total += held - self._held.get(holder, 0)
        if held:
            self._held[holder] = held
        else:
            self._held.pop(holder, None)


def fair_level(amounts: Iterable[int], limit: int) -> int:
    """The largest level for which the amounts, each cut to it, are `limit` in sum at most (max-min fairness)."""
    rising = sorted(amounts)
    left = limit
    for number, amount in enumerate(rising):
        level = left // (len(rising) - number)
        if amount > level:
            return level
        left -= amount
    return limit


def _less(limit: int) -> int:
    """Somewhat less than the limit: the connections are not looked at again for each further byte."""
    return limit - limit // 8
