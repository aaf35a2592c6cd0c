"""Calls behind client interceptors end as grpc.aio's: each case runs on grpc.aio's channel and on ours, and ends alike.

What differs, and why, stands in docs/how-to/moving-from-grpcio.md; each difference has its test in test_interceptors.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest

from tests.bounds import BOUND_S
from tests.client.test_channel_like_grpcio import Held, ended
from tests.servers import ECHO, stock

METADATA = (("initial", "1"), ("trailing", "2"))
Opening = Callable[..., Any]
"""Opens a channel with these interceptors."""
Case = Callable[[Opening, Held], Awaitable[Any]]
CASES: dict[str, Case] = {}


def case(run: Case) -> Case:
    CASES[run.__name__] = run
    return run


# The server


async def send_metadata(context: Any) -> None:
    await context.send_initial_metadata(METADATA[:1])
    context.set_trailing_metadata(METADATA[1:])


async def tell(request: bytes, context: Any) -> bytes:
    await send_metadata(context)
    names = dict(context.invocation_metadata())
    return request + str(names.get("tag")).encode()


async def fail(request: bytes, context: Any) -> bytes:
    await send_metadata(context)
    await context.abort(grpc.StatusCode.NOT_FOUND, "not here", METADATA[1:])
    return b""


async def three(request: bytes, context: Any) -> AsyncIterator[bytes]:
    await send_metadata(context)
    for number in b"123":
        yield bytes((number,))


async def fail_second(request: bytes, context: Any) -> AsyncIterator[bytes]:
    await send_metadata(context)
    yield request
    await context.abort(grpc.StatusCode.NOT_FOUND, "not here", METADATA[1:])


async def join(requests: AsyncIterator[bytes], context: Any) -> bytes:
    await send_metadata(context)
    return b",".join([request async for request in requests])


async def chat(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    await send_metadata(context)
    async for request in requests:
        yield request


def handlers(held: Held) -> dict[str, Any]:
    async def hold_after_requests(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            pass
        yield b"read"
        await held.hold(b"", context)

    async def refuse(_: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")

    return ECHO | {
        "Tell": grpc.unary_unary_rpc_method_handler(tell),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Hold": grpc.unary_unary_rpc_method_handler(held.hold),
        "Three": grpc.unary_stream_rpc_method_handler(three),
        "FailSecond": grpc.unary_stream_rpc_method_handler(fail_second),
        "HoldStream": grpc.unary_stream_rpc_method_handler(held.hold_stream),
        "Join": grpc.stream_unary_rpc_method_handler(join),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "HoldAfter": grpc.stream_stream_rpc_method_handler(hold_after_requests),
        "Refuse": grpc.stream_stream_rpc_method_handler(refuse),
    }


# Interceptors, each made of a function


class UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, intercept: Any) -> None:
        self.intercept_unary_unary = intercept  # type: ignore[method-assign]

    async def intercept_unary_unary(self, *_: Any) -> Any: ...


class UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, intercept: Any) -> None:
        self.intercept_unary_stream = intercept  # type: ignore[method-assign]

    async def intercept_unary_stream(self, *_: Any) -> Any: ...


class StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    def __init__(self, intercept: Any) -> None:
        self.intercept_stream_unary = intercept  # type: ignore[method-assign]

    async def intercept_stream_unary(self, *_: Any) -> Any: ...


class StreamStream(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, intercept: Any) -> None:
        self.intercept_stream_stream = intercept  # type: ignore[method-assign]

    async def intercept_stream_stream(self, *_: Any) -> Any: ...


async def pass_on(continuation: Any, details: Any, request: Any) -> Any:
    return await continuation(details, request)


async def await_response(continuation: Any, details: Any, request: Any) -> Any:
    return await (await continuation(details, request))


async def await_call(continuation: Any, details: Any, request: Any) -> Any:
    call = await continuation(details, request)
    await call
    return call


async def relay(continuation: Any, details: Any, request: Any) -> Any:
    call = await continuation(details, request)

    async def responses() -> AsyncIterator[bytes]:
        async for response in call:
            yield b"<" + response

    return responses()


async def answer(continuation: Any, details: Any, request: Any) -> Any:
    return b"mine"


async def refuse_here(continuation: Any, details: Any, request: Any) -> Any:
    raise grpc.aio.AioRpcError(
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.aio.Metadata(("a", "b")),
        grpc.aio.Metadata(("c", "d")),
        details="mine",
        debug_error_string="why",
    )


async def cancelled_here(continuation: Any, details: Any, request: Any) -> Any:
    raise grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, details="mine")


async def break_down(continuation: Any, details: Any, request: Any) -> Any:
    raise ValueError("broken")


# What a caller sees of a call


def pairs(metadata: Any) -> Any:
    return metadata if metadata is None else tuple(pair for pair in metadata if not pair[0].startswith("onelane-"))


async def status(call: Any) -> Any:
    """All that a call says once it has ended."""
    asked = (call.code(), call.details(), call.initial_metadata(), call.trailing_metadata(), call.debug_error_string())
    code, details, initial, trailing, debug = await ended(*asked)
    metadata = [pairs(m) if isinstance(m, grpc.aio.Metadata) or m is None else m for m in (initial, trailing)]
    called: list[Any] = []
    call.add_done_callback(called.append)
    return {
        "code": code,
        "details": details,
        "metadata": metadata,
        "debug": bool(debug) if isinstance(debug, str) else debug,
        "done": (call.done(), call.cancelled(), call.cancel()),
        "connection": await ended(call.wait_for_connection()),
        "called": called == [call],
    }


async def messages(call: Any) -> Any:
    """What its iterator yields, with the error that ends it."""
    read: list[Any] = []

    async def read_all() -> None:
        async for message in call:
            read.append(message)  # noqa: PERF401 - they are kept where it ends with an error

    return read, await ended(read_all())


async def reads(call: Any, times: int) -> Any:
    return [(await ended(call.read()))[0] for _ in range(times)]


# The chain


@case
async def an_interceptor_sees_the_details_of_the_call(opened: Opening, held: Held) -> Any:
    seen: list[Any] = []

    async def look(continuation: Any, details: Any, request: Any) -> Any:
        seen.append((type(details), *details[:2], type(details.metadata), pairs(details.metadata), *details[3:]))
        return await continuation(details, request)

    tell = opened(UnaryUnary(look)).unary_unary("/t.T/Tell")
    calls = [tell(b"x", timeout=BOUND_S, metadata=(("tag", "t"),), wait_for_ready=True), tell(b"x")]
    return await ended(*calls), seen


@case
async def an_interceptor_changes_the_call(opened: Opening, held: Held) -> Any:
    async def change(continuation: Any, details: Any, request: Any) -> Any:
        metadata = grpc.aio.Metadata(*details.metadata)
        metadata["tag"] = "changed"
        tell: Any = b"/t.T/Tell"
        other = grpc.aio.ClientCallDetails(tell, 20, metadata, details.credentials, True)
        return await continuation(other, b"other ")

    call = opened(UnaryUnary(change)).unary_unary("/t.T/Nowhere")(b"x")
    return await call, await status(call)


@case
async def a_timeout_of_an_interceptor_counts(opened: Opening, held: Held) -> Any:
    async def shorten(continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(details._replace(timeout=0.05), request)

    call = opened(UnaryUnary(shorten)).unary_unary("/t.T/Hold")(b"x", timeout=BOUND_S)
    return await ended(call), await status(call)


@case
async def the_first_interceptor_is_the_outermost(opened: Opening, held: Held) -> Any:
    def adding(text: bytes) -> Any:
        async def add(continuation: Any, details: Any, request: Any) -> Any:
            response = await (await continuation(details, request + text))
            return response + text.upper()

        return add

    call = opened(UnaryUnary(adding(b"a")), UnaryUnary(adding(b"b"))).unary_unary("/t.T/Echo")(b"x")
    return await call, await status(call)


@case
async def an_interceptor_of_another_kind_is_passed_by(opened: Opening, held: Held) -> Any:
    channel = opened(UnaryStream(break_down), StreamUnary(break_down))
    return await channel.unary_unary("/t.T/Echo")(b"x"), await messages(
        channel.stream_stream("/t.T/Chat")(iter([b"x"]))
    )


@case
async def an_interceptor_asks_the_call_that_it_passes_on(opened: Opening, held: Held) -> Any:
    seen: list[Any] = []

    async def ask(continuation: Any, details: Any, request: Any) -> Any:
        call = await continuation(details, request)
        call.add_done_callback(lambda ended_call: seen.append(ended_call is call))
        seen.append(isinstance(call, grpc.aio.UnaryUnaryCall))
        seen.append(await status(call))
        return call

    call = opened(UnaryUnary(ask), UnaryUnary(pass_on)).unary_unary("/t.T/Tell")(b"x")
    return await call, await call, await status(call), seen, isinstance(call, grpc.aio.UnaryUnaryCall)


@case
async def an_interceptor_sends_a_failed_call_again(opened: Opening, held: Held) -> Any:
    async def again(continuation: Any, details: Any, request: Any) -> Any:
        call = await continuation(details, request)
        if await call.code() is grpc.StatusCode.NOT_FOUND:
            call = await continuation(details._replace(method=b"/t.T/Tell"), request)
        return call

    call = opened(UnaryUnary(again)).unary_unary("/t.T/Fail")(b"x")
    return await call, await status(call)


# Answers, and errors


def unary_case(name: str, *intercept: Any, method: str = "Tell") -> None:
    async def run(opened: Opening, held: Held) -> Any:
        call = opened(*map(UnaryUnary, intercept)).unary_unary(f"/t.T/{method}")(b"x")
        called: list[Any] = []
        call.add_done_callback(called.append)
        before = call.done(), call.cancelled()
        outcome = await ended(call, call), await status(call)
        return before, outcome, called == [call]

    CASES[name] = run


async def catch(continuation: Any, details: Any, request: Any) -> Any:
    try:
        return await (await continuation(details, request))
    except grpc.aio.AioRpcError as error:
        return str(error.code()).encode()


unary_case("a_call_is_passed_on", pass_on)
unary_case("a_response_takes_the_place_of_its_call", await_response)
unary_case("a_call_is_passed_on_once_it_has_ended", await_call)
unary_case("an_interceptor_answers_by_itself", answer)
unary_case("an_outer_interceptor_passes_an_answer_on", pass_on, answer)
unary_case("an_outer_interceptor_awaits_an_answer", await_call, answer)
unary_case("an_outer_interceptor_awaits_a_response", await_response, await_response)
unary_case("a_failed_call_is_passed_on", pass_on, method="Fail")
unary_case("the_error_of_a_call_passes_through", await_call, method="Fail")
unary_case("the_error_of_a_call_passes_through_two", await_response, await_call, method="Fail")
unary_case("an_error_is_answered", catch, method="Fail")
unary_case("an_inner_error_is_answered", catch, refuse_here)
unary_case("an_interceptor_refuses", refuse_here)
unary_case("an_inner_interceptor_refuses", pass_on, refuse_here)
unary_case("an_interceptor_says_cancelled", cancelled_here)
unary_case("an_interceptor_breaks", break_down)
unary_case("an_inner_interceptor_breaks", await_call, break_down)


# Cancelled


class Waiting:
    """Interceptors that stop before the RPC, or after it has ended."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()

    async def before(self, continuation: Any, details: Any, request: Any) -> Any:
        self.has_begun.set()
        await asyncio.Event().wait()

    async def after(self, continuation: Any, details: Any, request: Any) -> Any:
        call = await continuation(details, request)
        await call
        await self.before(continuation, details, request)

    async def answer_when_cancelled(self, continuation: Any, details: Any, request: Any) -> Any:
        try:
            await self.before(continuation, details, request)
        except asyncio.CancelledError:
            return b"still"


