"""Handlers that tell what they see of their context, each for a server of grpcio's that it is compared with."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.bounds import BOUND_S

FIRST, SECOND, LAST, OTHER = (("x-first", "1"),), (("x-first", "2"),), (("x-last", "1"),), (("x-last", "2"),)
NOT_FOUND, ABORTED = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ABORTED
GZIP = grpc.Compression.Gzip
STOCK_CLASSES = (grpc.aio.AbortError, grpc.aio.UsageError, ValueError, RuntimeError, TypeError)


@dataclass(frozen=True)
class Case:
    """One handler. reference: the server of grpcio that it is compared with."""

    handler: Any
    requests: bool
    responses: bool
    reference: str


CASES: dict[str, Case] = {}
seen: defaultdict[str, list[Any]] = defaultdict(list)
"""For each case, what its handler has seen, in order."""
something_seen = threading.Condition()


def case(*, requests: bool = False, responses: bool = False, reference: str = "grpc.aio") -> Callable[[Any], Any]:
    def register(handler: Any) -> Any:
        CASES[handler.__name__] = Case(handler, requests, responses, reference)
        return handler

    return register


plain = case(reference="grpc")
"""A plain `def` of one message and one answer, compared with grpcio's server that runs it in a thread."""


def see(context: Any, value: Any) -> None:
    # By a name in its metadata: a handler may go on when its client has the end already.
    name = next(value for name, value in context.invocation_metadata() if name == "x-case")
    with something_seen:
        seen[name].append(value)
        something_seen.notify_all()


async def raised(awaitable: Awaitable[Any]) -> Any:
    """What an awaitable gives, or the class of grpcio's that its error is of."""
    try:
        return await asyncio.wait_for(awaitable, BOUND_S)
    except Exception as error:
        return kind_of(error)


