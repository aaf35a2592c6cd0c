"""What the clients of a shard make it hold is bounded in sum: unfinished messages, answers that they do not take.

Each attack is made by one client or a few; a neighbour on another connection is answered.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from onelane.client.channel import dial
from onelane.client.options import Dialling
from onelane.core.keys import ANY
from onelane.server.listener import Bind
from onelane.server.methods import Method
from onelane.server.native_listener import NativeListener
from onelane.wire.framing import Headers, frame
from onelane.wire.http2 import DataReceived, ErrorCode, Http2, Limits, ResponseReceived, StreamReset, TrailersReceived

from tests.bounds import BOUND_S
from tests.ports import reserved
from tests.servers import echo
from tests.shard.parts import setup, wired

MIB = 1024 * 1024
CONNECTION, SHARD = 2 * MIB, 4 * MIB
REQUEST: Headers = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":authority", b"here"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]
UNFINISHED = frame(bytes(MIB))[: MIB // 2]


class Peer:
    """A client that makes many calls, and takes of each answer what the window of its stream takes."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, window: int, headers: Headers
    ) -> None:
        self.writer = writer
        self._headers = headers
        self.bodies: dict[int, bytes] = {}
        """Stream → what has come of its answer."""
        self.ends: dict[int, str] = {}
        """Stream → its grpc-status, or `reset` and the error code."""
        self._reader = reader
        self._http2 = Http2(server=False, limits=Limits(window=window))

    def call(self, method: bytes, body: bytes, *, end: bool) -> None:
        number = self._http2.send_request([(b":path", b"/t.T/" + method), *self._headers])
        self._http2.send_data(number, body, end_stream=end)
        self.send()

    def send(self) -> None:
        self.writer.write(self._http2.take())

    async def read(self) -> None:
        """Until the server closes the connection, or the task of this is cancelled."""
        while data := await self._reader.read(65_536):
            for event in self._http2.receive(data):
                match event:
                    case DataReceived():
                        self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                    case ResponseReceived() | TrailersReceived():
                        if status := dict(event.headers).get(b"grpc-status"):
                            self.ends[event.stream_id] = status.decode()
                    case StreamReset():
                        self.ends.setdefault(event.stream_id, f"reset {event.error_code}")
            self.send()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)


class Shard:
    """A lane behind the native listener with small bounds, and how much it has held at most."""

    def __init__(self, listener: NativeListener, address: str, lane: Any) -> None:
        self.address = address
        self.lane = lane
        self.listener = listener
        self.most = 0
        self.reading: dict[asyncio.Task[None], Peer] = {}
        report = listener.held_bytes.report

        def watched(holder: Any, held: int) -> None:
            report(holder, held)
            self.most = max(self.most, listener.held_bytes.total)

        listener.held_bytes.report = watched  # type: ignore[method-assign]

    async def peer(self, *, window: int = 0, headers: Headers = REQUEST) -> Peer:
        """window: of each of its streams."""
        peer = Peer(*await asyncio.open_connection(*self.address.split(":")), window=window, headers=headers)
        self.reading[asyncio.create_task(peer.read())] = peer
        return peer

    def refusals(self, reason: str) -> float:
        counter = self.lane.refusals._counter
        return float(counter.at({"onelane.reason": reason}).value)

    async def answers(self, size: int = 100_000) -> bool:
        async with dial(self.address) as channel:
            answer = await channel.unary_unary("/t.T/Echo")(bytes(size), timeout=BOUND_S)
        return bool(answer == bytes(size))