@case
async def a_call_is_cancelled_before_its_interceptors_run(opened: Opening, held: Held) -> Any:
    call = opened(UnaryUnary(pass_on)).unary_unary("/t.T/Echo")(b"x")
    return call.cancel(), await ended(call), await status(call)


@case
async def a_call_is_cancelled_before_its_rpc(opened: Opening, held: Held) -> Any:
    waiting = Waiting()
    call = opened(UnaryUnary(pass_on), UnaryUnary(waiting.before)).unary_unary("/t.T/Echo")(b"x")
    called: list[Any] = []
    call.add_done_callback(called.append)
    await waiting.has_begun.wait()
    cancels = call.cancel(), call.cancel()
    return cancels, call.done(), await ended(call, call), await status(call), called == [call]


@case
async def a_call_is_cancelled_after_its_rpc(opened: Opening, held: Held) -> Any:
    waiting = Waiting()
    call = opened(UnaryUnary(waiting.after)).unary_unary("/t.T/Echo")(b"x")
    await waiting.has_begun.wait()
    return call.cancel(), await ended(call), await status(call)


@case
async def a_cancellation_is_answered(opened: Opening, held: Held) -> Any:
    waiting = Waiting()
    call = opened(UnaryUnary(waiting.answer_when_cancelled)).unary_unary("/t.T/Echo")(b"x")
    await waiting.has_begun.wait()
    return call.cancel(), await ended(call), await status(call)