def raised_at_once(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:
        return kind_of(error)


def kind_of(error: Exception) -> str:
    return next((cls.__name__ for cls in STOCK_CLASSES if isinstance(error, cls)), "Exception")


# What a handler sees before it has done anything


@case()
async def a_new_call(request: bytes, context: Any) -> bytes:
    see(context, (context.code(), context.details(), context.trailing_metadata()))
    see(context, (context.cancelled(), context.done(), 0 < context.time_remaining() < 6))
    return request


@case()
async def the_client(request: bytes, context: Any) -> bytes:
    pairs = context.invocation_metadata()
    see(context, (type(pairs), [(pair.key, pair.value) for pair in pairs], [tuple(pair) for pair in pairs]))
    see(context, (context.auth_context(), context.peer_identities(), context.peer_identity_key()))
    see(context, context.peer().rpartition(":")[0])
    return request


@plain
def the_client_of_a_plain_handler(request: bytes, context: Any) -> bytes:
    see(context, (context.code(), context.is_active(), 0 < context.time_remaining() < 6))
    pairs = context.invocation_metadata()
    see(context, (type(pairs), [(pair.key, pair.value) for pair in pairs]))
    see(context, (context.auth_context(), context.peer_identities(), context.peer_identity_key()))
    return request


# Messages


@case()
async def reading_where_there_is_one_request(request: bytes, context: Any) -> bytes:
    see(context, [await raised(context.read()), await raised(context.read())])
    return request


@case(responses=True)
async def reading_in_a_download(request: bytes, context: Any) -> None:
    see(context, await raised(context.read()))
    await context.write(request)


@case(requests=True)
async def reading_past_the_end(requests: AsyncIterator[bytes], context: Any) -> bytes:
    see(context, [await raised(context.read()) for _ in range(4)])
    return b"read"


@case(requests=True, responses=True)
async def reading_and_writing(requests: AsyncIterator[bytes], context: Any) -> None:
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(request)


# Initial metadata, compression


@case()
async def initial_metadata_twice(request: bytes, context: Any) -> bytes:
    see(context, [await raised(context.send_initial_metadata(pairs)) for pairs in (FIRST, SECOND)])
    return request


@case(responses=True)
async def initial_metadata_after_a_message(request: bytes, context: Any) -> None:
    await context.write(request)
    see(context, await raised(context.send_initial_metadata(FIRST)))


@case(responses=True)
async def initial_metadata_after_a_yield(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield request
    see(context, await raised(context.send_initial_metadata(FIRST)))


@case()
async def initial_metadata_after_an_abort(request: bytes, context: Any) -> bytes:
    see(context, [await raised(context.abort(NOT_FOUND)), await raised(context.send_initial_metadata(FIRST))])
    return request


@case()
async def no_initial_metadata(request: bytes, context: Any) -> bytes:
    see(context, await raised(context.send_initial_metadata(())))
    return request


@case()
async def metadata_objects(request: bytes, context: Any) -> bytes:
    await context.send_initial_metadata(grpc.aio.Metadata(*FIRST, *SECOND))
    context.set_trailing_metadata(grpc.aio.Metadata(*LAST))
    see(context, context.trailing_metadata())
    return request


@case()
async def compression_after_initial_metadata(request: bytes, context: Any) -> bytes:
    await context.send_initial_metadata(FIRST)
    see(context, raised_at_once(context.set_compression, GZIP))
    return request


@case(responses=True)
async def compression_after_a_message(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield request
    see(context, raised_at_once(context.set_compression, GZIP))


@case(reference="grpc.aio")
def compression_after_initial_metadata_of_a_plain_handler(request: bytes, context: Any) -> bytes:
    context.send_initial_metadata(FIRST)
    see(context, raised_at_once(context.set_compression, GZIP))
    return request


@case(reference="grpc.aio")
def initial_metadata_of_a_plain_handler_twice(request: bytes, context: Any) -> bytes:
    see(context, [raised_at_once(context.send_initial_metadata, pairs) for pairs in (FIRST, SECOND)])
    return request


@plain
def initial_metadata_of_a_plain_handler_twice_are_a_value_error(request: bytes, context: Any) -> bytes:
    context.send_initial_metadata(FIRST)
    with pytest.raises(ValueError, match=r"[Ii]nitial metadata"):
        context.send_initial_metadata(SECOND)
    return request


# Statuses; the first abort is what the client sees


@case()
async def a_status(request: bytes, context: Any) -> bytes:
    context.set_code(ABORTED)
    context.set_details("because")
    context.set_trailing_metadata(LAST)
    see(context, (context.code(), context.details(), context.trailing_metadata()))
    return request


@case(responses=True)
async def a_status_in_a_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield request
    context.set_code(ABORTED)
    yield request


@case()
async def details_of_ok(request: bytes, context: Any) -> bytes:
    context.set_code(grpc.StatusCode.OK)
    context.set_details("fine")
    see(context, (context.code(), context.details()))
    return request


@case()
async def an_abort_within_an_abort(request: bytes, context: Any) -> bytes:
    try:
        await context.abort(NOT_FOUND, "first", LAST)
    except Exception:
        await context.abort(ABORTED, "second", OTHER)
    return request


@case()
async def a_second_abort(request: bytes, context: Any) -> bytes:
    see(context, [await raised(context.abort(code, "text", LAST)) for code in (NOT_FOUND, ABORTED)])
    return request


@case()
async def an_abort_that_is_caught(request: bytes, context: Any) -> bytes:
    await raised(context.abort(NOT_FOUND, "first", LAST))
    see(context, (context.code(), context.details(), context.trailing_metadata(), context.done(), context.cancelled()))
    return request


@case()
async def a_status_after_an_abort(request: bytes, context: Any) -> bytes:
    await raised(context.abort(NOT_FOUND, "first", LAST))
    context.set_code(grpc.StatusCode.OK)
    context.set_details("second")
    context.set_trailing_metadata(OTHER)
    return request


@case()
async def another_error_after_an_abort(request: bytes, context: Any) -> bytes:
    await raised(context.abort(NOT_FOUND, "first"))
    raise ValueError("second")


@case()
async def a_failed_call_after_an_abort(request: bytes, context: Any) -> bytes:
    await raised(context.abort(NOT_FOUND, "first"))
    raise grpc.aio.AioRpcError(ABORTED, grpc.aio.Metadata(), grpc.aio.Metadata(), "second")


@case()
async def an_abort_after_a_status(request: bytes, context: Any) -> bytes:
    context.set_code(ABORTED)
    context.set_details("kept where abort() has none")
    context.set_trailing_metadata(LAST)
    await context.abort(NOT_FOUND)
    return request


@case()
async def an_abort_with_all_after_a_status(request: bytes, context: Any) -> bytes:
    context.set_details("replaced")
    context.set_trailing_metadata(LAST)
    await context.abort(NOT_FOUND, "new", OTHER)
    return request


@case(responses=True)
async def writing_after_an_abort(request: bytes, context: Any) -> None:
    await context.write(request)
    see(context, [await raised(context.abort(NOT_FOUND)), await raised(context.write(b"late"))])


@case(responses=True)
async def yielding_after_an_abort(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield request
    await raised(context.abort(NOT_FOUND, "first"))
    yield b"late"


@case(reference="grpc.aio")
def a_second_abort_of_a_plain_handler(request: bytes, context: Any) -> bytes:
    see(context, [raised_at_once(context.abort, code, "text", LAST) for code in (NOT_FOUND, ABORTED)])
    context.set_code(grpc.StatusCode.OK)
    return request


@plain
def a_status_of_a_plain_handler(request: bytes, context: Any) -> bytes:
    context.set_code(ABORTED)
    context.set_details("because")
    context.set_trailing_metadata(LAST)
    see(context, (context.code(), context.trailing_metadata()))
    return request


# The end of a call


@case()
async def a_done_callback(request: bytes, context: Any) -> bytes:
    context.add_done_callback(
        lambda argument: see(context, (argument is context, argument.done(), argument.cancelled()))
    )
    return request


@case()
async def a_done_callback_of_an_abort(request: bytes, context: Any) -> bytes:
    context.add_done_callback(lambda argument: see(context, (argument is context, argument.done(), argument.code())))
    await context.abort(NOT_FOUND)
    return request


@plain
def a_callback_of_a_plain_handler(request: bytes, context: Any) -> bytes:
    see(context, context.add_callback(lambda: see(context, "called")))
    return request


@plain
def a_plain_handler_that_cancels(request: bytes, context: Any) -> bytes:
    see(context, (context.is_active(), context.cancel(), context.cancel()))
    return request


@case(responses=True, reference="grpc")
def a_plain_stream_that_cancels(request: bytes, context: Any) -> Iterator[bytes]:
    yield request
    see(context, (context.is_active(), context.cancel(), context.cancel()))
    yield b"late"


async def until_seen(name: str) -> None:
    """Wait for a handler that has yet to see something though its client has the end: a plain one of grpcio's runs on
    in its thread."""
    if "see" in CASES[name].handler.__code__.co_names and not seen[name]:
        await asyncio.to_thread(wait_seen, name)


def wait_seen(name: str) -> None:
    with something_seen:
        assert something_seen.wait_for(lambda: seen[name], BOUND_S), f"the handler of {name} has seen nothing"
