"""Peers that mean harm, at a real shard behind the native listener: its memory stays bounded, and an ordinary client's
calls on another connection go on being answered, all of them OK.

Each attack is bounded in count and time. Growth is of the peak of the resident set, by VmHWM of /proc/PID/status.
"""

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from onelane.wire.framing import frame

from tests import frames as h2
from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, echo, eventually, running

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
CALLS = 100
"""Calls of the ordinary client that must be answered while an attack stands."""
CHAT, DOWNLOAD, UPLOAD = b"/echo.v1.Echo/Chat", b"/echo.v1.Echo/Download", b"/echo.v1.Echo/Upload"
WATCH = b"/onelane.v1.Topology/Watch"
FLOODS = [h2.frame(h2.PING, bytes(8)), h2.settings(initial_window_size=70_000)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("abuse"), echo(1, 'listener = "native"')) as app:
        yield app


class Shard:
    """The shard under attack, as its memory and an ordinary client see it."""

    def __init__(self, cluster: RunningApp, stub: "echo_pb2_grpc.EchoAsyncStub") -> None:
        self.host, _, port = cluster.listen["echo"].rpartition(":")
        self.port = int(port)
        self.answered = 0
        self._proc = Path("/proc") / str(cluster.shards()[0]["pid"])
        self._stub = stub
        self._more = asyncio.Condition()

    def rss(self, field: str = "VmRSS") -> int:
        """Bytes; VmHWM is the most since `forget_peak`."""
        match = re.search(rf"{field}:\s+(\d+) kB", (self._proc / "status").read_text())
        assert match is not None
        return int(match[1]) * 1024

    def cpu_s(self) -> float:
        """CPU time of the shard, in seconds."""
        user, system = (self._proc / "stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def forget_peak(self) -> None:
        (self._proc / "clear_refs").write_text("5")

    async def call_always(self) -> None:
        while True:
            reply = await self._stub.Unary(EchoRequest(key="k", text="hi"), timeout=BOUND_S)
            assert reply.text == "hi"
            self.answered += 1
            async with self._more:
                self._more.notify_all()

    async def wait_answered(self, more: int = CALLS) -> None:
        """Wait until the ordinary client has been answered `more` times from now on."""
        wanted = self.answered + more
        async with self._more:
            await self._more.wait_for(lambda: self.answered >= wanted)

    async def connect(self, *, receive_buffer: int | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (self.host, self.port))
        return await asyncio.open_connection(sock=sock)


@contextlib.asynccontextmanager
async def under_attack(cluster: RunningApp, *, growth: int, name: str) -> AsyncIterator[Shard]:
    """An ordinary client calls without a pause meanwhile; at the end the shard has grown by `growth` bytes at most."""
    async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
        shard = Shard(cluster, echo_pb2_grpc.EchoStub(channel))
        calling = asyncio.ensure_future(shard.call_always())
        await _unless_failed(calling, shard.wait_answered())
        shard.forget_peak()
        before = shard.rss()
        try:
            yield shard
            await _unless_failed(calling, shard.wait_answered())
        finally:
            calling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await calling
        grown = shard.rss("VmHWM") - before
        print(f"{name}: grown by {grown / MIB:.1f} MiB at most, {shard.answered} ordinary calls")  # noqa: T201
        assert grown <= growth


async def _unless_failed(calling: "asyncio.Future[None]", waiting: Coroutine[Any, Any, None]) -> None:
    """Await `waiting`, but raise at once what the ordinary client met."""
    wait = asyncio.ensure_future(waiting)
    await asyncio.wait([calling, wait], return_when=asyncio.FIRST_COMPLETED)
    if calling.done():
        wait.cancel()
        await calling
    await wait


async def served_again(cluster: RunningApp) -> None:
    """Wait until the shard refuses no call for being late."""
    async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
        while True:
            try:
                await echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest(key="k"), timeout=BOUND_S)
                return
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017 - any other one is a failure


async def flood(shard: Shard, parts: Iterable[bytes], *, receive_buffer: int | None = None) -> int:
    """Send `parts` on one connection and read nothing until they are sent or the shard closes; how many were sent."""
    _, writer = await shard.connect(receive_buffer=receive_buffer)
    sent = 0
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            sent += 1
    except ConnectionError:
        pass
    finally:
        writer.close()
    return sent


async def until_ended(shard: Shard, parts: Iterable[bytes]) -> int:
    """Send `parts` on one connection while reading, until the shard says GOAWAY or closes it; how many were sent."""
    reader, writer = await shard.connect()
    sent = 0

    async def send() -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                sent += 1

    sending = asyncio.ensure_future(send())
    try:
        async for kind, *_ in h2.frames(reader):
            if kind == h2.GOAWAY:
                break
    finally:
        sending.cancel()
        writer.close()
    return sent