def cancelled_rpc_case(name: str, *intercept: Any) -> None:
    async def run(opened: Opening, held: Held) -> Any:
        call = opened(*map(UnaryUnary, intercept)).unary_unary("/t.T/Hold")(b"x")
        await held.has_begun.wait()
        return call.cancel(), await ended(call), await status(call)

    CASES[name] = run


cancelled_rpc_case("an_rpc_is_cancelled", pass_on)
cancelled_rpc_case("an_rpc_is_cancelled_that_an_interceptor_awaits", await_call)
cancelled_rpc_case("an_rpc_is_cancelled_that_an_inner_interceptor_awaits", pass_on, await_response)


@case
async def who_awaits_the_response_is_cancelled(opened: Opening, held: Held) -> Any:
    outcomes = []
    for intercept in (pass_on, await_call):
        call = opened(UnaryUnary(intercept)).unary_unary("/t.T/Hold")(b"x")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call, 0.05)
        outcomes.append((await ended(call), await status(call)))
    return outcomes


@case
async def a_call_is_cancelled_by_its_interceptor(opened: Opening, held: Held) -> Any:
    async def cancel(continuation: Any, details: Any, request: Any) -> Any:
        call = await continuation(details, request)
        call.cancel()
        return call

    call = opened(UnaryUnary(cancel)).unary_unary("/t.T/Hold")(b"x")
    return await ended(call), await status(call)


