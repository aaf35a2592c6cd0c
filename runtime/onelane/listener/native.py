"""The listener on our own wire: one asyncio Protocol for each connection, libnghttp2 under it, no thread beside.

Back-pressure reaches both ends: a handler that does not read lets the client's window run dry, and `send` waits while
the client does not read. What is written in one turn of the loop leaves in one piece.
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, cast

from onelane import ports
from onelane.call import OK, Call, Metadata
from onelane.config import App
from onelane.errors import PortTaken
from onelane.listener import Bind, Serving
from onelane.methods import Method
from onelane.wire import grpc
from onelane.wire.grpc import BadWire
from onelane.wire.http2 import Limits
from onelane.wire.server import Ended, Gone, Messages, Opened, ServerConnection, Stream, Writable

HELD_BACK = 64 * 1024
"""Bytes of one stream that may wait for the client to read; `send` waits with more."""
BACKLOG = 1024
GOODBYE_S = 0.05
"""Between the notice that a connection will close and its close: what the client has sent meanwhile is still taken."""


class NativeCall(Call):
    """A call whose bytes come through our own wire."""

    __slots__ = ("_arrived", "_callbacks", "_connection", "_deadline_at", "_messages", "expired", "is_done", "stream")

    def __init__(self, connection: "_Connection", stream: Stream, method: str, metadata: Metadata) -> None:
        super().__init__(method, metadata, trusted=connection.trusted)
        self.stream = stream
        self.is_done = False
        self.expired = False
        self._connection = connection
        self._deadline_at: float | None = None
        self._messages: deque[bytes] = deque()
        self._arrived: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[Any], None]] = []

    async def receive(self) -> bytes | None:
        while not self._messages:
            if self.stream.ended:
                return None
            if self.stream.unread:
                # Nothing else is held of this stream, so a message larger than its window can come whole.
                self._connection.consumed(self.stream)
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        return self._messages.popleft()

    async def send(self, message: bytes) -> None:
        self._connection.wire.send_message(self.stream, message)
        self._connection.flush_soon()
        await self._connection.wait_room(self.stream)

    async def send_initial(self, metadata: Metadata) -> None:
        self._connection.wire.send_headers(self.stream, tuple(metadata))
        self._connection.flush_soon()

    def time_remaining(self) -> float | None:
        return None if self._deadline_at is None else max(0.0, self._deadline_at - monotonic())

    def peer(self) -> str:
        return self._connection.peer

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        return self.is_done and self.stream.id not in self._connection.wire.streams

    def done(self) -> bool:
        return self.is_done

    # What the connection does.

    def set_deadline(self, seconds: float) -> None:
        self._deadline_at = monotonic() + seconds

    def arrived(self, messages: list[bytes]) -> None:
        self._messages += messages
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def end(self) -> None:
        self.is_done = True
        for callback in self._callbacks:
            callback(self)


class _Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, listener: "NativeListener", *, trusted: bool) -> None:
        self.trusted = trusted
        self.peer = ""
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self.wire = ServerConnection(listener.limits, max_message=listener.max_message)
        self._transport: asyncio.Transport
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._flushing = False
        self._paused = False
        self._closing = False
        self._waiting: set[asyncio.Future[None]] = set()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports derive from nothing of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self.peer = ports.peer(transport)
        self._listener.connections.add(self)
        self._flush()

    def data_received(self, data: bytes) -> None:
        for event in self.wire.receive(data):
            match event:
                case Opened(stream):
                    self._opened(stream)
                case Messages(stream, messages):
                    self._arrived(stream, messages)
                case Ended(stream):
                    self._ended(stream)
                case Writable():
                    self._wake()
                case Gone():
                    self._closing = True
        self.flush_soon()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.connections.discard(self)
        for task in list(self._tasks.values()):
            task.cancel()
        self._wake()

    # Writing

    def flush_soon(self) -> None:
        """Write what is ready at the end of this turn of the loop, in one piece."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport.is_closing():
            return
        if not self._paused and (data := self.wire.take()):
            self._transport.write(data)
        if self._closing and not self._tasks:
            self._transport.close()

    async def wait_room(self, stream: Stream) -> None:
        """Wait while the client does not read what was sent."""
        while (self._paused or self.wire.http2.queued(stream.id) > HELD_BACK) and not self._transport.is_closing():
            waiting = self._loop.create_future()
            self._waiting.add(waiting)
            try:
                await waiting
            finally:
                self._waiting.discard(waiting)

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def consumed(self, stream: Stream) -> None:
        self.wire.consumed(stream, stream.unread)
        self.flush_soon()

    # Calls

    def _opened(self, stream: Stream) -> None:
        method = self._listener.methods.get(stream.path)
        if method is None:
            path = stream.path.decode("latin-1")
            self.wire.finish(stream, grpc.UNIMPLEMENTED, f"Method not found: {path}")
        elif method.request_streaming:
            self._start(stream, method, None)
        else:
            stream.reads_at_once = True

    def _arrived(self, stream: Stream, messages: list[bytes]) -> None:
        call = stream.call
        if call is not None:
            call.arrived(messages)
            return
        method = self._listener.methods.get(stream.path)
        if method is None or stream.id not in self.wire.streams:
            return
        if len(messages) == 1:
            self._start(stream, method, messages[0])
        else:
            self.wire.finish(stream, grpc.INTERNAL, f"expected one message, received {len(messages)}")

    def _start(self, stream: Stream, method: Method, request: bytes | None) -> None:
        try:
            call = NativeCall(self, stream, method.path, stream.metadata())
            if timeout := stream.value(b"grpc-timeout"):
                call.set_deadline(grpc.read_timeout(timeout))
        except BadWire as error:
            self.wire.finish(stream, error.code, str(error))
            return
        stream.call = call
        self._tasks[stream.id] = self._loop.create_task(self._run(call, method, request))

    async def _run(self, call: NativeCall, method: Method, request: bytes | None) -> None:
        remaining = call.time_remaining()
        timer = None if remaining is None else self._loop.call_later(remaining, self._expire, call)
        try:
            reply = await self._listener.serving.serve(method, call, request)
            self._answer(call, method, reply)
        except asyncio.CancelledError:
            # The lane has noted it; there is nobody to answer, or the deadline has.
            pass
        finally:
            if timer is not None:
                timer.cancel()
            self._tasks.pop(call.stream.id, None)
            call.end()
            self.flush_soon()

    def _answer(self, call: NativeCall, method: Method, reply: bytes) -> None:
        stream = call.stream
        if stream.id not in self.wire.streams:
            return
        unary = not method.response_streaming
        if call.code_now is OK:
            if unary and not call.trailers and not stream.sent_headers:
                self.wire.answer(stream, reply)
                return
            if unary:
                self.wire.send_message(stream, reply)
            else:
                self.wire.send_headers(stream)
        self.wire.finish(stream, call.code_now.value[0], call.details_now, tuple(call.trailers))

    def _expire(self, call: NativeCall) -> None:
        call.expired = True
        if call.stream.id in self.wire.streams:
            self.wire.finish(call.stream, grpc.DEADLINE_EXCEEDED, "Deadline Exceeded")
        self._ended(call.stream)
        self.flush_soon()

    def _ended(self, stream: Stream) -> None:
        if (task := self._tasks.get(stream.id)) is not None:
            task.cancel()

    # The end

    async def close(self) -> None:
        """Say goodbye, finish what is under way, close. Cancelled, it closes at once."""
        try:
            self.wire.http2.shutdown_notice()
            self._flush()
            await asyncio.sleep(GOODBYE_S)
            self.wire.http2.go_away()
            self._flush()
            while self._tasks:
                await asyncio.wait(self._tasks.values())
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._closing = True
            self._flush()


