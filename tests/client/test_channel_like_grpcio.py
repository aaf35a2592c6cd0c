"""A channel behaves as grpc.aio's own: each case runs on grpc.aio's and on ours, and ends alike.

What differs, and why, stands in docs/how-to/moving-from-grpcio.md; each difference has its test elsewhere.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from fractions import Fraction
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest

from tests.bounds import BOUND_S
from tests.ports import reserved
from tests.servers import ECHO, native_at, stock

SHUTDOWN, IDLE = grpc.ChannelConnectivity.SHUTDOWN, grpc.ChannelConnectivity.IDLE


class Held:
    """Handlers that wait until the test lets them go on."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()
        self.may_end = asyncio.Event()

    async def hold(self, request: bytes, context: Any) -> bytes:
        self.has_begun.set()
        await self.may_end.wait()
        return request

    async def hold_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield request
        await self.hold(request, context)
        yield request


async def three(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for _ in range(3):
        yield request


async def fail(request: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.NOT_FOUND, "not here")
    return b""


def handlers(held: Held) -> dict[str, Any]:
    return ECHO | {
        "Hold": grpc.unary_unary_rpc_method_handler(held.hold),
        "HoldStream": grpc.unary_stream_rpc_method_handler(held.hold_stream),
        "Three": grpc.unary_stream_rpc_method_handler(three),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    }


Case = Callable[[Any, Held], Awaitable[Any]]
CASES: dict[str, Case] = {}


def case(run: Case) -> Case:
    CASES[run.__name__] = run
    return run


async def ended(*awaitables: Awaitable[Any]) -> list[Any]:
    """The result or the error of each, one after another."""
    results: list[Any] = []
    for awaitable in awaitables:
        try:
            results.append(await awaitable)
        except grpc.aio.AioRpcError as error:
            results.append((error.code(), error.details()))
        except (asyncio.CancelledError, Exception) as error:
            results.append(described(error))
    return results


def described(error: BaseException) -> tuple[str, str]:
    return type(error).__name__, str(error)


def unary(channel: Any, name: str = "Echo") -> Any:
    return channel.unary_unary(f"/t.T/{name}")


# Who is cancelled


@case
async def a_cancelled_waiter_for_the_code_takes_nobody_with_it(channel: Any, held: Held) -> Any:
    call = unary(channel, "Hold")(b"x")
    first, second = asyncio.ensure_future(call.code()), asyncio.ensure_future(call.code())
    await held.has_begun.wait()
    first.cancel()
    await asyncio.sleep(0)
    held.may_end.set()
    return await ended(second, call), first.cancelled()


@case
async def a_cancelled_waiter_for_the_answer_cancels_the_call(channel: Any, held: Held) -> Any:
    call = unary(channel, "Hold")(b"x")

    async def answer() -> bytes:
        return bytes(await call)

    first, code, second = (asyncio.ensure_future(each) for each in (answer(), call.code(), answer()))
    await held.has_begun.wait()
    first.cancel()
    return [name for name, _ in await ended(first, second)], await code, call.cancelled(), await call.details()


@case
async def a_cancelled_call_says_so_everywhere(channel: Any, held: Held) -> Any:
    call = unary(channel, "Hold")(b"x")
    await held.has_begun.wait()
    cancels = [call.cancel(), call.cancel()]
    metadata = [tuple(await call.initial_metadata()), tuple(await call.trailing_metadata())]
    return cancels, call.cancelled(), call.done(), await call.code(), await call.details(), metadata


# A channel that closes


@case
async def a_closed_channel_is_shut_down(channel: Any, held: Held) -> Any:
    watching = asyncio.ensure_future(channel.wait_for_state_change(IDLE))
    await asyncio.sleep(0)
    await channel.close()
    await channel.close(1)
    await watching
    waits = (channel.wait_for_state_change(state) for state in (SHUTDOWN, IDLE))
    return channel.get_state(), channel.get_state(True), await ended(*waits, channel.channel_ready())


@case
async def a_closed_channel_makes_no_call(channel: Any, held: Held) -> Any:
    methods = [
        unary(channel),
        channel.unary_stream("/t.T/Three"),
        channel.stream_unary("/t.T/Echo"),
        channel.stream_stream("/t.T/Chat"),
    ]
    await channel.close()
    errors = []
    for method in (*methods, unary(channel)):
        with pytest.raises(grpc.aio.UsageError) as error:
            method(b"x")
        errors.append(described(error.value))
    return errors


@case
async def a_channel_that_closes_waits_for_its_calls_and_takes_no_new_one(channel: Any, held: Held) -> Any:
    calls = [unary(channel, "Hold")(b"x"), channel.unary_stream("/t.T/HoldStream")(b"y")]
    await held.has_begun.wait()
    closing = asyncio.ensure_future(channel.close(20))
    await asyncio.sleep(0)
    with pytest.raises(grpc.aio.UsageError) as error:
        unary(channel)(b"")
    held.may_end.set()
    result = await calls[0], [reply async for reply in calls[1]]
    await closing
    return described(error.value), result


@case
async def a_channel_that_closes_waits_for_calls_that_are_not_sent_yet(channel: Any, held: Held) -> Any:
    call = unary(channel)(b"x")
    await channel.close(20)
    return await call


@case
async def a_grace_that_passes_cancels_the_calls(channel: Any, held: Held) -> Any:
    call = unary(channel, "Hold")(b"x")
    await held.has_begun.wait()
    await channel.close(0.05)
    return await call.code(), await call.details(), call.cancelled()


@case
async def no_grace_is_negative(channel: Any, held: Held) -> Any:
    results = await ended(channel.close(-1))
    return results, await unary(channel)(b"the channel is as good as before")


# Answers


@case
async def an_answer_can_be_awaited_again(channel: Any, held: Held) -> Any:
    call, failed = unary(channel)(b"x"), unary(channel, "Fail")(b"x")
    return await ended(call, call, failed, failed), await failed.details()


@case
async def a_stream_is_read_or_iterated_over(channel: Any, held: Held) -> Any:
    read, iterated = (channel.unary_stream("/t.T/Three")(b"x") for _ in range(2))
    first = await read.read()
    with pytest.raises(grpc.aio.UsageError) as mixed:
        read.__aiter__()
    replies = [reply async for reply in iterated]
    rest = await ended(iterated.read(), read.read(), read.read(), read.read(), read.read())
    return first, described(mixed.value), replies, rest


@case
async def an_iterator_goes_on_where_another_stopped(channel: Any, held: Held) -> Any:
    call = channel.unary_stream("/t.T/Three")(b"x")
    async for _ in call:
        break
    return len([reply async for reply in call])


# Requests


@case
async def requests_are_written_or_iterated_over(channel: Any, held: Held) -> Any:
    call = channel.stream_stream("/t.T/Chat")(iter([b"x"]))
    return await ended(call.write(b"y"), call.done_writing()), [reply async for reply in call]


@case
async def nothing_is_written_after_the_end(channel: Any, held: Held) -> Any:
    call = channel.stream_stream("/t.T/Chat")()
    await call.write(b"x")
    await call.done_writing()
    after = await ended(call.write(b"y"), call.done_writing())
    replies = await ended(call.read(), call.read(), call.code())
    return after, replies, await ended(call.write(b"y"), call.done_writing())


@case
async def nothing_is_written_after_a_cancel(channel: Any, held: Held) -> Any:
    call = channel.stream_stream("/t.T/Chat")()
    await call.write(b"x")
    call.cancel()
    return await ended(call.write(b"y"), call.done_writing(), call.read())


@case
async def the_arguments_of_a_stream_are_positional_as_well(channel: Any, held: Held) -> Any:
    return await channel.stream_unary("/t.T/Echo")(iter([b"x"]), 20, (("a", "b"),))


@case
async def a_method_may_be_bytes(channel: Any, held: Held) -> Any:
    return await channel.unary_unary(b"/t.T/Echo")(b"x")


@case
async def an_insecure_channel_takes_no_call_credentials(channel: Any, held: Held) -> Any:
    with pytest.raises(grpc.aio.UsageError) as error:
        await unary(channel)(b"x", credentials=grpc.access_token_call_credentials("token"))
    return described(error.value)


CHANNELS: dict[str, Callable[[str], Any]] = {
    "dial": onelane.dial,
    "connect": onelane.connect,
}


async def run(make: Callable[[str], Any], name: str) -> Any:
    held = Held()
    async with stock(**handlers(held)) as (address, _):
        channel = make(address)
        try:
            return await asyncio.wait_for(CASES[name](channel, held), BOUND_S)
        finally:
            held.may_end.set()
            await channel.close()


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("name", CASES)
async def test_it_ends_as_with_grpcio(channel: str, name: str) -> None:
    assert await run(CHANNELS[channel], name) == await run(grpc.aio.insecure_channel, name)


MALFORMED = {
    "a dict": {"a": "b"},
    "a dict of short names": {"ab": "cd"},
    "a pair": ("a", "b"),
    "a triple": (("a", "b", "c"),),
    "a number": (("a", 1),),
    "a key that is a number": (("onelane-key", 1),),
    "text for bytes": (("a-bin", "text"),),
    "an upper-case name": (("A", "b"),),
    "a name with a space": (("a b", "c"),),
    "no name": (("", "b"),),
    "a pseudo-header": ((":path", "/x"),),
    "a line break": (("a", "b\nc"),),
    "a lone surrogate": (("a", "\ud800"),),
    "neither": 5,
}


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("metadata", MALFORMED.values(), ids=MALFORMED)
async def test_malformed_metadata_is_a_type_error_or_a_value_error_that_names_it(channel: str, metadata: Any) -> None:
    async with stock() as (address, _):
        opened = CHANNELS[channel](address)
        with pytest.raises((TypeError, ValueError), match="Invalid metadata"):
            unary(opened)(b"x", metadata=metadata)
        await opened.close()


@pytest.mark.parametrize("channel", CHANNELS)
async def test_a_timeout_is_a_number_of_any_class_and_no_text(channel: str) -> None:
    async with stock() as (address, _):
        opened = CHANNELS[channel](address)
        timeout: Any = Fraction(61, 2)
        call = unary(opened)(b"x", timeout=timeout)
        await call
        with pytest.raises(TypeError):
            unary(opened)(b"x", timeout="30")
        await opened.close()


@pytest.mark.parametrize("channel", CHANNELS)
async def test_the_details_of_an_unreachable_peer_are_the_same_everywhere(channel: str) -> None:
    opened = CHANNELS[channel]("127.0.0.1:1")
    call = unary(opened)(b"x", timeout=BOUND_S)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    assert failed.value.details() == await call.details()
    assert str(await call.details()) in await call.debug_error_string()
    await opened.close()


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_channel_may_be_made_before_a_loop_runs(channel: str) -> None:
    with reserved() as port:
        address = f"127.0.0.1:{port}"
        opened = CHANNELS[channel](address)
        method = unary(opened)

        async def use() -> bytes:
            async with native_at(address), opened:
                return bytes(await method(b"x", timeout=BOUND_S))

        assert asyncio.run(use()) == b"x"