@case
async def an_interceptor_returns_a_call_again(opened: Opening, held: Held) -> Any:
    calls: list[Any] = []

    async def once(continuation: Any, details: Any, request: Any) -> Any:
        if not calls:
            calls.append(await continuation(details, request))
        return calls[0]

    tell = opened(UnaryUnary(once)).unary_unary("/t.T/Tell")
    first = tell(b"x")
    return await first, await tell(b"y"), await status(tell(b"z")), await status(first)


@case
async def an_interceptor_begins_two_rpcs(opened: Opening, held: Held) -> Any:
    async def begin_two(continuation: Any, details: Any, request: Any) -> Any:
        first = await continuation(details, b"first")
        second = await continuation(details._replace(method=b"/t.T/Fail"), request)
        return await second.code(), await first

    call = opened(UnaryUnary(begin_two)).unary_unary("/t.T/Echo")(b"x")
    return await call, await status(call)


# A channel that closes


@case
async def a_channel_that_closes_cancels_calls_that_are_not_passed_on_yet(opened: Opening, held: Held) -> Any:
    outcomes = []
    for grace in (None, 0.05):
        waiting = Waiting()
        channel = opened(UnaryUnary(waiting.before))
        call = channel.unary_unary("/t.T/Echo")(b"x")
        await waiting.has_begun.wait()
        await channel.close(grace)
        outcomes.append((await ended(call), await status(call)))
    return outcomes


@case
async def a_channel_that_closes_lets_interceptors_finish_that_begin_nothing_new(opened: Opening, held: Held) -> Any:
    async def wait_after(continuation: Any, details: Any, request: Any) -> Any:
        response = await (await continuation(details, request))
        await held.hold(request, None)
        return response

    async def wait_before(continuation: Any, details: Any, request: Any) -> Any:
        await held.hold(request, None)
        return await continuation(details, request)

    outcomes = []
    for intercept in (wait_after, wait_before):
        held.has_begun.clear()
        held.may_end.clear()
        channel = opened(UnaryUnary(intercept))
        call = channel.unary_unary("/t.T/Echo")(b"x")
        await held.has_begun.wait()
        closing = asyncio.ensure_future(channel.close(20))
        await asyncio.sleep(0)
        held.may_end.set()
        await closing
        outcomes.append((await ended(call), (await ended(call.code()))[0]))
    return outcomes


@case
async def a_closed_channel_makes_no_intercepted_call(opened: Opening, held: Held) -> Any:
    channel = opened(UnaryUnary(pass_on), UnaryStream(pass_on))
    echo, three = channel.unary_unary("/t.T/Echo"), channel.unary_stream("/t.T/Three")
    await channel.close()
    return await ended(echo(b"x"), three(b"x").read())


# Misuse


