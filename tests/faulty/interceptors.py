"""Server interceptors that break gRPC's rules to order: the metadata `misdeed` names what is done."""

import asyncio
import sys
from typing import Any

import grpc
import grpc.aio

from tests.faulty.misdeeds import Panic, Unprintable

EXPECTED = {
    "raises": "INTERNAL",
    "raises_after_a_wait": "INTERNAL",
    "exits": "INTERNAL",
    "exits_after_a_wait": "INTERNAL",
    "interrupts": "INTERNAL",
    "panics": "INTERNAL",
    "raises_an_unprintable_error": "INTERNAL",
    "leaks_a_cancellation": "INTERNAL",
    "chooses_a_number": "INTERNAL",
    "chooses_another_shape": "INTERNAL",
    "chooses_a_handler_without_a_function": "INTERNAL",
    "chooses_a_handler_that_answers_none": "INTERNAL",
    "chooses_a_handler_that_exits": "INTERNAL",
    "chooses_a_serializer_that_raises": "INTERNAL",
    "chooses_a_serializer_of_text": "INTERNAL",
    "chooses_nothing": "UNIMPLEMENTED",
    "behaves": "OK",
}
"""The status of the call behind each misdeed."""


class Faulty(grpc.aio.ServerInterceptor):
    """See the module."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        name = dict(handler_call_details.invocation_metadata or ()).get("misdeed", "behaves")
        return await getattr(self, name)(handler)

    async def behaves(self, handler: Any) -> Any:
        return handler

    async def raises(self, handler: Any) -> Any:
        raise ValueError("the password is sesame")

    async def raises_after_a_wait(self, handler: Any) -> Any:
        await asyncio.sleep(0)
        raise ValueError("the password is sesame")

    async def exits(self, handler: Any) -> Any:
        sys.exit("an interceptor ends the process")

    async def exits_after_a_wait(self, handler: Any) -> Any:
        await asyncio.sleep(0)
        sys.exit("an interceptor ends the process")

    async def interrupts(self, handler: Any) -> Any:
        raise KeyboardInterrupt

    async def panics(self, handler: Any) -> Any:
        await asyncio.sleep(0)
        raise Panic

    async def raises_an_unprintable_error(self, handler: Any) -> Any:
        raise Unprintable

    async def leaks_a_cancellation(self, handler: Any) -> Any:
        raise asyncio.CancelledError

    async def chooses_a_number(self, handler: Any) -> Any:
        return 5

    async def chooses_another_shape(self, handler: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(handler.unary_unary)

    async def chooses_a_handler_without_a_function(self, handler: Any) -> Any:
        return _like(handler, None)

    async def chooses_a_handler_that_answers_none(self, handler: Any) -> Any:
        return _like(handler, lambda request, context: None)

    async def chooses_a_handler_that_exits(self, handler: Any) -> Any:
        return _like(handler, lambda request, context: sys.exit("a handler ends the process"))

    async def chooses_a_serializer_that_raises(self, handler: Any) -> Any:
        return _like(handler, handler.unary_unary, lambda _: 1 / 0)

    async def chooses_a_serializer_of_text(self, handler: Any) -> Any:
        return _like(handler, handler.unary_unary, str)

    async def chooses_nothing(self, handler: Any) -> Any:
        return None


def _like(handler: Any, function: Any, serializer: Any = None) -> Any:
    serializer = serializer or handler.response_serializer
    return grpc.unary_unary_rpc_method_handler(function, handler.request_deserializer, serializer)
