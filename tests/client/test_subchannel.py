"""The connections of a channel: made when needed, made anew, several where one is full; calls wait for them."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import grpc.aio
import pytest
import uvloop
from onelane.client.channel import dial
from onelane.client.options import Dialling
from onelane.client.subchannel import Subchannel
from onelane.config import App
from onelane.server import unix_sockets
from onelane.server.listener import Bind
from onelane.server.native_listener import NativeListener
from onelane.server.sockets import claim
from onelane.wire import unix_peers
from onelane.wire.framing import PREFIX, frame
from onelane.wire.http2 import Http2, Limits
from onelane.wire.server import ServerConnection

from tests import frames
from tests.bounds import BOUND_S
from tests.client.scripted import going_away_once, scripted_frames
from tests.servers import FAILURE, READY, SOON, Answering, native, stock


async def test_nobody_there_is_unavailable_and_says_why(unserved: str) -> None:
    address = unserved
    async with dial(address, dialling=SOON) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match=f"failed to connect to {address}") as caught:
            await channel.unary_unary("/t.T/Echo")(b"", timeout=BOUND_S)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_no_call_goes_to_another_user_who_has_taken_the_path_of_a_sibling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> None:
        raise PermissionError("the socket belongs to another user")

    monkeypatch.setattr(unix_peers, "check_own", refuse)
    path = str(tmp_path / "s")
    with unix_sockets.listening(path):
        async with dial(f"unix:{path}", dialling=replace(SOON, own_user_only=True)) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="belongs to another user") as caught:
                await channel.unary_unary("/t.T/Echo")(b"", timeout=BOUND_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_wait_for_ready_waits_until_the_server_is_there(unserved: str) -> None:
    address = unserved
    async with dial(address, dialling=SOON) as channel:
        call = channel.unary_unary("/t.T/Echo")(b"late", wait_for_ready=True, timeout=BOUND_S)
        while channel.get_state() is not FAILURE:
            await channel.wait_for_state_change(channel.get_state())
        async with stock(address):
            assert await call == b"late"
            assert channel.get_state() is READY


async def test_a_call_that_waits_keeps_its_deadline(unserved: str) -> None:
    async with dial(unserved, dialling=SOON) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Echo")(b"", wait_for_ready=True, timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_call_that_has_waited_tells_its_server_what_is_left_of_its_deadline() -> None:
    remaining: list[float] = []
    has_begun, hold = asyncio.Event(), asyncio.Event()

    async def serve(request: bytes, call: Any) -> bytes:
        remaining.append(call.time_remaining())
        has_begun.set()
        await hold.wait()
        return request

    served = native(serve, max_streams=1)
    async with served as (address, _), dial(address, dialling=Dialling(max_connections=1)) as channel:
        send = channel.unary_unary("/t.T/Echo")
        first = send(b"1", timeout=BOUND_S)
        await has_begun.wait()
        second = send(b"2", timeout=BOUND_S)
        began = monotonic()
        await asyncio.wait([asyncio.ensure_future(second.wait_for_connection())], timeout=0.2)
        waited_s = monotonic() - began
        hold.set()
        assert [await first, await second] == [b"1", b"2"]
    assert waited_s >= 0.2
    assert remaining[1] <= BOUND_S - waited_s


async def test_it_connects_anew_after_the_server_went(unserved: str) -> None:
    async with stock(unserved) as (address, server):
        channel = dial(address, dialling=SOON)
        assert await channel.unary_unary("/t.T/Echo")(b"1", timeout=BOUND_S) == b"1"
        await server.stop(None)
        while channel.get_state() is READY:
            await channel.wait_for_state_change(READY)
    async with stock(address), channel:
        assert await channel.unary_unary("/t.T/Echo")(b"2", timeout=BOUND_S, wait_for_ready=True) == b"2"


async def test_a_full_connection_gets_another_beside_it() -> None:
    """The server lets two calls in at once; six are under way at the same time all the same."""
    running, everybody = 0, asyncio.Event()

    async def hold(request: bytes, context: Any) -> bytes:
        nonlocal running
        running += 1
        if running == 6:
            everybody.set()
        await everybody.wait()
        return request

    async with native(hold, max_streams=2) as (address, _), dial(address) as channel:
        calls = [channel.unary_unary("/t.T/Echo")(b"%d" % n, timeout=BOUND_S) for n in range(6)]
        assert [await call for call in calls] == [b"%d" % n for n in range(6)]


async def test_more_calls_than_all_connections_hold_wait_their_turn() -> None:
    async with native(max_streams=1) as (address, _), dial(address, dialling=Dialling(max_connections=2)) as channel:
        calls = [channel.unary_unary("/t.T/Echo")(b"%d" % n, timeout=BOUND_S) for n in range(200)]
        assert [await call for call in calls] == [b"%d" % n for n in range(200)]


class FewStreams:
    """HTTP/2 with three streams in all."""

    def __init__(self, **settings: Any) -> None:
        self._http2 = Http2(**settings)
        self._left = 3

    def __getattr__(self, name: str) -> Any:
        return getattr(self._http2, name)

    def request(self, *arguments: Any) -> int:
        self._left -= 1
        return self._http2.request(*arguments)

    @property
    def can_open(self) -> bool:
        return self._left > 0 and self._http2.can_open


async def test_a_connection_that_has_used_all_its_stream_ids_is_followed_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There are 2^30; siblings have one connection, and may forward as many calls within days."""
    monkeypatch.setattr("onelane.wire.client.Http2", FewStreams)
    hold = asyncio.Event()

    async def serve(request: bytes, call: Any) -> bytes:
        if request == b"0":
            await hold.wait()
        return request

    async with native(serve) as (address, _), dial(address, dialling=Dialling(max_connections=1)) as channel:
        send = channel.unary_unary("/t.T/Echo")
        first = send(b"0", timeout=BOUND_S)
        assert [await send(b"%d" % n, timeout=BOUND_S) for n in range(1, 10)] == [b"%d" % n for n in range(1, 10)]
        hold.set()
        assert await first == b"0"