async def kinds_of_errors(*awaitables: Awaitable[Any]) -> list[str]:
    outcomes = []
    for awaitable in awaitables:
        try:
            outcomes.append(repr(await awaitable))
        except (asyncio.CancelledError, Exception) as error:
            outcomes.append(type(error).__name__)
    return outcomes


def misuse_case(name: str, intercept: Any) -> None:
    async def run(opened: Opening, held: Held) -> Any:
        call = opened(UnaryUnary(intercept)).unary_unary("/t.T/Echo")(b"x")
        stream = opened(UnaryStream(intercept)).unary_stream("/t.T/Three")(b"x")
        errors = await kinds_of_errors(
            call, call, call.code(), call.wait_for_connection(), stream.read(), stream.read()
        )
        return errors, call.done(), call.cancelled(), call.cancel()

    CASES[name] = run


def plain(continuation: Any, details: Any, request: Any) -> Any:
    return b"no coroutine"


async def continue_without_details(continuation: Any, details: Any, request: Any) -> Any:
    return await continuation(None, request)


async def continue_without_a_request(continuation: Any, details: Any, request: Any) -> Any:
    return await continuation(details)


async def return_a_number(continuation: Any, details: Any, request: Any) -> Any:
    await continuation(details, request)
    return 5


misuse_case("an_interceptor_is_a_plain_function", plain)
misuse_case("an_interceptor_continues_without_details", continue_without_details)
misuse_case("an_interceptor_continues_without_a_request", continue_without_a_request)
misuse_case("an_interceptor_returns_a_number", return_a_number)


# Streams of responses


def stream_case(name: str, *intercept: Any, method: str = "Three") -> None:
    async def run(opened: Opening, held: Held) -> Any:
        responses = opened(*map(UnaryStream, intercept)).unary_stream(f"/t.T/{method}")
        read, iterated, mixed = responses(b"x"), responses(b"x"), responses(b"x")
        called: list[Any] = []
        iterated.add_done_callback(called.append)
        return {
            "kind": isinstance(iterated, grpc.aio.UnaryStreamCall),
            "iterated": (await messages(iterated), await messages(iterated), await status(iterated)),
            "called": called == [iterated],
            "read": (await reads(read, 5), await status(read)),
            "mixed": (await reads(mixed, 1), await messages(mixed), await reads(mixed, 1), await status(mixed)),
        }

    CASES[name] = run


class Upper:
    """An iterator without the methods of a generator."""

    def __init__(self, call: Any) -> None:
        self.iterator = aiter(call)

    def __aiter__(self) -> "Upper":
        return self

    async def __anext__(self) -> bytes:
        return b"U" + bytes(await anext(self.iterator))