class NativeListener:
    """See `onelane.listener.Listener`."""

    def __init__(self) -> None:
        self.serving: Serving
        self.methods: dict[bytes, Method] = {}
        self.limits = Limits()
        self.max_message = 0
        self.connections: set[_Connection] = set()
        self._servers: list[asyncio.Server] = []

    async def start(self, binds: Sequence[Bind], serving: Serving, settings: App) -> None:
        self.serving = serving
        self.methods = {method.path.encode(): method for method in serving.methods()}
        self.limits = Limits(max_streams=settings.max_streams)
        self.max_message = settings.max_message_bytes
        async with contextlib.AsyncExitStack() as bound:
            servers = []
            for bind in binds:
                server = await self._listen(bind)
                bound.push_async_callback(_close, server)
                servers.append(server)
            bound.pop_all()
        self._servers = servers
        for server in servers:
            await server.start_serving()

    async def _listen(self, bind: Bind) -> asyncio.Server:
        loop = asyncio.get_running_loop()

        def connected() -> _Connection:
            return _Connection(self, trusted=bind.trusted)

        try:
            if bind.address.startswith("unix:"):
                path = bind.address.removeprefix("unix:")
                return await loop.create_unix_server(connected, path, backlog=BACKLOG, start_serving=False)
            return await loop.create_server(connected, sock=_socket(bind), backlog=BACKLOG, start_serving=False)
        except OSError as error:
            raise PortTaken(bind.address, "another process") from error

    async def stop(self, grace_s: float) -> None:
        for server in self._servers:
            server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s), asyncio.TaskGroup() as tasks:
                for connection in list(self.connections):
                    tasks.create_task(connection.close())
        for connection in list(self.connections):
            connection._transport.abort()


def _socket(bind: Bind) -> socket.socket:
    host, port = ports.split(bind.address)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bind.shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


async def _close(server: asyncio.Server) -> None:
    server.close()
