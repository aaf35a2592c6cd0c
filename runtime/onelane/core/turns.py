"""Turns: one chain of calls at a time runs for a key; other calls for the key wait in a queue.

Promises: a call of the chain that holds a key enters at once, so calls in a circle do not deadlock; waiters are served
first come, first served; their number is bounded, per key and in all. A turn without contention costs one dictionary
entry.
Leaves out: what a waiter is, and how it goes on. `leave` returns the next waiter, and its owner starts it.

In a chain a turn is named by an unguessable number, drawn when a call first leaves the turn. Only calls made inside the
turn carry that number, so it is trusted on any connection, and it reveals nothing about the key.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from onelane.errors import Overloaded

CHAIN = "onelane-chain"
"""The metadata that carries a chain: one link per turn, outermost first."""
MAX_CHAIN_LINKS = 32
"""A longer chain drops its oldest links; a call of the chain to one of their keys then waits like any other."""

Waiters = OrderedDict[Any, str]
"""Waiter → the method that it is a call of, in the order of arrival."""


class Turn:
    """The time in which one chain of calls holds one key."""

    __slots__ = ("_turns", "inside", "key", "method", "number", "since", "waiting")

    since: float
    """When it began, by `perf_counter`, where its holder has waited for it, or has taken it by hand; else not set: then
    it began when its call came."""

    def __init__(self, turns: "Turns", key: str, method: str, waiting: Waiters | None = None) -> None:
        self._turns = turns
        self.key = key
        self.method = method
        """The holder: `pkg.Service/Method`, or the name of a timer or other work."""
        self.inside = 1
        """Calls inside the turn: the holder, and calls to the same key that its own calls have led to."""
        self.number = 0
        """Unguessable; drawn when the holder makes its first call, 0 before."""
        self.waiting = waiting
        """Calls that wait for this turn to end."""

    def outgoing_chain(self, chain: str) -> str:
        """The chain of calls that are made in this turn. chain: of the call that holds it."""
        if not self.number:
            self.number = self._turns.draw() or 1
        number = _number_text(self)
        if number in chain:
            return chain
        links = [*(chain.split(",") if chain else []), f"{number}{self._turns.shard}/{self.method}"]
        return ",".join(links[-MAX_CHAIN_LINKS:])

    def is_held_by(self, chain: str) -> bool:
        """Whether a call of this chain is made inside the turn."""
        return bool(self.number and chain) and _number_text(self) in chain


class Turns:
    """All turns of one shard. Owned by its lane."""

    def __init__(self, shard: str, *, draw: Callable[[], int], per_key: int, in_all: int) -> None:
        """draw: returns 64 unguessable bits. per_key, in_all: waiters, at most."""
        self.held: dict[str, Turn] = {}
        self.waiting = 0
        self.shard = shard
        self.draw = draw
        self._per_key = per_key
        self._in_all = in_all

    def enter(self, key: str, method: str, chain: str, waiter: object) -> Turn | None:
        """Take the turn of a key, if the key is free or held by `chain`; else queue `waiter` and return None.

        Raises:
            Overloaded: the queue is full.
        """
        turn = self.held.get(key)
        if turn is None:
            turn = self.held[key] = Turn(self, key, method)
            return turn
        if turn.number and turn.is_held_by(chain):
            turn.inside += 1
            return turn
        self._wait(turn, method, waiter)
        return None

    def leave(self, turn: Turn) -> tuple[Any, Turn] | None:
        """End one call inside `turn`. If it was the last one, and a waiter is queued: the waiter, and its turn."""
        turn.inside -= 1
        if turn.inside:
            return None
        if not turn.waiting:
            del self.held[turn.key]
            return None
        waiter, method = turn.waiting.popitem(last=False)
        self.waiting -= 1
        following = self.held[turn.key] = Turn(self, turn.key, method, turn.waiting)
        return waiter, following

    def withdraw(self, key: str, waiter: object) -> None:
        """Remove `waiter` from the queue of `key`."""
        turn = self.held.get(key)
        if turn is not None and turn.waiting and turn.waiting.pop(waiter, None) is not None:
            self.waiting -= 1

    def evict(self, key: str) -> list[Any]:
        """Remove all waiters from the queue of `key`; returns them, in their order."""
        turn = self.held.get(key)
        if turn is None or not turn.waiting:
            return []
        waiters = list(turn.waiting)
        turn.waiting.clear()
        self.waiting -= len(waiters)
        return waiters

    def is_inside(self, key: str, chain: str) -> bool:
        """Whether `chain` holds the turn of `key`: its calls enter at once."""
        turn = self.held.get(key)
        return turn is not None and turn.is_held_by(chain)

    def holder(self, key: str) -> str:
        """The method that holds `key`; "" if it is free."""
        turn = self.held.get(key)
        return turn.method if turn is not None else ""

    def _wait(self, turn: Turn, method: str, waiter: object) -> None:
        if turn.waiting is None:
            turn.waiting = OrderedDict()
        if len(turn.waiting) >= self._per_key:
            raise Overloaded(f"shard {self.shard}, the queue of one key", waiting=len(turn.waiting))
        if self.waiting >= self._in_all:
            raise Overloaded(f"shard {self.shard}, the queue of turns", waiting=self.waiting)
        turn.waiting[waiter] = method
        self.waiting += 1


def _number_text(turn: Turn) -> str:
    return f"{turn.number:016x}@"


def holders(chain: str) -> list[str]:
    """`shard/pkg.Service/Method` of each turn that a chain holds, outermost first, to show to people."""
    return [link.partition("@")[2] for link in chain.split(",") if link]


def patience_s(remaining_s: float) -> float:
    """Seconds that a call may wait for its turn: a little less than remain, so that its status arrives in time."""
    return remaining_s - min(0.05, remaining_s * 0.1)
