"""One call made several times: the first good answer counts, the others are cancelled. gRFC A6, hedging.

Only for methods without side effects, and only where a service config asks for it.
"""

import asyncio
from collections.abc import Callable, Generator
from functools import partial
from time import monotonic
from typing import Any

import grpc
import grpc.aio

from onelane.client.call import CANCELLED_HERE, ClientCall
from onelane.client.retry import Budget, Policy, pushback_s


class HedgedCall(grpc.aio.UnaryUnaryCall[Any, Any]):
    """What its caller sees is one call: that which decided it, once one has."""

    def __init__(
        self,
        send: Callable[[int], ClientCall],
        unsent: Callable[[], ClientCall],
        policy: Policy,
        budget: Budget,
        until: float | None,
    ) -> None:
        """send: makes the n-th attempt, from 0. unsent: a call that is not sent. until: the deadline, monotonic."""
        self._send = send
        self._unsent = unsent
        self._policy = policy
        self._budget = budget
        self._until = until
        self._loop = asyncio.get_running_loop()
        self._open: list[ClientCall] = []
        self._made = 0
        self._failed: ClientCall | None = None
        """The last attempt that has failed, where that did not decide."""
        self._decided: asyncio.Future[ClientCall] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._next()

    # Attempts

    def _next(self) -> None:
        """Make the next attempt, if there is one to make; if there is none and nothing is open, that decides."""
        self._timer = None
        if self._decided.done():
            return
        if self._made < self._policy.attempts and (not self._made or self._budget.allows):
            number = self._made
            self._made += 1
            call = self._send(number)
            self._open.append(call)
            assert self._policy.hedge_after_s is not None
            self._later(self._policy.hedge_after_s)
            call.add_done_callback(partial(self._ended, call))
        elif not self._open and self._failed is not None:
            self._decide(self._failed)

    def _later(self, after_s: float) -> None:
        """Make the next attempt after so long, where there is one, and it would come in time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        in_time = self._until is None or monotonic() + after_s < self._until
        if self._made < self._policy.attempts and in_time:
            self._timer = self._loop.call_later(after_s, self._next)

    def _ended(self, call: ClientCall, _: Any) -> None:
        self._open.remove(call)
        if self._decided.done():
            return
        assert call.status is not None
        if call.status is grpc.StatusCode.OK:
            self._budget.succeeded()
        if call.status.name not in self._policy.codes:
            self._decide(call)
            return
        self._failed = call
        self._budget.failed()
        pushed = pushback_s(call.trailers)
        if pushed is not None and pushed < 0:
            self._made = self._policy.attempts
        self._later(pushed or 0.0)
        if self._timer is None and not self._open:
            self._decide(call)

    def _decide(self, call: ClientCall) -> None:
        self._decided.set_result(call)
        if self._timer is not None:
            self._timer.cancel()
        for other in list(self._open):
            other.cancel()
        for callback in self._callbacks:
            callback(self)

    # grpc.aio.UnaryUnaryCall

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        try:
            call: Any = await asyncio.shield(self._decided)
        except asyncio.CancelledError:
            self.cancel()
            raise
        return await call

    def cancel(self) -> bool:
        if self._decided.done():
            return False
        if self._open:
            first = self._open[0]
            first.cancel()
        else:
            first = self._unsent()
            first.finish(grpc.StatusCode.CANCELLED, CANCELLED_HERE)
        if not self._decided.done():
            self._decide(first)
        return True

    @property
    def status(self) -> grpc.StatusCode | None:
        """None while it is not decided."""
        return self._decided.result().status if self._decided.done() else None

    def cancelled(self) -> bool:
        return self._decided.done() and self._decided.result().cancelled()

    def done(self) -> bool:
        return self._decided.done()

    def time_remaining(self) -> float | None:
        return None if self._until is None else max(0.0, self._until - monotonic())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._decided.done():
            callback(self)
        else:
            self._callbacks.append(callback)

    async def _known(self) -> ClientCall:
        return await asyncio.shield(self._decided)

    async def initial_metadata(self) -> Any:
        return await (await self._known()).initial_metadata()

    async def trailing_metadata(self) -> Any:
        return await (await self._known()).trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        return await (await self._known()).code()

    async def details(self) -> str:
        return await (await self._known()).details()

    async def debug_error_string(self) -> str:
        return await (await self._known()).debug_error_string()

    async def wait_for_connection(self) -> None:
        await (await self._known()).wait_for_connection()
