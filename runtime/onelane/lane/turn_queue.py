"""The queue of turns of one lane: calls and code of the shard wait for the turn of a key, and go on when it comes.

`core/turns`, which is pure, decides the next waiter; this file starts it. A call that waits has no task:
`call.proceed` starts it. Code that takes a turn by hand (`Shard.turn`, timers) awaits a future.
"""

import asyncio
from collections import deque
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Token
from time import perf_counter
from typing import Any, Protocol
from weakref import WeakValueDictionary

from onelane.core.context import CallContext, TurnContext, current_call, current_call_var
from onelane.core.keys import RoutingKey
from onelane.core.turns import Turn, Turns, holders
from onelane.errors import KeyMoves
from onelane.lane.arrivals import Arrivals
from onelane.lane.routing import ARRIVING, Router
from onelane.server.call import Call
from onelane.server.call_state import WAITING

AT_ONCE = 64
"""Waiters that are started before the loop looks at its sockets again."""


class TurnKeeper(Protocol):
    """Keeps the durable state of keys: see `lane/kept_turns`."""

    def start(self, call: Call, turn: Turn) -> None:
        """Start a call that has got its turn, now or later."""

    async def prepare(self, turn: Turn) -> None:
        """Wait until code may begin that has taken a turn by hand."""

    def end_by_hand(self, turn: Turn, *, is_nested: bool) -> "asyncio.Future[None] | None":
        """That code has ended. What it must wait for, if anything; the caller must leave the turn."""


class HeldTurn(AbstractAsyncContextManager[None]):
    """The turn of a key as `async with` holds it.

    Its exit cannot be skipped: it frees the key before all else. With durable state it then waits until the turn is on
    disk, so what follows the block rests on nothing that may be lost; it raises NotKept where the turn failed. No
    `asynccontextmanager`, whose generator would be one more that the garbage collector may have to close.
    """

    def __init__(self, queue: "TurnQueue", key: RoutingKey) -> None:
        self._queue = queue
        self._key = key
        self._turn: Turn | None = None
        self._is_nested = False
        """It was entered inside the turn, by a call of its chain."""
        self._token: Token[CallContext | None]

    async def __aenter__(self) -> None:
        outer = current_call()
        if self._turn is not None:
            raise RuntimeError(f"the turn of {self._turn.key!r} is entered already: ask the shard for another")
        turn = await self._queue.hold(self._key, outer.method[1:] if outer else "shard.turn")
        self._is_nested = turn.inside > 1
        if self._queue.keeper is not None:
            try:
                await self._queue.keeper.prepare(turn)
            except BaseException:
                self._queue.leave(turn)
                raise
        turn.since = perf_counter()
        if (task := asyncio.current_task()) is not None:
            self._queue.by_hand[turn] = task
        self._turn, self._token = turn, current_call_var.set(TurnContext(outer, turn))

    async def __aexit__(self, *error: object) -> None:
        turn, self._turn = self._turn, None
        if turn is None:
            return
        self._queue.by_hand.pop(turn, None)
        keeper = self._queue.keeper
        on_disk = None if keeper is None else keeper.end_by_hand(turn, is_nested=self._is_nested)
        self._queue.leave(turn)
        # A generator that is closed elsewhere runs in another context, which has a copy of the variable.
        with suppress(ValueError):
            current_call_var.reset(self._token)
        if on_disk is not None and error[:1] != (GeneratorExit,):
            await on_disk


