"""The status, the metadata and the end of a call, as grpc.aio has them."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.client.channel import dial

from tests.bounds import BOUND_S
from tests.servers import SOON, native, stock


async def test_metadata_go_both_ways() -> None:
    async def echo(request: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("x-initial", "1"),))
        own = [(key, value) for key, value in context.invocation_metadata() if key.startswith("x-")]
        context.set_trailing_metadata(
            tuple((f"{key}-back{'-bin' * key.endswith('-bin')}", value) for key, value in own)
        )
        return request

    handler: Any = grpc.unary_unary_rpc_method_handler(echo)
    async with stock(Echo=handler) as (address, _), dial(address) as channel:
        call = channel.unary_unary("/t.T/Echo")(b"", metadata=(("x-a", "1"), ("x-b-bin", b"\0")), timeout=BOUND_S)
        assert tuple(await call.initial_metadata()) == (("x-initial", "1"),)
        assert tuple(await call.trailing_metadata()) == (("x-a-back", "1"), ("x-b-bin-back-bin", b"\0"))
        assert (await call.code(), await call.details()) == (grpc.StatusCode.OK, "")


async def test_an_error_has_the_status_the_details_and_the_metadata_of_the_server() -> None:
    async def refuse(request: bytes, context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such room: ünïcode", (("x-why", "gone"),))

    handler: Any = grpc.unary_unary_rpc_method_handler(refuse)
    async with stock(Echo=handler) as (address, _), dial(address) as channel:
        call = channel.unary_unary("/t.T/Echo")(b"", timeout=BOUND_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "no such room: ünïcode")
        assert tuple(caught.value.trailing_metadata() or ()) == (("x-why", "gone"),)
        assert (
            caught.value.debug_error_string() == await call.debug_error_string() == f"{address}: no such room: ünïcode"
        )


async def test_done_callbacks_run_at_the_end_and_at_once_where_the_call_has_ended() -> None:
    order: list[Any] = []
    async with stock() as (address, _), dial(address) as channel:
        call = channel.unary_unary("/t.T/Echo")(b"", timeout=BOUND_S)
        call.add_done_callback(lambda ended: order.append(("before", ended)))
        assert order == []
        await call
        call.add_done_callback(lambda ended: order.append(("after", ended)))
    assert order == [("before", call), ("after", call)]


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_a_done_callback_that_raises_is_logged_and_ends_no_other_call(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []
    going = asyncio.Event()

    def fail(_: Any) -> None:
        raise error

    async def echo(request: bytes, context: Any) -> bytes:
        await going.wait()
        return request

    handler: Any = grpc.unary_unary_rpc_method_handler(echo)
    async with stock(Echo=handler) as (address, _), dial(address) as channel:
        send = channel.unary_unary("/t.T/Echo")
        others = [send(b"other", timeout=BOUND_S) for _ in range(3)]
        calls = [send(b"x", timeout=BOUND_S) for _ in range(3)]
        for call in calls:
            call.add_done_callback(fail)
            call.add_done_callback(lambda _: ran.append("after"))
        going.set()
        assert await asyncio.gather(*calls, *others) == [b"x"] * 3 + [b"other"] * 3
        calls[0].add_done_callback(fail)
    assert ran == ["after"] * 3
    records = [record for record in caplog.records if record.message.startswith("client.callback_failed")]
    assert [record.exc_info and record.exc_info[1] for record in records] == [error] * 4


async def test_a_done_callback_that_raises_at_a_deadline_holds_back_no_other_deadline(unserved: str) -> None:
    def fail(_: Any) -> None:
        raise ValueError("mine")

    async with dial(unserved) as channel:
        send = channel.unary_unary("/t.T/Echo")
        calls = [send(b"", timeout=0.05, wait_for_ready=True) for _ in range(20)]
        for call in calls:
            call.add_done_callback(fail)
        async with asyncio.timeout(BOUND_S):
            assert {await call.code() for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}


async def test_who_is_cancelled_while_it_waits_for_the_status_does_not_cancel_the_call() -> None:
    going = asyncio.Event()

    async def hold(request: bytes, call: Any) -> bytes:
        await going.wait()
        return request

    async with native(hold) as (address, _), dial(address) as channel:
        call = channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S)
        waiters = [asyncio.ensure_future(wait()) for wait in (call.code, call.details, call.trailing_metadata)]
        await call.wait_for_connection()
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        assert not call.done()
        going.set()
        assert await call == b"x"


async def test_who_is_cancelled_while_it_awaits_the_response_cancels_the_call() -> None:
    async with native(lambda request, call: asyncio.Event().wait()) as (address, _), dial(address) as channel:
        call = channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S)

        async def respond() -> Any:
            return await call

        waiting = asyncio.ensure_future(respond())
        await call.wait_for_connection()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (call.cancelled(), await call.code()) == (True, grpc.StatusCode.CANCELLED)


async def test_a_call_is_cancelled_once_also_while_it_waits_for_a_connection(unserved: str) -> None:
    async with dial(unserved, dialling=SOON) as channel:
        call = channel.unary_unary("/t.T/Echo")(b"", wait_for_ready=True, timeout=60)
        assert 59 < (call.time_remaining() or 0) <= 60
        assert [call.cancel(), call.cancel()] == [True, False]
        for awaited in (call, call.wait_for_connection()):
            with pytest.raises(asyncio.CancelledError):
                await awaited
        assert await call.details() == "Locally cancelled by application!"
        assert list(channel.subchannel._waiting) == []


async def test_a_deadline_ends_the_call_here_and_at_the_server() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hold(request: bytes, call: Any) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return request

    async with native(hold) as (address, _), dial(address) as channel:
        timeout_s = 0.1
        # On a busy machine the deadline may pass before the call has come to the server: then once more, and longer.
        while not begun.is_set():
            call = channel.unary_unary("/t.T/Echo")(b"x", timeout=timeout_s)
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            timeout_s *= 3
        await cancelled.wait()


async def test_a_response_that_cannot_be_deserialized_is_an_internal_error() -> None:
    def fail(message: bytes) -> Any:
        raise ValueError("no message of ours")

    async with stock() as (address, _), dial(address) as channel:
        call = channel.unary_unary("/t.T/Echo", None, fail)(b"x", timeout=BOUND_S)
        with pytest.raises(grpc.aio.AioRpcError, match="Exception deserializing response!") as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INTERNAL