class UpperIterable:
    """It has no `__anext__`."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for response in self.call:
            yield b"I" + response


async def iterate_otherwise(continuation: Any, details: Any, request: Any) -> Any:
    return Upper(await continuation(details, request))


async def iterable_otherwise(continuation: Any, details: Any, request: Any) -> Any:
    return UpperIterable(await continuation(details, request))


async def break_later(continuation: Any, details: Any, request: Any) -> Any:
    call = await continuation(details, request)

    async def responses() -> AsyncIterator[bytes]:
        async for response in call:
            yield response
            call.cancel()
            raise ValueError("broken")

    return responses()


async def read_ahead(continuation: Any, details: Any, request: Any) -> Any:
    call = await continuation(details, request)
    return relayed([response async for response in call])


async def relayed(responses: Sequence[bytes]) -> AsyncIterator[bytes]:
    for response in responses:
        yield response


async def ask_metadata(continuation: Any, details: Any, request: Any) -> Any:
    call = await continuation(details, request)
    assert ("initial", "1") in tuple(await call.initial_metadata())
    return call


async def use_other_stream(continuation: Any, details: Any, request: Any) -> Any:
    await continuation(details._replace(method=b"/t.T/FailSecond"), request)
    return await continuation(details, request)


stream_case("a_stream_is_passed_on", pass_on)
stream_case("a_stream_is_relayed", relay)
stream_case("a_stream_is_relayed_twice", relay, relay)
stream_case("a_relayed_stream_is_passed_on", pass_on, relay, pass_on)
stream_case("a_stream_comes_from_an_iterator", iterate_otherwise)
stream_case("a_stream_comes_from_an_iterable", iterable_otherwise)
stream_case("a_stream_is_read_ahead", read_ahead)
stream_case("a_stream_is_asked_for_metadata", ask_metadata)
stream_case("the_last_stream_counts", use_other_stream)
stream_case("a_relay_breaks", break_later, method="HoldStream")
stream_case("a_failed_stream_is_passed_on", pass_on, method="FailSecond")
stream_case("a_failed_stream_is_relayed", relay, method="FailSecond")
stream_case("the_error_of_a_stream_passes_through", read_ahead, method="FailSecond")
stream_case("an_interceptor_refuses_a_stream", refuse_here)
stream_case("an_inner_interceptor_refuses_a_stream", relay, refuse_here)
stream_case("an_interceptor_of_a_stream_breaks", break_down)


@case
async def a_stream_goes_on_where_its_reader_stopped(opened: Opening, held: Held) -> Any:
    outcomes = []
    for intercept in (pass_on, relay):
        call = opened(UnaryStream(intercept)).unary_stream("/t.T/Three")(b"x")
        first = await anext(aiter(call))
        outcomes.append((first, await call.read(), await messages(call), await status(call)))
    return outcomes


def cancelled_stream_case(name: str, *intercept: Any) -> None:
    async def run(opened: Opening, held: Held) -> Any:
        outcomes = []
        for is_reader_cancelled in (False, True):
            held.has_begun.clear()
            call = opened(*map(UnaryStream, intercept)).unary_stream("/t.T/HoldStream")(b"x")
            first = await call.read()
            reader = asyncio.ensure_future(call.read())
            await held.has_begun.wait()
            await asyncio.sleep(0)
            cancelled = reader.cancel() if is_reader_cancelled else call.cancel()
            outcomes.append((first, cancelled, await ended(reader), await reads(call, 1), await status(call)))
        return outcomes

    CASES[name] = run


cancelled_stream_case("a_stream_is_cancelled", pass_on)
cancelled_stream_case("a_relayed_stream_is_cancelled", relay)
cancelled_stream_case("a_stream_is_cancelled_that_two_relay", relay, relay)


@case
async def a_stream_is_cancelled_before_its_rpc(opened: Opening, held: Held) -> Any:
    waiting = Waiting()
    call = opened(UnaryStream(waiting.before)).unary_stream("/t.T/Three")(b"x")
    reader = asyncio.ensure_future(call.read())
    await waiting.has_begun.wait()
    return call.cancel(), await ended(reader), await reads(call, 2), await messages(call), await status(call)


# Streams of requests


async def mark_requests(continuation: Any, details: Any, requests: Any) -> Any:
    async def marked() -> AsyncIterator[bytes]:
        async for request in requests:
            yield b">" + request

    return await continuation(details, marked())


async def relayed_both_ways(continuation: Any, details: Any, requests: Any) -> Any:
    async def mark(details: Any, requests: Any) -> Any:
        return await mark_requests(continuation, details, requests)

    return await relay(mark, details, requests)


def written_case(name: str, *intercept: Any) -> None:
    async def run(opened: Opening, held: Held) -> Any:
        join = opened(*map(StreamUnary, intercept)).stream_unary("/t.T/Join")
        chat = opened(*map(StreamStream, intercept)).stream_stream("/t.T/Chat")
        uploads = join(relayed([b"a", b"b"])), join(relayed([]))
        outcomes: list[Any] = [await ended(*uploads), [await status(call) for call in uploads]]
        outcomes.append(await ended(uploads[0].write(b"x"), uploads[0].done_writing()))
        upload = join()
        outcomes.append(
            await ended(upload.write(b"a"), upload.write(b"b"), upload.done_writing(), upload.done_writing())
        )
        outcomes.append((await ended(upload, upload.write(b"c"), upload.done_writing()), await status(upload)))
        talk = chat()
        outcomes.append(await ended(talk.write(b"a"), talk.read(), talk.write(b"b"), talk.read(), talk.done_writing()))
        outcomes.append((await messages(talk), await ended(talk.write(b"c"), talk.done_writing()), await status(talk)))
        outcomes.append([await messages(chat(relayed([b"a", b"b"]))), isinstance(talk, grpc.aio.StreamStreamCall)])
        return outcomes

    CASES[name] = run


written_case("requests_are_passed_on", pass_on)
written_case("requests_are_marked", mark_requests)
written_case("requests_are_marked_twice", mark_requests, mark_requests)


@case
async def requests_and_responses_are_relayed(opened: Opening, held: Held) -> Any:
    chat = opened(StreamStream(relayed_both_ways)).stream_stream("/t.T/Chat")
    call = chat()
    talk = await ended(call.write(b"a"), call.read(), call.write(b"b"), call.read(), call.done_writing())
    return talk, await messages(call), await status(call), await messages(chat(relayed([b"a"])))


@case
async def nothing_is_written_once_half_closed(opened: Opening, held: Held) -> Any:
    outcomes = []
    for intercept in (pass_on, relay):
        call = opened(StreamStream(intercept)).stream_stream("/t.T/HoldAfter")()
        written = await ended(call.write(b"a"), call.done_writing(), call.read())
        outcomes.append(
            (written, await ended(call.write(b"b"), call.done_writing()), call.cancel(), await status(call))
        )
    return outcomes


@case
async def nothing_is_written_after_the_end(opened: Opening, held: Held) -> Any:
    outcomes = []
    for intercept in (pass_on, relay, mark_requests):
        call = opened(StreamStream(intercept)).stream_stream("/t.T/Refuse")()
        code = await call.code()
        outcomes.append((code, await ended(call.write(b"a"), call.done_writing(), call.read()), await status(call)))
    return outcomes


@case
async def a_writer_ends_with_its_call(opened: Opening, held: Held) -> Any:
    async def write_on(call: Any) -> None:
        while True:
            await call.write(b"x")

    call = opened(StreamStream(pass_on)).stream_stream("/t.T/Refuse")()
    return await ended(write_on(call))


def failed_requests_case(name: str, intercept: Any) -> None:
    async def run(opened: Opening, held: Held) -> Any:
        upload = opened(StreamUnary(intercept)).stream_unary("/t.T/Join")()
        talk = opened(StreamStream(intercept)).stream_stream("/t.T/Chat")()
        return [
            (await ended(call.write(b"a"), call.done_writing(), call.write(b"b")), await status(call))
            for call in (upload, talk)
        ]

    CASES[name] = run


failed_requests_case("an_interceptor_refuses_what_is_written", refuse_here)
failed_requests_case("an_interceptor_breaks_before_it_reads", break_down)


@case
async def a_written_call_is_cancelled(opened: Opening, held: Held) -> Any:
    outcomes = []
    for intercept in (pass_on, relay, mark_requests):
        call = opened(StreamStream(intercept)).stream_stream("/t.T/Chat")()
        written = await ended(call.write(b"a"), call.read())
        cancelled = call.cancel()
        outcomes.append((written, cancelled, await ended(call.write(b"x"), call.done_writing()), await status(call)))
    return outcomes


@case
async def a_written_call_is_cancelled_before_its_rpc(opened: Opening, held: Held) -> Any:
    waiting = Waiting()
    call = opened(StreamStream(waiting.before)).stream_stream("/t.T/Chat")()
    writer = asyncio.ensure_future(call.write(b"a"))
    await waiting.has_begun.wait()
    cancelled = call.cancel()
    return cancelled, await ended(writer, call.write(b"x"), call.done_writing()), await status(call)


# Running them


@asynccontextmanager
async def tasks_ended() -> AsyncIterator[None]:
    """End all tasks that began meanwhile. grpcio drops the one that reads the requests of a call that is cancelled:
    where the garbage collector comes first, it closes a generator that runs, and the test of that moment fails."""
    loop = asyncio.get_running_loop()
    before, tasks = loop.get_task_factory(), []

    def keep(loop: asyncio.AbstractEventLoop, coro: Any, **named: Any) -> "asyncio.Task[Any]":
        tasks.append(asyncio.Task(coro, loop=loop, **named))
        return tasks[-1]

    loop.set_task_factory(keep)
    try:
        yield
    finally:
        loop.set_task_factory(before)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run(open_channel: Any, name: str) -> Any:
    held = Held()
    channels = []

    async with tasks_ended(), stock(**handlers(held)) as (address, _):

        def opened(*interceptors: Any) -> Any:
            channels.append(open_channel(address, interceptors=interceptors))
            return channels[-1]

        try:
            return await asyncio.wait_for(CASES[name](opened, held), BOUND_S)
        finally:
            held.may_end.set()
            for channel in channels:
                await channel.close()


@pytest.mark.parametrize("name", CASES)
async def test_it_ends_as_with_grpcio(name: str) -> None:
    expected = await run(grpc.aio.insecure_channel, name)
    assert await run(onelane.dial, name) == expected
    assert await run(onelane.connect, name) == expected