async def test_a_drain_of_the_server_fails_no_call() -> None:
    """GOAWAY: what is under way finishes, what was not looked at goes to the successor."""
    address, held = claim("127.0.0.1:0", shared=True)
    slow = asyncio.Event()

    async def serve(request: bytes, call: Any) -> bytes:
        if request == b"slow":
            await slow.wait()
        return request

    def settings() -> App:
        return App(services=("a:B",), listen=address)

    first, second = NativeListener(), NativeListener()
    await first.start([Bind(address, shared=True)], Answering(serve), settings())
    async with dial(address) as channel:
        send = channel.unary_unary("/t.T/Echo")
        waiting = send(b"slow", timeout=BOUND_S)
        answers = [await send(b"%d" % n, timeout=BOUND_S) for n in range(10)]
        await second.start([Bind(address, shared=True)], Answering(serve), settings())
        draining = asyncio.create_task(first.drain())
        while not draining.done():
            answers.append(await send(b"more", timeout=BOUND_S))
        answers += [await send(b"after", timeout=BOUND_S) for _ in range(10)]
        slow.set()
        assert await waiting == b"slow"
        assert {*answers} >= {b"0", b"after"}
    await first.stop(1)
    await second.stop(1)
    held.close()


async def test_closing_ends_calls_also_where_their_server_is_going_away() -> None:
    never = asyncio.Event()

    async def hold(request: bytes, call: Any) -> bytes:
        await never.wait()
        return request

    async with native(hold) as (address, listener):
        channel = dial(address)
        call = channel.unary_unary("/t.T/Echo")(b"x", timeout=60)
        await call.wait_for_connection()
        draining = asyncio.create_task(listener.drain())
        while channel.get_state() is READY:
            await channel.wait_for_state_change(READY)
        await channel.close()
        assert await call.code() is grpc.StatusCode.CANCELLED
        await draining


async def test_a_refused_stream_is_sent_again_unseen() -> None:
    """REFUSED_STREAM says that nothing was looked at."""
    refused = frames.number(0x7)
    answered: list[int] = []

    def refuse_first(stream: int) -> bytes:
        answered.append(stream)
        if len(answered) == 1:
            return frames.frame(frames.RST_STREAM, refused, stream=stream)
        begin = frames.response(stream, (b":status", b"200"), (b"content-type", b"application/grpc"))
        ok = begin + frames.frame(frames.DATA, frame(b"again"), stream=stream)
        return ok + frames.response(stream, (b"grpc-status", b"0"), last=True)

    async with scripted_frames() as (address, server), dial(address) as channel:
        server.answer = refuse_first
        assert await channel.unary_unary("/t.T/Echo")(b"", timeout=BOUND_S) == b"again"
    assert len(answered) == 2


