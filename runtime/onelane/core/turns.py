"""Turns: who has a key for itself, who waits for it, and who may come in because its chain of calls holds it.

Promises: at most one chain of calls is inside a key; who waits is served first come first served; what waits is
bounded, per key and in all. A turn that nobody contends costs one entry in a dictionary.
Leaves out: what a waiter is, and how it goes on. `leave` names the next one, and its owner starts it.

A turn is named to others by an unguessable number, drawn when a call first leaves it: to present it is to have been
given it by the turn's holder, so it counts whatever connection it comes by, and tells nobody the key.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from onelane.errors import Overloaded

CHAIN = "onelane-chain"
"""The metadata that carries a chain: links, outermost first."""
MOST_LINKS = 32
"""A longer chain forgets its oldest links; their keys are then closed to it."""

W = TypeVar("W")
Waiters = OrderedDict[Any, str]
"""Waiter → the method it waits for, first come first."""


class Turn:
    """The time in which one chain of calls has one key for itself."""

    __slots__ = ("_turns", "inside", "key", "method", "number", "waiting")

    def __init__(self, turns: "Turns", key: str, method: str, waiting: Waiters | None = None) -> None:
        self._turns = turns
        self.key = key
        self.method = method
        """Who holds it: `pkg.Service/Method`, or another name of what runs."""
        self.inside = 1
        """Calls in it: the holder, and those that came back to the key through its own calls."""
        self.number = 0
        """Drawn when the holder first calls elsewhere."""
        self.waiting = waiting

    def outgoing_chain(self, chain: str) -> str:
        """The chain that calls made in this turn carry; `chain` is what its own call carried."""
        if not self.number:
            self.number = self._turns.draw() or 1
        name = _name(self)
        if name in chain:
            return chain
        links = [*(chain.split(",") if chain else []), f"{name}{self._turns.shard}/{self.method}"]
        return ",".join(links[-MOST_LINKS:])


class Turns:
    """All turns of one shard. Owned by its lane."""

    def __init__(self, shard: str, *, draw: Callable[[], int], per_key: int, in_all: int) -> None:
        """draw: 64 unguessable bits. per_key, in_all: how many may wait."""
        self.held: dict[str, Turn] = {}
        self.waiting = 0
        self.shard = shard
        self.draw = draw
        self._per_key = per_key
        self._in_all = in_all

    def enter(self, key: str, method: str, chain: str, waiter: object) -> Turn | None:
        """The turn, where the key is free or held by `chain`; None where `waiter` waits from now on.

        Raises:
            Overloaded: too many wait already.
        """
        turn = self.held.get(key)
        if turn is None:
            turn = self.held[key] = Turn(self, key, method)
            return turn
        if turn.number and chain and _name(turn) in chain:
            turn.inside += 1
            return turn
        self._wait(turn, method, waiter)
        return None

    def leave(self, turn: Turn) -> tuple[Any, Turn] | None:
        """One has left `turn`: who comes next, with a turn of its own, where it was the last and somebody waits."""
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
        """`waiter` waits no more."""
        turn = self.held.get(key)
        if turn is not None and turn.waiting and turn.waiting.pop(waiter, None) is not None:
            self.waiting -= 1

    def holder(self, key: str) -> str:
        """What runs in the turn of `key`; "" where nobody holds it."""
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


def _name(turn: Turn) -> str:
    return f"{turn.number:016x}@"


def holders(chain: str) -> list[str]:
    """`shard/pkg.Service/Method` of each turn that a chain holds, outermost first, for people."""
    return [link.partition("@")[2] for link in chain.split(",") if link]


def patience_s(remaining_s: float) -> float:
    """How long a call may wait for its turn: a little less than it has, so that word of it still reaches its client."""
    return remaining_s - min(0.05, remaining_s * 0.1)
