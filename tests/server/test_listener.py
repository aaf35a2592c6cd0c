"""Every listener keeps the same contract: the one on grpc.aio, and the one in memory that ships for tests."""

import asyncio
import contextlib
import gc
import socket
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import uvloop
from onelane.client.channel import dial
from onelane.config import App
from onelane.core import keys
from onelane.errors import PortTaken
from onelane.server import sockets
from onelane.server.call import Call
from onelane.server.grpcio_listener import GrpcioListener
from onelane.server.listener import Bind, Serving
from onelane.server.methods import Method
from onelane.server.native_listener import NativeListener
from onelane.server.steering import FirstBytes
from onelane.testing.listener import MemoryListener, Outcome
from onelane.wire.client import ClientConnection
from onelane.wire.http2 import Limits

from tests.bounds import BOUND_S
from tests.ports import reserved

SETTINGS = App(services=("a:B",), listen="127.0.0.1:0", max_message_bytes=2048)
Handler = Callable[[Call, bytes | None], Awaitable[bytes]]


class Handlers(Serving):
    """A lane that does what a test says."""

    def __init__(self) -> None:
        self.handlers: dict[str, tuple[Method, Handler]] = {}

    def add(self, name: str, handler: Handler, *, up: bool = False, down: bool = False) -> None:
        method = Method(f"/t.T/{name}", handler, True, up, down, None, None, keys.ANY)
        self.handlers[method.path] = (method, handler)

    def methods(self) -> Sequence[Method]:
        return [method for method, _ in self.handlers.values()]

    async def serve(self, method: Method, call: Call, request: bytes | None) -> bytes:
        return await self.handlers[method.path][1](call, request)


async def memory_call(listener: Any, address: str, path: str, requests: list[bytes], metadata: Any = ()) -> Outcome:
    outcome: Outcome = await listener.call(address, path, requests, metadata=metadata)
    return outcome


async def grpcio_call(listener: Any, address: str, path: str, requests: list[bytes], metadata: Any = ()) -> Outcome:
    async with grpc.aio.insecure_channel(address) as channel:
        method = listener.methods_for_test.get(path)
        up, down = (method.request_streaming, method.response_streaming) if method else (False, False)
        shape = f"{'stream' if up else 'unary'}_{'stream' if down else 'unary'}"
        send: Any = getattr(channel, shape)(path)
        call = send(_each(requests) if up else requests[0], metadata=metadata)
        answers: list[bytes] = []
        with contextlib.suppress(grpc.aio.AioRpcError):
            answers = [message async for message in call] if down else [await call]
        initial = tuple(await call.initial_metadata() or ())
        return Outcome(await call.code(), await call.details(), answers, initial, tuple(await call.trailing_metadata()))