async def test_a_call_that_is_cancelled_while_it_waits_to_be_sent_again_is_not_sent() -> None:
    async with going_away_once() as (address, server), dial(address) as channel, asyncio.timeout(BOUND_S):
        send = channel.unary_unary("/t.T/Echo")
        refused = send(b"refused")
        await server.is_asked_again.wait()
        assert refused.cancel()
        other = send(b"other")
        server.may_go_on.set()
        assert (await server.messages.get())[PREFIX:] == b"other"
        other.cancel()


async def test_what_is_written_to_a_call_that_waits_to_be_sent_again_is_sent_with_it() -> None:
    async with going_away_once() as (address, server), dial(address) as channel, asyncio.timeout(BOUND_S):
        call = channel.stream_unary("/t.T/Echo")()
        await server.is_asked_again.wait()
        writing = asyncio.create_task(call.write(b"first"))
        await asyncio.sleep(0)
        assert not writing.done()
        server.may_go_on.set()
        await writing
        assert (await server.messages.get())[PREFIX:] == b"first"
        call.cancel()


async def test_a_server_that_accepts_and_says_nothing_is_no_server() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    async with server, dial(address, dialling=Dialling(connect_s=0.1)) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match=r"no answer within 0\.1 s"):
            await channel.unary_unary("/t.T/Echo")(b"", timeout=BOUND_S)


async def test_a_target_that_has_failed_is_told_at_once_also_while_another_attempt_is_made() -> None:
    """As a machine that is off: each attempt takes its whole time. grpcio's channels stay failed, too (gRFC A62)."""
    attempts: asyncio.Queue[None] = asyncio.Queue()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.put_nowait(None)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    dialling = Dialling(connect_s=0.1, initial_backoff_s=0.01, max_backoff_s=0.01)
    async with server, dial(address, dialling=dialling) as channel, asyncio.timeout(BOUND_S):
        send = channel.unary_unary("/t.T/Echo")
        assert await send(b"").code() is grpc.StatusCode.UNAVAILABLE
        for _ in range(2):
            await attempts.get()
        call = send(b"")
        assert call.done()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        patient = send(b"", wait_for_ready=True)
        assert not patient.done()
        assert channel.get_state() is FAILURE


async def test_who_stops_to_wait_for_a_state_is_not_kept() -> None:
    async with dial("127.0.0.1:1") as channel:
        for _ in range(20):
            waiting = asyncio.ensure_future(channel.wait_for_state_change(grpc.ChannelConnectivity.IDLE))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert channel.subchannel._changed == []


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("turns", range(6))
def test_one_that_is_given_up_while_it_connects_is_closed_and_writes_nothing_more(
    tmp_path: Path, loop: Any, turns: int
) -> None:
    """Its server has greeted it, or has not yet."""
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(faults_of_one_given_up_after(turns, tmp_path)) == []


async def faults_of_one_given_up_after(turns: int, folder: Path) -> list[Any]:
    """What the loop reports where that is so many turns after the first one in which the server sees the client."""
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    with unix_sockets.listening(path := str(folder / "s")) as listening:
        subchannel = Subchannel(f"unix:{path}", SOON)
        subchannel.connect()
        peer = None
        while peer is None or turns:
            await asyncio.sleep(0)
            if peer is not None:
                turns -= 1
                continue
            with suppress(BlockingIOError):
                peer, _ = listening.accept()
                peer.send(ServerConnection(Limits(), max_message=1).take())
        subchannel.give_up("it is too late")
        with peer, suppress(ConnectionResetError):
            peer.setblocking(False)
            async with asyncio.timeout(BOUND_S):
                while await asyncio.get_running_loop().sock_recv(peer, 1024):
                    pass
        # What has been planned to be written would be by now.
        for _ in range(10):
            await asyncio.sleep(0)
    return faults
