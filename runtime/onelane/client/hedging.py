"""A hedged call: several attempts of one call, of which the first good response counts; the others are cancelled.

Only for methods without side effects, and only where a service config asks for it. Source: gRFC A6, hedging.
"""

import asyncio
from collections.abc import Callable, Generator
from functools import partial
from time import monotonic
from typing import Any

import grpc
import grpc.aio

from onelane.client.call import OK, ClientCall, run_callback
from onelane.client.dropped_call import WeakCall
from onelane.client.retry import CallPolicy, RetryBudget, pushback_s


class HedgedCall(grpc.aio.UnaryUnaryCall[Any, Any]):
    """One call to its caller, whose outcome is that of the attempt that decides it."""

    def __init__(
        self,
        attempt: Callable[[int], ClientCall],
        unsent: Callable[[], ClientCall],
        policy: CallPolicy,
        budget: RetryBudget,
        deadline_at: float | None,
        between_attempts: "set[ClientCall | HedgedCall | WeakCall]",
    ) -> None:
        """attempt: sends the n-th attempt, from 0. unsent: makes a call that is not sent. deadline_at: monotonic.
        between_attempts: has this call while no attempt is under way."""
        self._attempt = attempt
        self._unsent = unsent
        self._policy = policy
        self._budget = budget
        self._deadline_at = deadline_at
        self._between_attempts = between_attempts
        self._loop = asyncio.get_running_loop()
        self._open: list[ClientCall] = []
        """Attempts under way."""
        self._attempts = 0
        """How many have been sent, or may not be sent any more."""
        self._last_failure: ClientCall | None = None
        """The last attempt that failed without deciding."""
        self._decided: asyncio.Future[ClientCall] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._send_next()

    # Attempts

    def _send_next(self) -> None:
        """Send the next attempt; where none may be sent and none is under way, the last failure decides."""
        self._between_attempts.discard(self)
        self._timer = None
        if self._decided.done():
            return
        if self._attempts < self._policy.attempts and (not self._attempts or self._budget.allows):
            number = self._attempts
            self._attempts += 1
            try:
                call = self._attempt(number)
            except grpc.aio.UsageError:
                if not number:
                    raise
                # The channel closes, and takes no further attempt: those that are under way decide.
                self._attempts = self._policy.attempts
                self._send_next()
                return
            self._open.append(call)
            assert self._policy.hedge_after_s is not None
            self._schedule_next(self._policy.hedge_after_s)
            call.add_done_callback(partial(self._ended, call))
        elif not self._open and self._last_failure is not None:
            self._decide(self._last_failure)

    def _schedule_next(self, after_s: float) -> None:
        """Send the next attempt after so long, where there is one and it would come before the deadline."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        in_time = self._deadline_at is None or monotonic() + after_s < self._deadline_at
        if self._attempts < self._policy.attempts and in_time:
            self._timer = self._loop.call_later(after_s, self._send_next)

    def _ended(self, call: ClientCall, _: Any) -> None:
        self._open.remove(call)
        if self._decided.done():
            return
        assert call.status is not None
        if call.status is OK:
            self._budget.succeeded()
        if call.status.name not in self._policy.codes:
            self._decide(call)
            return
        self._last_failure = call
        self._budget.failed()
        pushback = pushback_s(call.trailers)
        if pushback is not None and pushback < 0:
            self._attempts = self._policy.attempts
        self._schedule_next(pushback or 0.0)
        if self._open:
            return
        if self._timer is None:
            self._decide(call)
        else:
            self._between_attempts.add(self)

    def _decide(self, call: ClientCall) -> None:
        self._decided.set_result(call)
        self._between_attempts.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        for other in list(self._open):
            other.cancel()
        for callback in self._callbacks:
            run_callback(callback, self)

    # grpc.aio.UnaryUnaryCall

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._response().__await__()

    async def _response(self) -> Any:
        try:
            call: Any = await asyncio.shield(self._decided)
        except asyncio.CancelledError:
            self.cancel()
            raise
        return await call

    def cancel(self) -> bool:
        if self._decided.done():
            return False
        first = self._open[0] if self._open else self._unsent()
        first.cancel()
        if not self._decided.done():
            self._decide(first)
        return True

    @property
    def status(self) -> grpc.StatusCode | None:
        """None while no attempt has decided."""
        return self._decided.result().status if self._decided.done() else None

    def cancelled(self) -> bool:
        return self._decided.done() and self._decided.result().cancelled()

    def done(self) -> bool:
        return self._decided.done()

    def time_remaining(self) -> float | None:
        return None if self._deadline_at is None else max(0.0, self._deadline_at - monotonic())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._decided.done():
            run_callback(callback, self)
        else:
            self._callbacks.append(callback)

    async def _deciding_attempt(self) -> ClientCall:
        return await asyncio.shield(self._decided)

    async def wait_ended(self) -> None:
        await self._deciding_attempt()

    async def initial_metadata(self) -> Any:
        return await (await self._deciding_attempt()).initial_metadata()

    async def trailing_metadata(self) -> Any:
        return await (await self._deciding_attempt()).trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        return await (await self._deciding_attempt()).code()

    async def details(self) -> str:
        return await (await self._deciding_attempt()).details()

    async def debug_error_string(self) -> Any:
        return await (await self._deciding_attempt()).debug_error_string()

    async def wait_for_connection(self) -> None:
        await (await self._deciding_attempt()).wait_for_connection()