async def test_rapid_reset(cluster: RunningApp) -> None:
    """CVE-2023-44487: 20,000 streams, each reset as soon as it is open."""

    def attack() -> Iterator[bytes]:
        yield h2.HELLO
        for n in range(20_000):
            opened = h2.headers(2 * n + 1, h2.request(UPLOAD))
            yield opened + h2.frame(h2.RST_STREAM, h2.number(h2.CANCEL), stream=2 * n + 1)

    async with under_attack(cluster, growth=16 * MIB, name="rapid reset") as shard:
        await until_ended(shard, attack())


@pytest.mark.parametrize("size", [0, 1024])
async def test_continuation_flood(cluster: RunningApp, size: int) -> None:
    """VU#421644: a header block that does not end, 5,000 frames long."""

    def attack() -> Iterator[bytes]:
        yield h2.HELLO + h2.headers(1, h2.request(UPLOAD), flags=0)
        for _ in range(5_000):
            yield h2.frame(h2.CONTINUATION, h2.field(b"x", b"y" * size) if size else b"", stream=1)

    async with under_attack(cluster, growth=4 * MIB, name=f"continuation flood of {size} bytes") as shard:
        await until_ended(shard, attack())


@pytest.mark.parametrize("part", FLOODS, ids=["ping", "settings"])
async def test_ping_and_settings_floods_that_read_no_acknowledgement(cluster: RunningApp, part: bytes) -> None:
    async with under_attack(cluster, growth=4 * MIB, name=f"flood of type {part[3]}") as shard:
        attack = [h2.HELLO, *[part * 500] * 1_000]
        assert await flood(shard, attack, receive_buffer=4096) < len(attack)


@pytest.mark.parametrize("part", FLOODS, ids=["ping", "settings"])
async def test_ping_and_settings_floods_that_read(cluster: RunningApp, part: bytes) -> None:
    """20,000 of them: it is the shard's choice whether to answer all, or to close."""
    async with under_attack(cluster, growth=4 * MIB, name=f"read flood of type {part[3]}") as shard:
        reader, writer = await shard.connect()
        answers = 0
        with contextlib.suppress(ConnectionError):
            writer.write(h2.HELLO + part * 20_000)
            async for kind, flags, _, _ in h2.frames(reader):
                answers += kind == part[3] and bool(flags & h2.ACK)
                if answers == 20_000:
                    break
        writer.close()


async def test_a_plain_header_bomb(cluster: RunningApp) -> None:
    """100 KB of headers on each of 50 connections."""
    field = h2.field(b"x", b"y" * 16_000)
    attack = [h2.HELLO, h2.headers(1, h2.request(UPLOAD), flags=0)]
    attack += [h2.frame(h2.CONTINUATION, field, stream=1)] * 5
    attack += [h2.frame(h2.CONTINUATION, field, stream=1, flags=h2.END_HEADERS)]
    async with under_attack(cluster, growth=4 * MIB, name="plain header bomb") as shard:
        await asyncio.gather(*[until_ended(shard, attack) for _ in range(50)])


async def test_a_header_bomb_that_hpack_amplifies(cluster: RunningApp) -> None:
    """4,000 bytes kept in the dynamic table, and 15,000 references of one byte to them: 60 MB from 19 KB, 50 times."""
    bomb = h2.request(UPLOAD, h2.field(b"x", b"y" * 4_000, indexed=True))
    attack = [h2.HELLO, h2.headers(1, bomb + b"\xbe" * 10_000, flags=0)]
    attack += [h2.frame(h2.CONTINUATION, b"\xbe" * 5_000, stream=1, flags=h2.END_HEADERS)]
    async with under_attack(cluster, growth=4 * MIB, name="amplified header bomb") as shard:
        await asyncio.gather(*[until_ended(shard, attack) for _ in range(50)])


@pytest.mark.parametrize("window", [65_535, h2.MAX_WINDOW])
async def test_slow_readers(cluster: RunningApp, window: int) -> None:
    """20 clients ask for 640 MB each and read none of it, with HTTP/2's smallest window or with its largest."""
    message = EchoRequest(key="k", text="x" * 64_000, times=10_000).SerializeToString()
    ask = h2.PREFACE + h2.settings(initial_window_size=window) + h2.headers(1, h2.request(DOWNLOAD))
    if window > 65_535:
        ask += h2.frame(h2.WINDOW_UPDATE, h2.number(window - 65_535))
    ask += b"".join(h2.pieces(message, stream=1)) + h2.frame(h2.DATA, flags=h2.END_STREAM, stream=1)
    async with under_attack(cluster, growth=16 * MIB, name=f"slow readers with a window of {window}") as shard:
        writers = []
        for _ in range(20):
            reader, writer = await shard.connect(receive_buffer=65_536)
            writer.write(ask)
            async for kind, *_ in h2.frames(reader):
                if kind == h2.DATA:
                    # The answer has begun to come; from here on nobody reads it, and a StreamReader holds 128 KiB.
                    break
            writers.append(writer)
        await shard.wait_answered(10 * CALLS)
        for writer in writers:
            writer.transport.abort()


