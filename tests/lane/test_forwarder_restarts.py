"""While a shard restarts, calls that are forwarded to it wait, as those of clients that connect to it do."""

import asyncio
import socket
import threading
from functools import partial
from pathlib import Path

import grpc
import pytest
from onelane.config import App
from onelane.core.hop import SERVED
from onelane.core.placement import Member
from onelane.lane.forwarder import NativeForwarder
from onelane.server import sockets
from onelane.server.listener import Bind
from onelane.server.native_listener import NativeListener
from onelane.testing.listener import MemoryCall
from onelane.wire import framing
from onelane.wire.http2 import SIBLING_LIMITS
from onelane.wire.link_server import LinkServer
from onelane.wire.server import Opened

from tests import frames
from tests.bounds import BOUND_S
from tests.running_app import eventually
from tests.servers import Answering

SETTINGS = App(services=("a:B",), listen="127.0.0.1:0")
SPEED = 50
"""How much faster time limits pass."""


async def test_a_forwarded_call_waits_for_its_owner_until_its_own_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout = asyncio.timeout
    monkeypatch.setattr(asyncio, "timeout", lambda limit_s: timeout(limit_s and limit_s / SPEED))
    owner = Member("b", "127.0.0.1:1002", str(tmp_path / "b"))
    # The supervisor holds it; nobody accepts.
    held = sockets.listening(f"unix:{owner.socket}")
    forwarder, listener = NativeForwarder(), NativeListener()
    call = MemoryCall("/t.T/Echo", (), trusted=False, deadline_s=60.0)
    answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    forwarder.begin(owner, call, b"hi", None, answered.set_result)
    await asyncio.wait([answered], timeout=20 / SPEED)
    assert not answered.done(), "some 20 s have passed"
    await listener.start([Bind(f"unix:{owner.socket}", trusted=True, sock=held.dup())], Answering(), SETTINGS)
    assert (await answered, call.code_now) == (b"hi", grpc.StatusCode.OK)
    await forwarder.aclose()
    await listener.stop(1.0)
    held.close()


@pytest.mark.parametrize("streams", [True, False])
async def test_a_call_that_is_cancelled_while_it_waits_for_its_owner_is_not_sent(tmp_path: Path, streams: bool) -> None:
    owner = Member("b", "127.0.0.1:1002", str(tmp_path / "b"))
    held, forwarder = sockets.listening(f"unix:{owner.socket}"), NativeForwarder()
    call = MemoryCall("/t.T/Echo", (), trusted=False, deadline_s=None)
    if streams:
        carrying = asyncio.ensure_future(forwarder.stream(owner, call, None, None, streams_response=True))
        await asyncio.sleep(0)
        assert len(forwarder._siblings[owner.socket]._waiting) == 1
        carrying.cancel()
        await asyncio.wait([carrying])
    else:
        forwarder.begin(owner, call, b"", None, lambda _: None)
        assert call.cancel_forward is not None
        call.cancel_forward()
    assert not forwarder._siblings[owner.socket]._waiting
    assert SERVED not in dict(call.trailers), "the owner has never seen it, and does not count it"
    await forwarder.aclose()
    held.close()


async def test_a_call_whose_deadline_passes_while_it_waits_for_its_owner_is_counted_as_such(tmp_path: Path) -> None:
    owner = Member("b", "127.0.0.1:1002", str(tmp_path / "b"))
    held, forwarder = sockets.listening(f"unix:{owner.socket}"), NativeForwarder()
    call = MemoryCall("/t.T/Echo", (), trusted=False, deadline_s=0.0)
    forwarder.begin(owner, call, b"", None, lambda _: None)
    # As its listener does once the deadline has passed.
    assert call.cancel_forward is not None
    call.cancel_forward()
    assert call.code_now is grpc.StatusCode.DEADLINE_EXCEEDED
    assert SERVED not in dict(call.trailers), "the owner has never seen it, and does not count it"
    await forwarder.aclose()
    held.close()


@pytest.mark.parametrize("by_client", [True, False])
async def test_a_call_that_is_cut_off_while_it_waits_for_its_owner_is_counted_as_its_client_is_told(
    tmp_path: Path, by_client: bool
) -> None:
    owner = Member("b", "127.0.0.1:1002", str(tmp_path / "b"))
    held, forwarder = sockets.listening(f"unix:{owner.socket}"), NativeForwarder()
    call = MemoryCall("/t.T/Echo", (), trusted=False, deadline_s=60.0)
    forwarder.begin(owner, call, b"", None, lambda _: None)
    # As its listener does, at the end of a drain or where its client cancels it.
    if not by_client:
        call.end_early(grpc.StatusCode.UNAVAILABLE, "shut down")
    call.is_cancelled = True
    assert call.cancel_forward is not None
    call.cancel_forward()
    assert call.code_now is (grpc.StatusCode.CANCELLED if by_client else grpc.StatusCode.UNAVAILABLE)
    assert SERVED not in dict(call.trailers), "the owner has never seen it, and does not count it"
    await forwarder.aclose()
    held.close()


