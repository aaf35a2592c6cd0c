"""Injected faults: calls that are delayed, fail, or are never answered. A server interceptor, for tests and drills.

    class Flaky(Faults):
        rules = (Fault("arena.v1.Profile/*", share=0.3, abort=grpc.StatusCode.UNAVAILABLE),)

and `interceptors = ["my.tests:Flaky"]` in the app's settings. A generator with `seed` draws the calls to hit.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from random import Random
from typing import Any, ClassVar

import grpc
import grpc.aio

from onelane.server.plain_context import PlainContext


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault, and the calls that it hits."""

    method: str = "*"
    """A pattern for `pkg.Service/Method`, in which `*` matches any text."""
    share: float = 1.0
    """The share of the calls that are hit, 0.0 to 1.0."""
    delay_s: float = 0.0
    """Seconds by which the handler, or the failure, is delayed."""
    abort: grpc.StatusCode | None = None
    """The status that ends the call before its handler runs."""
    details: str = "a fault that was injected"
    drop: bool = False
    """The call is never answered: its client waits until the deadline."""


class Faults(grpc.aio.ServerInterceptor):
    """See the module. A subclass sets `rules` and `seed`; the first rule whose pattern matches a call applies."""

    rules: ClassVar[Sequence[Fault]] = ()
    seed: ClassVar[int] = 1

    def __init__(self) -> None:
        self._rng = Random(self.seed)
        self.injected = 0
        """Calls that were hit."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.lstrip("/")
        fault = next((rule for rule in self.rules if fnmatchcase(method, rule.method)), None)
        if handler is None or fault is None or self._rng.random() >= fault.share:
            return handler
        self.injected += 1
        return _with_fault(fault, handler)


def _with_fault(fault: Fault, handler: Any) -> Any:
    """`handler`, preceded by the fault."""
    run = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    serializers = (handler.request_deserializer, handler.response_serializer)
    if handler.response_streaming:

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            await _inject(fault, context)
            answers = run(request, _handler_context(run, context))
            if hasattr(answers, "__aiter__"):
                async for answer in answers:
                    yield answer
            elif inspect.isawaitable(answers):
                await answers
            else:
                for answer in answers:
                    yield answer

        make_handler = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make_handler(stream, *serializers)

    async def single(request: Any, context: Any) -> Any:
        await _inject(fault, context)
        answer = run(request, _handler_context(run, context))
        return await answer if inspect.isawaitable(answer) else answer

    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(single, *serializers)
    return grpc.unary_unary_rpc_method_handler(single, *serializers)


async def _inject(fault: Fault, context: Any) -> None:
    if fault.delay_s:
        await asyncio.sleep(fault.delay_s)
    if fault.drop:
        await asyncio.Event().wait()
    if fault.abort is not None:
        await context.abort(fault.abort, fault.details)


def _handler_context(run: Any, context: Any) -> Any:
    is_async = inspect.iscoroutinefunction(run) or inspect.isasyncgenfunction(run)
    return context if is_async else PlainContext(context)
