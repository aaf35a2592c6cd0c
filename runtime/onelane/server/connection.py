"""One client's connection on our own wire: an asyncio Protocol over `onelane.wire.server`, and the calls on it.

Back-pressure reaches both ends: a handler that does not read lets the client's window run dry, and `send` waits while
the client does not read. What is written in one turn of the loop leaves in one piece.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import grpc

from onelane.core.turns import patience_s
from onelane.server import sockets, tls
from onelane.server.call import OK, Call, Metadata
from onelane.server.listener import Work
from onelane.server.methods import Method
from onelane.server.steering import Seen
from onelane.wire import framing
from onelane.wire.framing import BadWire
from onelane.wire.server import Ended, Gone, Messages, Opened, Pong, ServerConnection, Stream, Writable

if TYPE_CHECKING:
    from onelane.server.native_listener import NativeListener

HELD_BACK = 64 * 1024
"""Bytes of one stream that may wait for the client to read; `send` waits with more."""
GOODBYE_S = 1.0
"""How long the client may take to answer the notice that its connection will close."""
LINGER_S, LINGER_BYTES = 0.5, 64 * 1024
"""How long the client may take to close a connection on which all is said, and what it may send meanwhile."""


class NativeCall(Call):
    """A call whose bytes come through our own wire."""

    __slots__ = (
        "_arrived",
        "_callbacks",
        "_connection",
        "_deadline_at",
        "_gzip",
        "_gzip_next",
        "_has_all",
        "_messages",
        "has_request",
        "is_cancelled",
        "is_done",
        "is_open",
        "slot",
        "stream",
        "task",
    )

    def __init__(self, connection: "Connection", stream: Stream, method: Method, metadata: Metadata) -> None:
        super().__init__(method.path, metadata, trusted=connection.trusted)
        self.stream = stream
        self.is_open = method.response_streaming
        """Its answers are a stream."""
        self.is_done = False
        self.is_cancelled = False
        """The client has ended it, or its deadline has."""
        self.has_request = False
        """Of a call that takes one message: the lane has it, so a further one breaks the protocol."""
        self.slot = 0
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._deadline_at: float | None = None
        self._messages: deque[bytes] | None = None
        self._arrived: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[Any], None]] | None = None
        self._has_all = False
        """The client's last word has come; `stream.ended` runs ahead of the events."""
        self._gzip = False
        self._gzip_next = True

    async def receive(self) -> bytes | None:
        if self._messages is None:
            self._messages = deque()
        while not self._messages:
            if self._has_all:
                return None
            if self.stream.unread:
                self._connection.consumed(self.stream)
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        return self._messages.popleft()

    async def send(self, message: bytes) -> None:
        self._connection.wire.send_message(self.stream, self.framed(message))
        self._connection.flush_soon()
        await self._connection.wait_room(self.stream)

    async def send_initial(self, metadata: Metadata) -> None:
        self._connection.wire.send_headers(self.stream, tuple(metadata))
        self._connection.flush_soon()

    def time_remaining(self) -> float | None:
        return None if self._deadline_at is None else max(0.0, self._deadline_at - monotonic())

    @property
    def deadline_at(self) -> float | None:
        return self._deadline_at

    def answer(self, reply: bytes) -> None:
        self._connection.answer(self, reply)

    def proceed(self) -> None:
        self._connection.proceed(self)

    def peer(self) -> str:
        return self._connection.peer

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return self._connection.auth

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        return self.is_cancelled

    def done(self) -> bool:
        return self.is_done

    def set_compression(self, compression: grpc.Compression) -> None:
        if compression is grpc.Compression.Gzip and b"gzip" in self.stream.value(b"grpc-accept-encoding"):
            self._gzip = True
            self.stream.encoding = b"gzip"

    def disable_next_message_compression(self) -> None:
        self._gzip_next = False

    # What the connection does.

    def framed(self, message: bytes) -> bytes:
        """`message` as it goes on the wire."""
        compress, self._gzip_next = self._gzip and self._gzip_next, True
        return framing.frame_gzip(message) if compress else framing.frame(message)

    def set_deadline(self, at: float, slot: int) -> None:
        self._deadline_at, self.slot = at, slot

    def expire(self) -> None:
        self._connection.expired(self)

    def arrived(self, messages: list[bytes], *, last: bool) -> None:
        self._has_all = self._has_all or last
        if self._messages is None:
            self._messages = deque()
        self._messages += messages
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def end(self) -> None:
        self.is_done = True
        if self._callbacks is not None:
            for callback in self._callbacks:
                callback(self)


