"""One call made several times: the first good answer counts, the others are cancelled. gRFC A6, hedging.

Only for methods without side effects, and only where a service config asks for it.
"""

import asyncio
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import grpc
import grpc.aio

from onelane.client_call import ClientCall
from onelane.resilience import Budget, Policy, pushback_s


class HedgedCall(grpc.aio.UnaryUnaryCall[Any, Any]):
    """What its caller sees is one call: that which decided it, once one has."""

    def __init__(self, send: Callable[[int], ClientCall], policy: Policy, budget: Budget) -> None:
        """send: makes the n-th attempt, from 0."""
        self._send = send
        self._policy = policy
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._open: list[ClientCall] = []
        self._made = 0
        self._decided: asyncio.Future[ClientCall] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._next()

    # Attempts

    def _next(self) -> None:
        if self._decided.done() or self._made >= self._policy.attempts:
            return
        if self._made and not self._budget.allows:
            return
        number = self._made
        self._made += 1
        call = self._send(number)
        self._open.append(call)
        if self._made < self._policy.attempts:
            assert self._policy.hedge_after_s is not None
            self._timer = self._loop.call_later(self._policy.hedge_after_s, self._next)
        call.add_done_callback(partial(self._ended, call))

    def _ended(self, call: ClientCall, _: Any) -> None:
        self._open.remove(call)
        if self._decided.done():
            return
        assert call.status is not None
        pushed = pushback_s(call.trailers)
        ends = call.status.name not in self._policy.codes
        if call.status is grpc.StatusCode.OK:
            self._budget.succeeded()
        elif not ends:
            self._budget.failed()
            if pushed is not None and pushed < 0:
                self._made = self._policy.attempts
            elif self._made < self._policy.attempts:
                self._again(pushed or 0.0)
        if ends or (not self._open and (self._timer is None or self._made >= self._policy.attempts)):
            self._decide(call)

    def _again(self, after_s: float) -> None:
        """Make the next attempt now, or when the server says."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(after_s, self._next)

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
        first = self._open[0] if self._open else None
        if first is None:
            return False
        first.cancel()
        if not self._decided.done():
            self._decide(first)
        return True

    def cancelled(self) -> bool:
        return self._decided.done() and self._decided.result().cancelled()

    def done(self) -> bool:
        return self._decided.done()

    def time_remaining(self) -> float | None:
        known = self._decided.result() if self._decided.done() else (self._open[0] if self._open else None)
        return known.time_remaining() if known is not None else None

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