async def test_window_updates_of_one_byte_with_many_unread_streams(cluster: RunningApp) -> None:
    """400,000 of them, while 1000 handlers wait for room: each made every handler look again."""
    message = EchoRequest(key="k", text="x" * 1_000, times=100_000).SerializeToString()
    ask = h2.PREFACE + h2.settings(initial_window_size=MIB)
    for stream in range(1, 2_000, 2):
        ask += h2.headers(stream, h2.request(DOWNLOAD))
        ask += h2.frame(h2.DATA, frame(message), stream=stream, flags=h2.END_STREAM)
    reader, writer = await asyncio.open_connection(*cluster.listen["echo"].rsplit(":", 1))
    writer.write(ask)
    answered = 0
    async for kind, *_ in h2.frames(reader):
        answered += kind == h2.HEADERS
        if answered == 1_000:
            break
    # A thousand handlers that begin at once make the shard late; what is measured here is what comes after.
    await served_again(cluster)
    async with under_attack(cluster, growth=16 * MIB, name="window updates of one byte") as shard:
        before = shard.cpu_s()
        for _ in range(80):
            writer.write(h2.frame(h2.WINDOW_UPDATE, h2.number(1)) * 5_000)
            await writer.drain()
        await shard.wait_answered()
        assert shard.cpu_s() - before < 1.0
    writer.transport.abort()


async def test_watches_of_the_topology_that_nobody_reads(cluster: RunningApp) -> None:
    """4000 of them wait for room, and 400,000 WINDOW_UPDATEs come. Any stranger may open them."""
    ask = h2.PREFACE + h2.settings(initial_window_size=1)
    for stream in range(1, 2_000, 2):
        ask += h2.headers(stream, h2.request(WATCH)) + h2.frame(h2.DATA, frame(b""), stream=stream, flags=h2.END_STREAM)
    async with under_attack(cluster, growth=64 * MIB, name="unread watches") as shard:
        writers = []
        for _ in range(4):
            reader, writer = await shard.connect()
            writer.write(ask)
            writers.append(writer)
            answered = 0
            async for kind, *_ in h2.frames(reader):
                answered += kind == h2.HEADERS
                if answered == 1_000:
                    break
        before = shard.cpu_s()
        for _ in range(20):
            for writer in writers:
                writer.write(h2.frame(h2.WINDOW_UPDATE, h2.number(1)) * 5_000)
                await writer.drain()
        await shard.wait_answered()
        assert shard.cpu_s() - before < 1.0
        for writer in writers:
            writer.transport.abort()
        await eventually(lambda: cluster.metric("onelane_connections_open") <= 2)


async def test_data_of_one_byte_on_many_streams(cluster: RunningApp) -> None:
    """240,000 frames: the ordinary client is answered in between."""
    numbers = range(1, 2_000, 2)
    begun = frame(bytes(1_000_000))[:5]
    ask = b"".join(h2.headers(n, h2.request(UPLOAD)) + h2.frame(h2.DATA, begun, stream=n) for n in numbers)
    every = b"".join(h2.frame(h2.DATA, b"x", stream=n) for n in numbers)
    async with under_attack(cluster, growth=32 * MIB, name="data of one byte") as shard:
        assert await flood(shard, [h2.HELLO + ask, *[every * 20] * 12]) == 13


async def test_half_open_peers(cluster: RunningApp) -> None:
    """500 clients say nothing, or only the preface."""
    async with under_attack(cluster, growth=500 * 16 * 1024, name="half-open peers") as shard:
        writers = []
        for n in range(500):
            _, writer = await shard.connect()
            writer.write(h2.PREFACE if n % 2 else b"")
            writers.append(writer)
        await shard.wait_answered()
        for writer in writers:
            writer.transport.abort()


async def test_data_over_the_window(cluster: RunningApp) -> None:
    """A client that reads no answers, so that its messages are not read either, sends on and on: 64 MB."""
    message = EchoRequest(key="k", text="x" * 16_000).SerializeToString()

    def attack() -> Iterator[bytes]:
        yield h2.PREFACE + h2.settings(initial_window_size=0) + h2.headers(1, h2.request(CHAT))
        for _ in range(4_000):
            yield from h2.pieces(message, stream=1)

    async with under_attack(cluster, growth=4 * MIB, name="data over the window") as shard:
        assert await until_ended(shard, attack()) < 1_000


async def test_a_peer_that_breaks_http2_in_a_stream_that_never_pauses(cluster: RunningApp) -> None:
    """A PING of 5 bytes ends the connection; the handler of its endless stream must not write on into nothing."""
    message = EchoRequest(key="k", text="x" * 1000, times=2**31 - 1).SerializeToString()
    ask = h2.HELLO + h2.headers(1, h2.request(DOWNLOAD))
    ask += b"".join(h2.pieces(message, stream=1)) + h2.frame(h2.DATA, flags=h2.END_STREAM, stream=1)
    async with under_attack(cluster, growth=16 * MIB, name="a broken PING in a stream") as shard:
        for _ in range(5):
            reader, writer = await shard.connect()
            writer.write(ask)
            async for kind, *_ in h2.frames(reader):
                if kind == h2.DATA:
                    break
            writer.write(h2.frame(h2.PING, b"hello"))
            await shard.wait_answered()
            writer.transport.abort()
