"""Server interceptors act as on grpc.aio's server: each case runs there, and on a lane behind both listeners.

What differs, and why, stands in docs/how-to/moving-from-grpcio.md; each difference has its test in test_interceptors.
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest

from tests.bounds import BOUND_S
from tests.servers import lane_behind, stock

VARIABLE = contextvars.ContextVar[str]("VARIABLE", default="unset")
Intercept = Callable[[Any, Any], Any]
"""Of the handler that the chain has chosen so far, and the details of the call: the handler to choose."""


class Interceptor(grpc.aio.ServerInterceptor):
    """Made of a function."""

    def __init__(self, intercept: Intercept) -> None:
        self.intercept = intercept

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        return self.intercept(await continuation(handler_call_details), handler_call_details)


# The service


async def echo(request: bytes, context: Any) -> bytes:
    return request


async def down(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for text in (b"a:", b"b:"):
        yield text + request


async def up(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b",".join([request async for request in requests])


async def chat(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


SERVICE: dict[str, Any] = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Down": grpc.unary_stream_rpc_method_handler(down),
    "Up": grpc.stream_unary_rpc_method_handler(up),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
}


# Handlers that interceptors choose


async def deny(_: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no", (("why", "because"),))


async def greet(request: bytes, context: Any) -> bytes:
    context.set_trailing_metadata((("variable", VARIABLE.get()),))
    return b"hello " + request


def greet_plainly(request: bytes, context: Any) -> bytes:
    return b"hello " + request


async def set_code(_: Any, context: Any) -> bytes:
    context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
    context.set_details("later")
    return b""


def deny_plainly(_: Any, context: Any) -> None:
    context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")


async def answer_once(request: Any, context: Any) -> AsyncIterator[bytes]:
    yield b"hello " + request


def answer_once_plainly(request: Any, context: Any) -> Iterator[bytes]:
    yield b"hello " + request


async def write_once(request: Any, context: Any) -> None:
    await context.write(b"hello " + request)


async def count(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return str(len([request async for request in requests])).encode()


def count_plainly(requests: Iterator[bytes], context: Any) -> bytes:
    return str(len(list(requests))).encode()


async def answer_each(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield b"hello " + request


def answer_each_plainly(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    for request in requests:
        yield b"hello " + request


def choosing(handler: Any) -> list[Interceptor]:
    return [Interceptor(lambda chosen, details: handler)]


def like(handler: Any, function: Any) -> Any:
    """`function` as a handler of the kind of `handler`."""
    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make: Any = makers[handler.request_streaming, handler.response_streaming]
    return make(function, handler.request_deserializer, handler.response_serializer)


def set_variable(chosen: Any, details: Any) -> Any:
    VARIABLE.set(f"{VARIABLE.get()}, set")
    return chosen


def deny_by_metadata(chosen: Any, details: Any) -> Any:
    metadata = details.invocation_metadata
    assert all((pair.key, pair.value) == pair for pair in metadata)
    if ("token", "sesame") in metadata:
        return chosen
    return like(chosen, deny)


ONE: Any = grpc.unary_unary_rpc_method_handler
STREAMS: Any = (b"1",), (b"1", b"2")
SINGLE = {"Echo": (b"1",), "Down": (b"1",)}
ALL = SINGLE | {"Up": STREAMS, "Chat": STREAMS}
ONE_EACH = SINGLE | {"Up": STREAMS[:1], "Chat": STREAMS[:1]}
"""grpc.aio sends no status where a handler answers several times and the client expects one message."""
CHAINS: dict[str, tuple[Sequence[grpc.aio.ServerInterceptor], dict[str, Any]]] = {
    "nothing is changed": ([Interceptor(lambda chosen, details: chosen)], ALL),
    "nothing is chosen": (choosing(None), ALL),
    "the metadata decide": ([Interceptor(deny_by_metadata)], ALL),
    "variables reach inner interceptors and the handler": (
        [Interceptor(set_variable), *choosing(ONE(greet)), Interceptor(set_variable)],
        ALL,
    ),
    "a unary handler denies": (choosing(ONE(deny)), ALL),
    "a unary handler sets a code": (choosing(ONE(set_code)), {"Echo": (b"1",), "Up": STREAMS}),
    "a unary handler answers": (choosing(ONE(greet)), ALL),
    "a plain unary handler denies": (choosing(ONE(deny_plainly)), ALL),
    "a plain unary handler answers": (choosing(ONE(greet_plainly)), ALL),
    "a stream answers once": (choosing(grpc.unary_stream_rpc_method_handler(answer_once)), ALL),
    "a plain stream answers once": (choosing(grpc.unary_stream_rpc_method_handler(answer_once_plainly)), ALL),
    "a stream is written": (
        choosing(grpc.unary_stream_rpc_method_handler(write_once)),
        {"Down": (b"1",), "Chat": STREAMS},
    ),
    "a stream is counted": (choosing(grpc.stream_unary_rpc_method_handler(count)), ALL),
    "a stream is counted plainly": (choosing(grpc.stream_unary_rpc_method_handler(count_plainly)), ALL),
    "each is answered": (choosing(grpc.stream_stream_rpc_method_handler(answer_each)), ONE_EACH | {"Chat": STREAMS}),
    "each is answered plainly": (
        choosing(grpc.stream_stream_rpc_method_handler(answer_each_plainly)),
        ONE_EACH | {"Chat": STREAMS},
    ),
    "an interceptor has its own parser": (choosing(ONE(greet, lambda raw: raw + b"!", lambda text: text + b"?")), ALL),
}
KINDS = {"Echo": "unary_unary", "Down": "unary_stream", "Up": "stream_unary", "Chat": "stream_stream"}


async def outcome(channel: Any, method: str, requests: Any, metadata: Any) -> Any:
    send = getattr(channel, KINDS[method])(f"/t.T/{method}")
    call = send(iter(requests) if isinstance(requests, tuple) else requests, timeout=BOUND_S, metadata=metadata)
    answers: list[Any] = []
    try:
        if hasattr(call, "__aiter__"):
            async for answer in call:
                answers.append(answer)  # noqa: PERF401 - they are kept where it ends with an error
        else:
            answers.append(await call)
    except grpc.aio.AioRpcError:
        pass
    trailers = tuple(pair for pair in await call.trailing_metadata() if not pair[0].startswith("onelane"))
    return method, requests, metadata, answers, await call.code(), await call.details(), trailers


async def outcomes(server: AbstractAsyncContextManager[Any], calls: dict[str, Any]) -> Any:
    async with server as served:
        address = served if isinstance(served, str) else served[0]
        # grpcio's own fails a call with "Internal error from Core" where it writes on while the call ends.
        async with onelane.dial(address) as channel:
            return await asyncio.gather(
                *(
                    outcome(channel, method, requests, metadata)
                    for method, bodies in calls.items()
                    for requests in (bodies if method in ("Up", "Chat") else [bodies[0]])
                    for metadata in ((), (("token", "sesame"), ("packed-bin", b"\x00")))
                )
            )


@pytest.mark.parametrize("listener", ["native", "grpcio"])
@pytest.mark.parametrize("name", CHAINS)
async def test_a_call_behind_interceptors_ends_as_with_grpcio(listener: str, name: str) -> None:
    chain, calls = CHAINS[name]
    expected = await outcomes(stock(chain=chain, **SERVICE), calls)
    assert await outcomes(lane_behind(listener, chain, **SERVICE), calls) == expected