async def test_calls_that_wait_for_one_owner_are_bounded(tmp_path: Path) -> None:
    """Or a shard that is down would take all the calls that the others may have in progress."""
    owner = Member("b", "127.0.0.1:1002", str(tmp_path / "b"))
    held, forwarder = sockets.listening(f"unix:{owner.socket}"), NativeForwarder(max_waiting=2)
    calls = [MemoryCall("/t.T/Echo", (), trusted=False, deadline_s=None) for _ in range(3)]
    ended: list[MemoryCall] = []
    for call in calls:
        forwarder.begin(owner, call, b"", None, partial(_add, ended, call))
    assert ended == calls[2:]
    assert ended[0].code_now is grpc.StatusCode.RESOURCE_EXHAUSTED
    await forwarder.aclose()
    held.close()


class Owner(threading.Thread):
    """Takes one call, and says goodbye once the test lets it: it answers the call, says by GOAWAY that it takes no
    other, and closes. Whatever comes on its next connection is answered by a listener."""

    def __init__(self, held: socket.socket) -> None:
        super().__init__(daemon=True)
        self.has_call, self.may_go = threading.Event(), threading.Event()
        self._held = held

    def run(self) -> None:
        # Of a release that has no link: what is offered first is answered in HTTP/2.
        offered, _ = self._held.accept()
        with offered:
            offered.sendall(frames.settings())
        sock, _ = self._held.accept()
        with sock, sock.makefile("rwb") as stream:
            stream.read(len(frames.PREFACE))
            stream.write(frames.settings() + frames.frame(frames.SETTINGS, flags=frames.ACK))
            stream.flush()
            number = 0
            while not number:
                head = stream.read(9)
                stream.read(int.from_bytes(head[:3], "big"))
                is_end = head[3] == frames.DATA and head[4] & frames.END_STREAM
                number = int.from_bytes(head[5:], "big") if is_end else 0
            self.has_call.set()
            self.may_go.wait(BOUND_S)
            stream.write(frames.response(number, (b":status", b"200"), (b"content-type", b"application/grpc")))
            stream.write(b"".join(frames.pieces(b"first", stream=number)))
            stream.write(frames.response(number, (b"grpc-status", b"0"), last=True))
            stream.write(frames.frame(frames.GOAWAY, frames.number(number) + frames.number(0)))


class LinkOwner(Owner):
    """The same over the link."""

    def run(self) -> None:
        sock, _ = self._held.accept()
        wire = LinkServer(SIBLING_LIMITS, max_message=1000)
        with sock:
            opened: list[Opened] = []
            while not opened:
                opened = [event for event in wire.receive(sock.recv(1000)) if isinstance(event, Opened)]
                sock.sendall(wire.take())
            self.has_call.set()
            self.may_go.wait(BOUND_S)
            wire.send_message(opened[0].stream, framing.frame(b"first"))
            wire.finish(opened[0].stream, framing.OK)
            wire.http2.go_away()
            sock.sendall(wire.take())


@pytest.mark.parametrize("owner_type", [Owner, LinkOwner])
async def test_a_sender_that_got_no_cpu_while_its_owner_said_goodbye_loses_no_call(
    tmp_path: Path, owner_type: type[Owner]
) -> None:
    """It writes its next call before it reads: by then the owner has closed."""
    owner = Member("b", "127.0.0.1:1002", str(tmp_path / "b"))
    held = sockets.listening(f"unix:{owner.socket}")
    held.setblocking(True)
    leaving = owner_type(held)
    leaving.start()
    forwarder, listener = NativeForwarder(), NativeListener()
    calls = [MemoryCall("/t.T/Echo", (), trusted=False, deadline_s=60.0) for _ in range(2)]
    replies: list[asyncio.Future[bytes]] = [asyncio.get_running_loop().create_future() for _ in calls]
    forwarder.begin(owner, calls[0], b"one", None, replies[0].set_result)
    await eventually(leaving.has_call.is_set)
    leaving.may_go.set()
    # The whole loop waits, as a process does that gets no CPU.
    leaving.join(20)
    forwarder.begin(owner, calls[1], b"two", None, replies[1].set_result)
    await listener.start([Bind(f"unix:{owner.socket}", trusted=True, sock=held.dup())], Answering(), SETTINGS)
    assert await asyncio.wait_for(asyncio.gather(*replies), BOUND_S) == [b"first", b"two"]
    assert [call.code_now for call in calls] == [grpc.StatusCode.OK] * 2
    await forwarder.aclose()
    await listener.stop(1.0)
    held.close()


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("streams", [True, False])
async def test_a_forwarder_that_is_closed_ends_calls_and_connects_to_nobody(
    tmp_path: Path, streams: bool, is_known: bool
) -> None:
    owner = Member("b", "127.0.0.1:1002", str(tmp_path / "b"))
    held, forwarder = sockets.listening(f"unix:{owner.socket}"), NativeForwarder()
    if is_known:
        forwarder.begin(owner, MemoryCall("/t.T/Echo", (), trusted=False, deadline_s=None), b"", None, lambda _: None)
    await forwarder.aclose()
    call, ended = MemoryCall("/t.T/Echo", (), trusted=False, deadline_s=None), list[MemoryCall]()
    if streams:
        await asyncio.wait_for(forwarder.stream(owner, call, None, None, streams_response=True), BOUND_S)
    else:
        forwarder.begin(owner, call, b"", None, partial(_add, ended, call))
        assert ended == [call], "once"
    assert call.code_now is grpc.StatusCode.UNAVAILABLE
    held.setblocking(False)
    with pytest.raises(BlockingIOError):
        held.accept()
    held.close()


def _add(calls: list[MemoryCall], call: MemoryCall, reply: bytes) -> None:
    calls.append(call)