async def _each(requests: list[bytes]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


class Subject:
    """One listener, started on one address, and a client of it."""

    def __init__(self, kind: str) -> None:
        self.handlers = Handlers()
        self.listener: Any = {"memory": MemoryListener, "grpcio": GrpcioListener, "native": NativeListener}[kind]()
        self._call = memory_call if kind == "memory" else grpcio_call
        self.kind = kind
        self.address = ""
        self.ports = contextlib.ExitStack()

    async def start(self) -> None:
        self.address = f"127.0.0.1:{self.ports.enter_context(reserved())}"
        self.listener.methods_for_test = {m.path: m for m in self.handlers.methods()}
        await self.listener.start([Bind(self.address)], self.handlers, SETTINGS)

    async def call(self, name: str, *requests: bytes, metadata: Any = ()) -> Outcome:
        return await self._call(self.listener, self.address, f"/t.T/{name}", list(requests), metadata)


@pytest.fixture(params=["memory", "grpcio", "native"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    subject = Subject(request.param)
    with subject.ports:
        yield subject
        await subject.listener.stop(0)


async def echo(call: Call, request: bytes | None) -> bytes:
    return request or b""


async def test_a_unary_call_is_answered(subject: Subject) -> None:
    subject.handlers.add("Echo", echo)
    await subject.start()
    outcome = await subject.call("Echo", b"hi")
    assert (outcome.code, outcome.messages) == (grpc.StatusCode.OK, [b"hi"])


async def test_an_unknown_method_is_unimplemented(subject: Subject) -> None:
    subject.handlers.add("Echo", echo)
    await subject.start()
    assert (await subject.call("Nope", b"")).code is grpc.StatusCode.UNIMPLEMENTED


async def test_streams_pass_in_both_directions(subject: Subject) -> None:
    async def chat(call: Call, _: bytes | None) -> bytes:
        while (message := await call.receive()) is not None:
            await call.send(message.upper())
        return b""

    async def collect(call: Call, _: bytes | None) -> bytes:
        parts = []
        while (message := await call.receive()) is not None:
            parts.append(message)
        return b",".join(parts)

    subject.handlers.add("Chat", chat, up=True, down=True)
    subject.handlers.add("Collect", collect, up=True)
    await subject.start()
    assert (await subject.call("Chat", *[b"a"] * 50)).messages == [b"A"] * 50
    assert (await subject.call("Collect", b"a", b"b")).messages == [b"a,b"]


async def test_metadata_status_and_trailers_pass(subject: Subject) -> None:
    async def fail(call: Call, _: bytes | None) -> bytes:
        await call.send_initial_metadata((("x-first", dict(call.metadata)["x-sent"]),))
        call.trailers = (("x-last", "2"), ("x-bin", b"\xff"))
        call.fail(grpc.StatusCode.NOT_FOUND, "nöthing")
        return b""

    subject.handlers.add("Fail", fail)
    await subject.start()
    outcome = await subject.call("Fail", b"", metadata=(("x-sent", "1"),))
    assert (outcome.code, outcome.details, outcome.messages) == (grpc.StatusCode.NOT_FOUND, "nöthing", [])
    assert ("x-first", "1") in tuple(outcome.initial)
    assert tuple(outcome.trailers) == (("x-last", "2"), ("x-bin", b"\xff"))


async def test_a_message_over_the_limit_is_refused(subject: Subject) -> None:
    subject.handlers.add("Echo", echo)
    await subject.start()
    assert (await subject.call("Echo", b"x" * 4096)).code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_client_that_goes_cancels_the_handler(subject: Subject) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def hold(call: Call, _: bytes | None) -> bytes:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b""

    subject.handlers.add("Hold", hold)
    await subject.start()
    calling = asyncio.ensure_future(subject.call("Hold", b""))
    await began.wait()
    calling.cancel()
    await cancelled.wait()


async def test_stopping_lets_calls_finish_within_the_grace(subject: Subject) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    async def wait(call: Call, _: bytes | None) -> bytes:
        began.set()
        await go.wait()
        return b"done"

    subject.handlers.add("Wait", wait)
    await subject.start()
    calling = asyncio.ensure_future(subject.call("Wait", b""))
    await began.wait()
    stopping = asyncio.ensure_future(subject.listener.stop(10))
    await asyncio.sleep(0)
    go.set()
    assert (await calling).messages == [b"done"]
    await stopping


async def test_a_handler_that_ignores_its_cancellation_does_not_hold_up_a_stop(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onelane.server.listener.CANCELLED_S", 0.05)
    began, go = asyncio.Event(), asyncio.Event()

    async def stubborn(call: Call, _: bytes | None) -> bytes:
        began.set()
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()
        return b"too late"

    subject.handlers.add("Stubborn", stubborn)
    await subject.start()
    calling = asyncio.ensure_future(subject.call("Stubborn", b""))
    await began.wait()
    async with asyncio.timeout(BOUND_S):
        await subject.listener.stop(0.05)
        if subject.kind != "memory":
            assert (await calling).code is grpc.StatusCode.UNAVAILABLE
    go.set()
    await asyncio.gather(calling, return_exceptions=True)


async def test_a_client_that_closes_at_its_last_answer_does_not_hold_up_a_stop(subject: Subject) -> None:
    """Half of these clients close just when the listener begins to wait for that."""
    held: list[asyncio.Event] = []

    async def wait(call: Call, _: bytes | None) -> bytes:
        began.set()
        await held[-1].wait()
        return b"done"

    subject.handlers.add("Wait", wait)
    for _ in range(20):
        began = asyncio.Event()
        held.append(asyncio.Event())
        subject.listener = type(subject.listener)()
        await subject.start()
        calling = asyncio.ensure_future(subject.call("Wait", b""))
        await began.wait()
        stopping = asyncio.ensure_future(subject.listener.stop(30))
        await asyncio.sleep(0)
        held[-1].set()
        assert (await calling).messages == [b"done"]
        async with asyncio.timeout(BOUND_S):
            await stopping


async def test_an_address_in_use_is_refused_and_nothing_listens(subject: Subject) -> None:
    subject.handlers.add("Echo", echo)
    await subject.start()
    other = type(subject.listener)()
    with pytest.raises(PortTaken, match=subject.address):
        await other.start([Bind(subject.address)], subject.handlers, SETTINGS)


LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


@LOOPS
@pytest.mark.parametrize("turns", range(5))
def test_a_connection_that_comes_as_the_listener_stops_is_closed(
    tmp_path: Path, turns: int, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """asyncio never closes one that it has accepted, where its server is closed before it has a transport."""

    async def serve() -> None:
        listener = NativeListener()
        await listener.start([Bind(f"unix:{tmp_path}/sock")], Handlers(), SETTINGS)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{tmp_path}/sock")
            client.setblocking(False)
            for _ in range(turns):
                await asyncio.sleep(0)
            await listener.stop(0)
            async with asyncio.timeout(BOUND_S):
                # Its settings may come before its end.
                with contextlib.suppress(ConnectionResetError):
                    while await asyncio.get_running_loop().sock_recv(client, 1024):
                        pass

    with warnings.catch_warnings(record=True) as unclosed, asyncio.Runner(loop_factory=loop) as runner:
        warnings.simplefilter("always", ResourceWarning)
        runner.run(serve())
        gc.collect()
    assert [str(warning.message) for warning in unclosed] == []


@LOOPS
@pytest.mark.parametrize("turns", range(3))
def test_a_connection_that_is_handed_over_as_the_listener_stops_is_closed_and_not_written_to(
    turns: int, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """uvloop closes one whose transport is being made, and tells its protocol nothing."""
    faults: list[Any] = []

    async def serve() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        listener = NativeListener()
        await listener.start([Bind("127.0.0.1:0")], Handlers(), SETTINGS)
        handed_over, client = socket.socketpair()
        with client:
            listener._adopt(handed_over, FirstBytes(ClientConnection(Limits()).take(), 0))
            for _ in range(turns):
                await asyncio.sleep(0)
            await listener.stop(0)
            async with asyncio.timeout(BOUND_S):
                client.setblocking(False)
                while await asyncio.get_running_loop().sock_recv(client, 1024):
                    pass

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(serve())
    assert faults == []


@LOOPS
def test_a_socket_that_its_supervisor_holds_stays_where_it_is_when_the_listener_stops(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """From CPython 3.13 on, asyncio's servers remove the path of a Unix socket that was given to them."""
    path = tmp_path / "siblings.sock"
    held = sockets.listening(f"unix:{path}")

    async def serve() -> None:
        handlers, listener = Handlers(), NativeListener()
        handlers.add("Echo", echo)
        await listener.start([Bind(f"unix:{path}", trusted=True, sock=held.dup())], handlers, SETTINGS)
        async with dial(f"unix:{path}") as channel:
            assert await channel.unary_unary("/t.T/Echo")(b"hi", timeout=BOUND_S) == b"hi"
        await listener.drain()
        await listener.stop(0)

    with held, asyncio.Runner(loop_factory=loop) as runner:
        for _ in range(2):
            runner.run(serve())
            with socket.socket(socket.AF_UNIX) as client:
                # No server accepts now, but the path still leads to the held socket, whose backlog takes it.
                client.connect(str(path))
