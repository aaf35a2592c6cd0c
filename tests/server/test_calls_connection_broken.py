"""A stream of requests that breaks gRPC's rules: its handler gets the messages before first, as on grpcio's server."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.wire.framing import frame

from tests.interop.raw import Answer, Exchange, request
from tests.servers import lane_behind, stock

LIMIT = 2048
TOO_LARGE = frame(b"x" * (LIMIT + 1))
BROKEN = {
    "too large": (TOO_LARGE, b"8"),
    "too large, not all of it": (TOO_LARGE[:100], b"8"),
    "too large once unpacked": (b"\1" + frame(gzip.compress(b"x" * (LIMIT + 1)))[1:], b"8"),
    "no gzip": (b"\1" + frame(b"x")[1:], b"13"),
}


class Service:
    """Handlers of requests that are a stream. Each waits for `may_read` before its first."""

    def __init__(self) -> None:
        self.may_read = asyncio.Event()
        self.got: list[bytes] = []
        self.ends: list[str] = []

    def took(self, message: bytes) -> bytes:
        self.got.append(message)
        return message

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await self.may_read.wait()
        async for message in requests:
            yield self.took(message)

    async def reader(self, requests: AsyncIterator[bytes], context: Any) -> None:
        await self.may_read.wait()
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                await context.write(self.took(message))
            self.ends.append("EOF")
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise

    def plain(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for message in requests:
            yield self.took(message)

    async def first(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await self.may_read.wait()
        async for message in requests:
            yield self.took(message)
            return

    def handlers(self) -> dict[str, Any]:
        methods: dict[str, Any] = {"Chat": self.chat, "Reader": self.reader, "Plain": self.plain, "First": self.first}
        return {name: grpc.stream_stream_rpc_method_handler(method) for name, method in methods.items()}


@asynccontextmanager
async def listening(server: str, service: Service) -> AsyncIterator[str]:
    if server == "stock":
        options = [("grpc.max_receive_message_length", LIMIT)]
        async with stock("127.0.0.1:0", options, **service.handlers()) as (address, _):
            yield address
    else:
        async with lane_behind(server, (), {"max_message_bytes": LIMIT}, **service.handlers()) as address:
            yield address


async def sent(
    listening: AbstractAsyncContextManager[str], service: Service, method: str, pieces: list[bytes], *, reads_late: bool
) -> Answer:
    """The answer to these DATA frames. reads_late: the handler begins to read when all of them have come."""

    def send(address: str) -> Answer:
        with Exchange(address) as call:
            call.open(request(f"/t.T/{method}".encode(), (b"grpc-encoding", b"gzip")))
            for piece in pieces:
                call.put(piece)
            call.wait_handled()
            loop.call_soon_threadsafe(service.may_read.set)
            return call.wait_answered()

    loop = asyncio.get_running_loop()
    if not reads_late:
        service.may_read.set()
    async with listening as address:
        return await asyncio.to_thread(send, address)


CASES = [("native", fault) for fault in BROKEN]
# gRPC's core ends a call at once where a message is no gzip.
CASES += [(server, fault) for server in ("stock", "grpcio") for fault, (_, status) in BROKEN.items() if status == b"8"]


@pytest.mark.parametrize(("server", "fault"), CASES)
@pytest.mark.parametrize("method", ["Chat", "Reader", "Plain"])
async def test_messages_before_one_that_breaks_the_rules_arrive_first(server: str, method: str, fault: str) -> None:
    broken, status = BROKEN[fault]
    service = Service()
    pieces = [frame(b"1") + frame(b"2") + broken]
    answer = await sent(listening(server, service), service, method, pieces, reads_late=method != "Plain")
    assert (service.got, answer.status) == ([b"1", b"2"], status)
    # gRPC's core ends the call at once, and drops answers that it has not sent: of none, the status is in the headers.
    sent_in_time = None if server == "native" else len(answer.messages)
    assert answer.messages == [(0, b"1"), (0, b"2")][:sent_in_time]


@pytest.mark.parametrize("reads_late", [True, False])
@pytest.mark.parametrize("cut", ["one piece", "each by itself"])
async def test_it_is_the_same_however_the_frames_are_cut(reads_late: bool, cut: str) -> None:
    service = Service()
    parts = [frame(b"1"), frame(b"2"), TOO_LARGE, frame(b"3")]
    pieces = [b"".join(parts)] if cut == "one piece" else parts
    answer = await sent(listening("native", service), service, "Reader", pieces, reads_late=reads_late)
    assert (service.got, service.ends) == ([b"1", b"2"], ["cancelled"])
    assert (answer.messages, answer.status) == ([(0, b"1"), (0, b"2")], b"8")


@pytest.mark.parametrize("server", ["stock", "native", "grpcio"])
async def test_a_handler_that_reads_no_further_answers(server: str) -> None:
    service = Service()
    pieces = [frame(b"1") + TOO_LARGE]
    answer = await sent(listening(server, service), service, "First", pieces, reads_late=True)
    assert (answer.messages, answer.status) == ([(0, b"1")], b"0")
