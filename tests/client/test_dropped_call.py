"""A call that its caller drops before its end, or cannot use, lets go of its stream, its place and its server."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from weakref import ref

import grpc
import grpc.aio
import onelane
import pytest
from onelane.client.channel import dial

from tests.bounds import BOUND_S
from tests.servers import SOON, native, stock

CALLS = 1100
"""More than a channel of `connect` lets be under way."""


class Streams:
    """A server whose streams end when their client lets them."""

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.received = b""
        self._changed = asyncio.Event()

    def handlers(self) -> dict[str, Any]:
        return {
            "Follow": grpc.unary_stream_rpc_method_handler(self.follow),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "Upload": grpc.stream_unary_rpc_method_handler(self.upload),
        }

    async def follow(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        with self._counted():
            yield b"first"
            await asyncio.Event().wait()

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        with self._counted():
            async for request in requests:
                yield request

    async def upload(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        with self._counted():
            async for request in requests:
                self.received += request
                self._changed.set()
            return self.received

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.begun += 1
        try:
            yield
        finally:
            self.ended += 1
            self._changed.set()

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(BOUND_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def streams() -> AsyncIterator[tuple[Streams, str]]:
    """The server and its address. Without the garbage collector: what refers to itself stays."""
    server = Streams()
    async with stock(**server.handlers()) as (address, _):
        gc.disable()
        try:
            yield server, address
        finally:
            gc.enable()


async def turns_until(condition: Any) -> None:
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)


async def endless() -> AsyncIterator[bytes]:
    yield b"first"
    await asyncio.Event().wait()


async def flood() -> AsyncIterator[bytes]:
    """More than the server's windows take."""
    while True:
        yield bytes(64 * 1024)


async def iterate(channel: Any) -> None:
    async for response in channel.unary_stream("/t.T/Follow")(b""):
        assert response == b"first"
        return


async def read(channel: Any) -> None:
    assert await channel.unary_stream("/t.T/Follow")(b"", timeout=60).read() == b"first"


async def chat(channel: Any) -> None:
    async for response in channel.stream_stream("/t.T/Chat")(endless(), timeout=60):
        assert response == b"first"
        return


async def write(channel: Any) -> None:
    call = channel.stream_stream("/t.T/Chat")()
    await call.write(b"first")
    assert await call.read() == b"first"


async def write_upload(channel: Any) -> None:
    call = channel.stream_unary("/t.T/Upload")(timeout=60)
    await call.write(b"first")
    await call.wait_for_connection()


class Passing(
    grpc.aio.UnaryStreamClientInterceptor, grpc.aio.StreamUnaryClientInterceptor, grpc.aio.StreamStreamClientInterceptor
):
    """Passes every call on."""

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(client_call_details, request)

    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(client_call_details, request_iterator)

    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(client_call_details, request_iterator)


@pytest.mark.parametrize("interceptors", [(), (Passing(),)], ids=["plain", "intercepted"])
@pytest.mark.parametrize("use", [iterate, read, chat, write, write_upload])
async def test_a_call_that_its_caller_drops_is_cancelled(use: Any, interceptors: Any) -> None:
    async with streams() as (server, address), dial(address, interceptors=interceptors) as channel:
        await use(channel)
        await server.until(lambda: server.begun == server.ended == 1)
        assert channel.subchannel._connections[0].wire.streams == {}
        assert all(not due for due in channel.subchannel.deadlines._due.values())


async def test_a_call_may_be_dropped_in_another_thread_and_by_the_garbage_collector() -> None:
    async with streams() as (server, address), dial(address) as channel:
        follow = channel.unary_stream("/t.T/Follow")
        holder: list[Any] = [follow(b"")]
        assert await holder[0].read() == b"first"
        await asyncio.to_thread(holder.clear)
        await server.until(lambda: server.ended == 1)
        holder += [follow(b""), holder]
        assert await holder[0].read() == b"first"
        call = ref(holder[0])
        del holder
        # What has brought the response may hold the call for one more turn of the loop.
        while call() is not None:
            gc.collect()
            await asyncio.sleep(0)
        await server.until(lambda: server.ended == 2)
        assert channel.subchannel._connections[0].wire.streams == {}


def test_a_call_may_be_dropped_after_its_loop_has_closed(unserved: str) -> None:
    async def left_open() -> Any:
        return dial(unserved).unary_stream("/t.T/Follow")(b"", wait_for_ready=True)

    call = asyncio.run(left_open())
    assert not call.done()
    # Nothing is raised, which pytest would tell.
    del call
    gc.collect()