class Connection(asyncio.Protocol):
    """See the module. Owned by its listener."""

    def __init__(
        self, listener: "NativeListener", *, trusted: bool = False, steers: bool = False, replay: Seen | None = None
    ) -> None:
        """steers: it may belong to a sibling. replay: what a sibling has read of it, having sent its SETTINGS alone."""
        self.trusted = trusted
        self.peer = ""
        self.auth: Mapping[str, Iterable[bytes]] = {}
        self.wire = ServerConnection(listener.limits, max_message=listener.max_message, joins=True)
        self.opened_at = self.heard_at = monotonic()
        self.pinged_at = 0.0
        """When we asked whether the client is there; 0 unless we wait for its answer."""
        self.tasks: set[asyncio.Task[None]] = set()
        """The calls under way."""
        self._listener = listener
        self._loop = listener.loop
        self._transport: asyncio.Transport
        self._seen: bytes | None = b"" if steers else None
        """All that was read, while it is open which shard this connection belongs to; None from then on."""
        self._answered = 0
        """How much of it has been answered."""
        self._held: list[Any] = []
        """The events in it."""
        self._replay = replay
        self._flushing = False
        self._paused = False
        self._closing = False
        self._is_parting = False
        self._waiting: set[asyncio.Future[None]] | None = None
        self._goodbye: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports derive from nothing of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self.peer = sockets.peer(transport)
        if not self._listener.made(self):
            self._transport.abort()
            return
        if (secured := transport.get_extra_info("ssl_object")) is not None:
            if secured.selected_alpn_protocol() != "h2":
                self._transport.abort()
                return
            self.auth = tls.auth_context(secured)
        if self._replay is not None:
            self._go_on(self._replay)
        else:
            self._flush()

    def data_received(self, data: bytes) -> None:
        self.heard_at = monotonic()
        events = self.wire.receive(data)
        if self._seen is not None:
            self._seen += data
            self._held += events
            self._decide()
        else:
            self._handle(events)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        self._listener.lost(self)
        for stream in list(self.wire.streams.values()):
            self._ended(stream)
        self._wake()
        for waiting in (self._goodbye, self._closed):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    # Where it belongs

    def _decide(self) -> None:
        """Hand this connection over, keep it, or wait for more of its first request."""
        assert self._seen is not None
        owner = self._listener.owner_of(self._held)
        if owner is None and len(self._seen) < self._listener.max_seen:
            if self.wire.streams:
                self._listener.undecided(self)
            else:
                # No request yet: greetings and pings are answered, so that a client may wait as long as it likes.
                self._flush()
                self._answered = len(self._seen)
            return
        fd = self._transport.get_extra_info("socket").fileno()
        if owner and self._listener.hand_over(owner, fd, Seen(self._seen, self._answered)):
            self._listener.decided(self)
            self._closing = True
            self._transport.abort()
            return
        self.keep()

    def _go_on(self, seen: Seen) -> None:
        """Go on where a sibling has left off. What it has sent, this end must not send again."""
        self.wire.take()
        self._replay = None
        if seen.answered:
            self.wire.receive(seen.data[: seen.answered])
            self.wire.take()
        self.data_received(seen.data[seen.answered :])

    def keep(self) -> None:
        """Serve it here."""
        if self._seen is None:
            return
        self._listener.decided(self)
        held, self._held, self._seen = self._held, [], None
        self._handle(held)

    def _handle(self, events: list[Any]) -> None:
        for event in events:
            kind = type(event)
            if kind is Messages:
                self._arrived(event.stream, event.messages, last=event.last)
            elif kind is Opened:
                self._opened(event.stream, event.message)
            elif kind is Ended:
                self._ended(event.stream)
            elif kind is Writable:
                self._wake()
            elif kind is Pong:
                self.pinged_at = 0.0
                if self._goodbye is not None and not self._goodbye.done():
                    self._goodbye.set_result(None)
            elif kind is Gone:
                self._closing = True
        # Not at once: what all connections have to say in one turn leaves together, and wakes their peers once.
        self.flush_soon()

    # Writing

    def flush_soon(self) -> None:
        """Write what is ready at the end of this turn of the loop, in one piece."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport.is_closing() or self._is_parting:
            return
        if not self._paused and (data := self.wire.take()):
            self._transport.write(data)
            if self._waiting:
                self._wake()
        if self._closing or self.wire.http2.is_over:
            if not self.tasks and not self.wire.streams:
                self._part()
            elif self.wire.http2.is_over:
                self._transport.close()

    def _part(self) -> None:
        """Close once the client has closed its side: closed on what it may have sent and nobody has read, the
        connection would be reset, and our last words with it."""
        if not self._transport.can_write_eof() or self._transport.get_write_buffer_size():
            # TLS says goodbye by itself; and who has not read yet is not one who has gone on.
            self._transport.close()
            return
        try:
            self._transport.write_eof()
        except OSError:
            # The client was faster.
            self._transport.close()
            return
        self._is_parting = True
        self._transport.set_protocol(_Lingering(self, self._transport))

    async def wait_room(self, stream: Stream) -> None:
        """Wait while the client does not read what was sent."""
        while (self._paused or self.wire.http2.queued(stream.id) > HELD_BACK) and not self._transport.is_closing():
            if self._waiting is None:
                self._waiting = set()
            waiting = self._loop.create_future()
            self._waiting.add(waiting)
            try:
                await waiting
            finally:
                self._waiting.discard(waiting)

    def _wake(self) -> None:
        for waiting in self._waiting or ():
            if not waiting.done():
                waiting.set_result(None)

    def consumed(self, stream: Stream) -> None:
        self.wire.consumed(stream, stream.unread)
        self.flush_soon()

    # Calls

    def _opened(self, stream: Stream, message: bytes | None) -> None:
        method = self._listener.methods.get(stream.path)
        if method is None:
            path = stream.path.decode("latin-1")
            self.wire.finish(stream, framing.UNIMPLEMENTED, f"Method not found: {path}")
            return
        if not self._accept(stream, method):
            return
        if method.request_streaming:
            self._take(stream.call, self._listener.serving.arrive(method, stream.call, None))
            if message is not None and stream.call is not None:
                stream.call.arrived([message], last=True)
        elif message is not None:
            self._take(stream.call, self._listener.serving.arrive(method, stream.call, message))

    def _arrived(self, stream: Stream, messages: list[bytes], *, last: bool) -> None:
        call = stream.call
        if call is None or stream.id not in self.wire.streams:
            return
        method = self._listener.methods[stream.path]
        if method.request_streaming:
            call.arrived(messages, last=last)
            return
        # Wherever the call is by now: not begun, waiting for its turn, running, or forwarded.
        received = len(messages) + call.has_request
        if received != 1:
            self._cut_off(call, framing.UNIMPLEMENTED, f"expected one message, received {received}")
        elif messages:
            call.has_request = True
            self._take(call, self._listener.serving.arrive(method, call, messages[0]))

    def _take(self, call: NativeCall, work: Work) -> None:
        """Start the work of a call; where there is none it is answered, or waits for its turn."""
        if work is not None:
            task = self._listener.eager.start(work)
            if task is not None and not call.is_done:
                call.task = task
                self.tasks.add(task)
        elif call.waits is not None:
            self._wait(call)

    def _wait(self, call: NativeCall) -> None:
        """A call waits for its turn, without a task, and gives up a little before its deadline."""
        remaining = call.time_remaining()
        if remaining is not None:
            self._set_deadline(call, monotonic() + patience_s(remaining))

    def proceed(self, call: NativeCall) -> None:
        """The turn of a call has come."""
        if call.deadline_at is not None:
            self._set_deadline(call, call.deadline_at)
        self._take(call, self._listener.serving.resume(call))
        self.flush_soon()

    def _set_deadline(self, call: NativeCall, at: float) -> None:
        deadlines = self._listener.deadlines
        deadlines.remove(call.slot, call)
        call.slot = deadlines.add(at, call)

    def _accept(self, stream: Stream, method: Method) -> bool:
        """Make the call of a stream that has begun; False where that is answered already."""
        try:
            metadata, timeout = stream.metadata()
        except BadWire as error:
            self.wire.finish(stream, error.code, str(error))
            return False
        if timeout is not None and timeout <= 0:
            self.wire.finish(stream, framing.DEADLINE_EXCEEDED, "Deadline Exceeded")
            return False
        call = stream.call = NativeCall(self, stream, method, metadata)
        if timeout is not None:
            at = monotonic() + timeout
            call.set_deadline(at, self._listener.deadlines.add(at, call))
        return True

    def answer(self, call: NativeCall, reply: bytes) -> None:
        """A call has ended: say so, unless there is nobody to hear it."""
        stream = call.stream
        if not call.is_cancelled:
            if call.code_now is OK and not (call.trailers or call.is_open or stream.sent_headers or stream.encoding):
                self.wire.answer(stream, reply)
            else:
                try:
                    self._send_answer(call, reply)
                except BadWire as error:
                    self.wire.finish(stream, error.code, str(error))
        self._left(call)

    def _left(self, call: NativeCall) -> None:
        if call.task is not None:
            self.tasks.discard(call.task)
            call.task = None
        # A call, its stream and its task know each other: parted here, they need no garbage collector.
        call.stream.call = None
        if call.slot:
            self._listener.deadlines.remove(call.slot, call)
        call.end()
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _send_answer(self, call: NativeCall, reply: bytes) -> None:
        stream = call.stream
        if call.code_now is OK:
            if call.is_open:
                self.wire.send_headers(stream)
            else:
                self.wire.send_message(stream, call.framed(reply))
        self.wire.finish(stream, call.code_now.value[0], call.details_now, tuple(call.trailers))

    def expired(self, call: NativeCall) -> None:
        """The deadline of a call has passed."""
        details = "Deadline Exceeded"
        if call.waits is not None:
            self._listener.serving.withdraw(call, late=True)
            details = call.details_now
        self._cut_off(call, framing.DEADLINE_EXCEEDED, details)

    def _cut_off(self, call: NativeCall, code: int, details: str) -> None:
        """End a call with a status of our own, whatever its handler or its owner does."""
        if call.stream.id in self.wire.streams:
            self.wire.finish(call.stream, code, details)
        self._ended(call.stream)
        self.flush_soon()

    def _ended(self, stream: Stream) -> None:
        call = stream.call
        if call is None or call.is_done:
            return
        call.is_cancelled = True
        if call.waits is not None:
            self._listener.serving.withdraw(call, late=False)
        if call.sent is not None:
            # Its end comes back at once, and lets go of it.
            call.sent()
        elif call.task is not None:
            call.task.cancel()
        elif not call.is_done:
            self._left(call)

    # The end

    def ping(self, now: float) -> None:
        """Ask whether the client is there."""
        self.pinged_at = now
        self.wire.http2.ping(b"keepaliv")
        self._flush()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once, without a word."""
        self._transport.abort()

    def close(self) -> None:
        """Write what is left, and close."""
        self._flush()
        self._transport.close()

    def closed(self) -> "asyncio.Future[None]":
        """Done once this connection, which is open now, has closed."""
        self._closed = self._closed or self._loop.create_future()
        return self._closed

    async def say_goodbye(self) -> None:
        """Send the client elsewhere, and close when what it has asked meanwhile is answered. Fails no call.

        Returns when the client knows, or has not answered for GOODBYE_S. Source: RFC 9113, section 6.8.
        """
        self.keep()
        if self._closing or self._goodbye is not None:
            return
        self._goodbye = self._loop.create_future()
        self.wire.http2.shutdown_notice()
        self.wire.http2.ping(b"goodbye!")
        self._flush()
        try:
            await asyncio.wait([self._goodbye], timeout=GOODBYE_S)
        finally:
            # Also where we are cut short: what we have not read the client may then send elsewhere.
            self.wire.http2.go_away()
            self._closing = True
            self._flush()


class _Lingering(asyncio.Protocol):
    """In the place of a connection that has said all: reads, so that it is not reset, and waits for its end."""

    def __init__(self, connection: Connection, transport: asyncio.Transport) -> None:
        self._connection = connection
        self._transport = transport
        self._left = LINGER_BYTES
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, transport.close)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        self._connection.connection_lost(error)