class TurnQueue:
    """See the module. Owned by one lane."""

    def __init__(self, turns: Turns, router: Router) -> None:
        self.turns = turns
        self.arrivals = Arrivals(self.start_soon)
        self._router = router
        self._due: deque[tuple[Any, Turn | None]] = deque()
        """Waiters that are to be started: they have been given a turn, or (None) are held no longer."""
        self._is_starting = False
        self.by_hand: WeakValueDictionary[Turn, asyncio.Task[Any]] = WeakValueDictionary()
        """The turns that `HeldTurn` holds, and the tasks in which it was entered. Weakly: a task that has ended by an
        exception refers to its frames, and with them to a generator whose end is what frees the turn."""
        self.keeper: TurnKeeper | None = None
        """None in an app without durable state."""

    async def hold(self, named_key: RoutingKey, name: str) -> Turn:
        """Wait for the turn of a key that this shard owns; the caller must `leave` it. name: of the code in it.

        Raises:
            LongKey: the key is longer than the app allows.
            ForeignKey: another shard owns the key. KeyMoves: it moves to another shard at this moment.
            Overloaded: too many wait for it.
        """
        key = self._router.own_key(named_key, "the key of the turn")
        while self._router.find_home(key) is ARRIVING:
            await self.arrivals.wait(key=key)
            key = self._router.own_key(named_key, "the key of the turn")
        if (owner := self._router.find_home(key)) is not None and not self._is_inside(key):
            # No new turn of a key that leaves.
            raise KeyMoves(key, shard=self._router.shard, owner=owner.name)
        return await self.take(key, name)

    def _is_inside(self, key: str) -> bool:
        """Whether this code runs inside the turn of a key, which it enters again at once."""
        context = current_call()
        return context is not None and self.turns.is_inside(key, context.outgoing_chain)

    async def take(self, key: str, name: str) -> Turn:
        """As `hold`, whoever owns the key. key: canonical text."""
        context = current_call()
        waiter: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        turn = self.turns.enter(key, name, context.outgoing_chain if context else "", waiter)
        if turn is not None:
            return turn
        try:
            return await waiter
        except BaseException:
            # Cancelled; or closed (GeneratorExit), as a generator or a coroutine is that nobody goes on with.
            self.turns.withdraw(key, waiter)
            if waiter.done() and not waiter.cancelled():
                self.leave(waiter.result())
            raise

    def leave(self, turn: Turn) -> None:
        """End a turn. The next waiter is started soon, but not from here: a long queue must not be a deep stack."""
        following = self.turns.leave(turn)
        if following is None:
            return
        waiter, turn = following
        if isinstance(waiter, Call):
            waiter.turn = turn
        # As `start_soon`, written out: this is the path of every call that waits.
        self._due.append(following)
        if not self._is_starting and len(self._due) == 1:
            asyncio.get_running_loop().call_soon(self._start_due)

    def start_soon(self, waiter: Any) -> None:
        """Start a waiter that has waited for something else than a turn."""
        self._due.append((waiter, None))
        if not self._is_starting and len(self._due) == 1:
            asyncio.get_running_loop().call_soon(self._start_due)

    def why_late(self, method: str, key: str, chain: str) -> str:
        """The details of a call whose deadline passed in the queue."""
        holder = self.turns.holder(key) or "nobody"
        callers = ", ".join(holders(chain))
        return (
            f"the deadline passed while {method} on shard {self._router.shard} waited for the turn of its key, "
            f"held by {holder}" + (f"; its own callers hold {callers}" if callers else "")
        )

    def _start_due(self) -> None:
        """Start the waiters whose turn has come, and those that follow them where they end at once."""
        self._is_starting = True
        try:
            for _ in range(AT_ONCE):
                if not self._due:
                    break
                waiter, turn = self._due.popleft()
                self._start(waiter, turn)
        finally:
            # Also where a waiter has raised: the others must not wait for ever.
            self._is_starting = False
            if self._due:
                asyncio.get_running_loop().call_soon(self._start_due)

    def _start(self, waiter: Any, turn: Turn | None) -> None:
        if turn is not None:
            turn.since = perf_counter()
        if isinstance(waiter, Call):
            if waiter.state is not WAITING:
                return
            if turn is None or self.keeper is None:
                waiter.proceed()
            else:
                self.keeper.start(waiter, turn)
        elif not waiter.done():
            waiter.set_result(turn)
        elif turn is not None:
            self.leave(turn)