async def test_a_call_that_is_dropped_while_it_waits_for_a_connection_waits_no_longer(unserved: str) -> None:
    async with dial(unserved, dialling=SOON) as channel:
        ended: list[grpc.StatusCode | None] = []
        call = channel.unary_stream("/t.T/Follow")(b"", wait_for_ready=True, timeout=60)
        call.add_done_callback(lambda ended_call: ended.append(ended_call.status))
        del call
        await asyncio.sleep(0)
        assert ended == [grpc.StatusCode.CANCELLED]
        assert list(channel.subchannel._waiting) == []


async def test_a_channel_that_gives_calls_time_to_end_does_not_keep_one_that_is_dropped() -> None:
    async with streams() as (server, address):
        channel = dial(address)
        call = channel.unary_stream("/t.T/Follow")(b"")
        assert await call.read() == b"first"
        closing = asyncio.create_task(channel.close(300))
        for _ in range(3):
            await asyncio.sleep(0)
        del call
        await asyncio.wait([closing], timeout=BOUND_S)
        assert closing.done()
        await server.until(lambda: server.ended == 1)


async def test_a_request_iterator_ends_with_the_call_that_is_dropped() -> None:
    closed = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with streams() as (_, address), dial(address) as channel:
        call = channel.stream_stream("/t.T/Chat")(requests())
        assert await call.read() == b"first"
        del call
        await asyncio.wait_for(closed.wait(), BOUND_S)


async def test_a_call_whose_requests_wait_for_room_is_cancelled_when_it_is_dropped() -> None:
    begun = asyncio.Event()

    async def unread(requests: Any, context: Any) -> AsyncIterator[bytes]:
        begun.set()
        yield b"first"
        await asyncio.Event().wait()

    async with stock(Chat=grpc.stream_stream_rpc_method_handler(unread)) as (address, _), dial(address) as channel:
        call = channel.stream_stream("/t.T/Chat")(flood())
        assert await call.read() == b"first"
        connection = call.connection
        await turns_until(lambda: connection._waiters)
        del call
        await turns_until(lambda: not connection.wire.streams)


async def test_an_upload_goes_on_without_its_caller_once_nothing_is_left_for_the_caller_to_write() -> None:
    """As a unary call does."""
    async with streams() as (server, address), dial(address) as channel:
        upload = channel.stream_unary("/t.T/Upload")
        upload(iter([b"a", b"b"]))
        await server.until(lambda: server.ended == 1)
        call = upload()
        await call.write(b"c")
        await call.done_writing()
        del call
        await server.until(lambda: server.ended == 2)
        assert server.received == b"abc"


async def test_streams_that_are_left_after_their_first_response_do_not_use_the_channel_up() -> None:
    async with streams() as (server, address), onelane.connect(address) as channel:
        for _ in range(CALLS):
            await iterate(channel)
        await server.until(lambda: server.ended == CALLS)
        assert channel.peer.in_flight == 0


async def test_a_stream_whose_response_cannot_be_deserialized_ends_with_that() -> None:
    def fail(message: bytes) -> Any:
        raise ValueError("no message of ours")

    async with streams() as (server, address), onelane.connect(address) as channel:
        call: Any = channel.unary_stream("/t.T/Follow", None, fail)(b"", timeout=60)
        with pytest.raises(grpc.aio.AioRpcError, match="Exception deserializing response!") as caught:
            await call.read()
        assert caught.value.code() is await call.code() is grpc.StatusCode.INTERNAL
        assert (call.done(), call.cancel(), channel.peer.in_flight) == (True, False, 0)
        await server.until(lambda: server.ended == 1)
        with pytest.raises(grpc.aio.AioRpcError, match="Exception deserializing response!"):
            await call.read()


async def test_an_answer_that_is_read_together_with_the_one_whose_callback_cancels_its_call_leads_nowhere() -> None:
    async with native() as (address, _), dial(address) as channel:
        await channel.channel_ready()
        calls = [channel.unary_unary("/t.T/Echo")(b"", timeout=BOUND_S) for _ in range(20)]
        for call in calls:
            call.add_done_callback(lambda ended: [other.cancel() for other in calls if other is not ended])
        codes = [await call.code() for call in calls]
        assert [codes.count(grpc.StatusCode.OK), codes.count(grpc.StatusCode.CANCELLED)] == [1, 19]
        assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