def large(request: bytes, context: Any) -> bytes:
    return bytes(MIB // 2)


def huge(request: bytes, context: Any) -> bytes:
    return bytes(2 * SHARD)


async def wait(request: bytes, context: Any) -> bytes:
    await asyncio.Event().wait()
    return b""


async def length(request: bytes, context: Any) -> bytes:
    return b"%d" % len(request)


async def lengths(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b"%d" % sum([len(request) async for request in requests])


async def upload(requests: AsyncIterator[bytes], context: Any) -> bytes:
    await asyncio.Event().wait()
    return b""


@asynccontextmanager
async def started(**settings: Any) -> AsyncIterator[Shard]:
    parts, _ = wired(setup(max_held_bytes=SHARD, max_held_bytes_per_connection=CONNECTION, **settings))
    parts.lane.add(Method("/t.T/Echo", echo, True, False, False, None, None, ANY))
    parts.lane.add(Method("/t.T/Large", large, False, False, False, None, None, ANY))
    parts.lane.add(Method("/t.T/Wait", wait, True, False, False, None, None, ANY))
    parts.lane.add(Method("/t.T/Length", length, True, False, False, None, None, ANY))
    parts.lane.add(Method("/t.T/Lengths", lengths, True, True, False, None, None, ANY))
    parts.lane.add(Method("/t.T/Huge", huge, False, False, False, None, None, ANY))
    parts.lane.add(Method("/t.T/Upload", upload, True, True, False, None, None, ANY))
    listener = NativeListener()
    with reserved() as port:
        address = f"127.0.0.1:{port}"
        await listener.start([Bind(address)], parts.serving, parts.settings)
        shard = Shard(listener, address, parts.lane)
        try:
            yield shard
        finally:
            for task, peer in shard.reading.items():
                task.cancel()
                peer.writer.close()
            await listener.stop(0.05)


async def test_unfinished_messages_of_one_connection_are_bounded_in_sum(caplog: pytest.LogCaptureFixture) -> None:
    async with started() as shard:
        peer = await shard.peer()
        for method in (b"Echo", b"Upload") * 6:
            peer.call(method, UNFINISHED, end=False)
        with caplog.at_level(logging.WARNING):
            await until(lambda: peer.ends)
        assert await shard.answers()
        assert set(peer.ends.values()) == {"8"}
        assert shard.most <= CONNECTION + 100_000
        assert shard.refusals("connection_bytes") >= len(peer.ends)
        assert len([line for line in caplog.messages if "connection_bytes" in line]) == 1


async def test_answers_that_a_client_does_not_take_are_bounded_in_sum() -> None:
    """Of `def` handlers, which answer all calls of one read in one go."""
    async with started() as shard:
        peer = await shard.peer()
        for _ in range(40):
            peer.call(b"Large", frame(b""), end=True)
        await until(lambda: len(peer.ends) >= 30)
        assert set(peer.ends.values()) == {f"reset {ErrorCode.ENHANCE_YOUR_CALM}"}
        assert shard.most <= CONNECTION + 5 * MIB
        assert await shard.answers()


async def test_many_connections_are_bounded_in_sum_and_the_heaviest_pay() -> None:
    async with started() as shard:
        peers = [await shard.peer() for _ in range(5)]
        for peer in peers:
            for _ in range(3):
                peer.call(b"Echo", UNFINISHED, end=False)
        await until(lambda: any(peer.ends for peer in peers))
        assert await shard.answers(size=600_000)
        assert shard.most <= SHARD + 5 * 70_000
        assert shard.refusals("shard_bytes")


async def test_an_answer_larger_than_the_bound_is_sent_to_a_client_that_takes_it() -> None:
    async with started() as shard:
        async with dial(shard.address, dialling=Dialling(max_message_bytes=4 * SHARD)) as channel:
            assert len(await channel.unary_unary("/t.T/Huge")(b"", timeout=BOUND_S)) == 2 * SHARD
        assert shard.listener.held_bytes.total == 0


async def test_what_has_ended_is_held_no_longer() -> None:
    async with started() as shard:
        peer = await shard.peer()
        for _ in range(2):
            peer.call(b"Echo", UNFINISHED, end=False)
        await until(lambda: shard.listener.held_bytes.total > MIB - 10_000)
        peer.writer.close()
        await until(lambda: not shard.listener.held_bytes.total)
        assert await shard.answers()


async def test_a_message_that_has_begun_must_be_whole_in_time() -> None:
    """Also that of a unary call, of which nothing but the headers has come; not so a stream that says nothing."""
    async with started(message_s=0.1) as shard:
        peer = await shard.peer()
        peer.call(b"Upload", frame(b"whole"), end=False)
        peer.call(b"Upload", UNFINISHED, end=False)
        peer.call(b"Echo", UNFINISHED, end=False)
        peer.call(b"Echo", b"", end=False)
        await until(lambda: len(peer.ends) == 3)
        assert peer.ends == dict.fromkeys((3, 5, 7), "8")
        assert shard.refusals("slow_message") == 3
        assert await shard.answers()


async def test_a_unary_answer_must_be_taken_in_time_and_is_in_flight_no_longer() -> None:
    async with started(message_s=0.1) as shard:
        peer = await shard.peer()
        peer.call(b"Large", frame(b""), end=True)
        await until(lambda: shard.lane.in_flight == 1)
        await until(lambda: peer.ends)
        assert peer.ends == {1: f"reset {ErrorCode.ENHANCE_YOUR_CALM}"}
        assert shard.refusals("untaken_answer") == 1
        await until(lambda: not shard.lane.in_flight)
        assert shard.listener.held_bytes.total == 0
