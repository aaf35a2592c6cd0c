"""One client's connection on our own wire: an asyncio Protocol over `onelane.wire.server`, and the calls on it.

Back-pressure reaches both ends: a handler that does not read lets the client's window run dry, and `send` waits while
the client does not read. What is written in one turn of the loop leaves in one piece.
"""

import asyncio
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any, Protocol

from onelane.core import addresses
from onelane.core.deadlines import Deadlines
from onelane.core.turns import patience_s
from onelane.server import tls
from onelane.server.call import OK
from onelane.server.call_state import ARRIVED, DONE, FORWARDED, WAITING
from onelane.server.eager import Eager
from onelane.server.listener import Serving, Work
from onelane.server.methods import Method
from onelane.server.native_call import NativeCall
from onelane.server.steering import Seen
from onelane.wire import framing
from onelane.wire.driver import WireProtocol
from onelane.wire.framing import BadWire
from onelane.wire.http2 import Limits
from onelane.wire.server import Ended, Gone, Messages, Opened, Pong, ServerConnection, Stream, Writable

GOODBYE_S = 1.0
"""How long the client may take to answer the notice that its connection will close."""
LINGER_S, LINGER_BYTES = 0.5, 64 * 1024
"""How long the client may take to close a connection on which all is said, and what it may send meanwhile."""


class ConnectionOwner(Protocol):
    """A listener as its connections see it."""

    serving: Serving
    loop: asyncio.AbstractEventLoop
    deadlines: Deadlines
    eager: Eager
    methods: dict[bytes, Method]
    limits: Limits
    max_message: int
    max_seen: int

    def made(self, connection: "Connection") -> bool:
        """A client has connected; whether there is room."""

    def lost(self, connection: "Connection") -> None:
        """The connection has closed."""

    def owner_of(self, events: list[Any]) -> str | None:
        """The socket of the shard to which a connection that begins so belongs; "" for this one, None: not known."""

    def hand_over(self, owner: str, fd: int, seen: Seen) -> bool:
        """Steer the connection to a sibling; whether it was handed over."""

    def undecided(self, connection: "Connection") -> None:
        """Keep the connection here unless its first request soon says where it belongs."""

    def decided(self, connection: "Connection") -> None:
        """It is known where the connection belongs."""


class Connection(WireProtocol[ServerConnection]):
    """See the module. Owned by its listener."""

    def __init__(
        self, owner: ConnectionOwner, *, trusted: bool = False, steers: bool = False, replay: Seen | None = None
    ) -> None:
        """steers: it may belong to a sibling. replay: what a sibling has read of it, having sent its SETTINGS alone."""
        super().__init__(ServerConnection(owner.limits, max_message=owner.max_message, joins=True), owner.loop)
        self.trusted = trusted
        self.peer = ""
        self.auth: Mapping[str, Iterable[bytes]] = {}
        self.opened_at = self.heard_at = monotonic()
        self.pinged_at = 0.0
        """When we asked whether the client is there; 0 unless we wait for its answer."""
        self.tasks: set[asyncio.Task[None]] = set()
        """The calls under way."""
        self._owner = owner
        self._seen: bytes | None = b"" if steers else None
        """All that was read, while it is open which shard this connection belongs to; None from then on."""
        self._answered = 0
        """How much of it has been answered."""
        self._held: list[Any] = []
        """The events in it."""
        self._replay = replay
        self._goodbye: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] | None = None

    # asyncio.Protocol

    def connected(self) -> None:
        self.peer = addresses.peer(self.transport)
        if not self._owner.made(self):
            self.transport.abort()
            return
        if (secured := self.transport.get_extra_info("ssl_object")) is not None:
            if secured.selected_alpn_protocol() != "h2":
                self.transport.abort()
                return
            self.auth = tls.auth_context(secured)
        if self._replay is not None:
            self._go_on(self._replay)
        else:
            self.flush()

    def data_received(self, data: bytes) -> None:
        self.heard_at = monotonic()
        events = self.wire.receive(data)
        if self._seen is not None:
            self._seen += data
            self._held += events
            self._decide()
        else:
            self.handle(events)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closing = True
        self._owner.lost(self)
        for stream in list(self.wire.streams.values()):
            self._ended(stream)
        self.wake()
        for waiting in (self._goodbye, self._closed):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    # Where it belongs

    def _decide(self) -> None:
        """Hand this connection over, keep it, or wait for more of its first request."""
        assert self._seen is not None
        owner = self._owner.owner_of(self._held)
        if owner is None and len(self._seen) < self._owner.max_seen:
            if self.wire.streams:
                self._owner.undecided(self)
            else:
                # No request yet: greetings and pings are answered, so that a client may wait as long as it likes.
                self.flush()
                self._answered = len(self._seen)
            return
        fd = self.transport.get_extra_info("socket").fileno()
        if owner and self._owner.hand_over(owner, fd, Seen(self._seen, self._answered)):
            self._owner.decided(self)
            self.is_closing = True
            self.transport.abort()
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
        self._owner.decided(self)
        held, self._held, self._seen = self._held, [], None
        self.handle(held)

    def handle(self, events: list[Any]) -> None:
        for event in events:
            kind = type(event)
            if kind is Messages:
                self._arrived(event.stream, event.messages, last=event.last)
            elif kind is Opened:
                self._opened(event.stream, event.message)
            elif kind is Ended:
                self._ended(event.stream)
            elif kind is Writable:
                self.wake()
            elif kind is Pong:
                self.pinged_at = 0.0
                if self._goodbye is not None and not self._goodbye.done():
                    self._goodbye.set_result(None)
            elif kind is Gone:
                self.is_closing = True
        # Not at once: what all connections have to say in one turn leaves together, and wakes their peers once.
        self.flush_soon()

    # Writing

    def written(self) -> None:
        if not self.tasks and not self.wire.streams:
            self._part()
        elif self.is_over:
            self.transport.close()

    def _part(self) -> None:
        """Close once the client has closed its side: closed on what it may have sent and nobody has read, the
        connection would be reset, and our last words with it."""
        if not self.transport.can_write_eof() or self.transport.get_write_buffer_size():
            # TLS says goodbye by itself; and who has not read yet is not one who has gone on.
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:
            # The client was faster.
            self.transport.close()
            return
        self._is_shut = True
        self.transport.set_protocol(_Lingering(self, self.transport))

    def consumed(self, stream: Stream) -> None:
        self.wire.consumed(stream)
        self.flush_soon()

    # Calls

    def _opened(self, stream: Stream, message: bytes | None) -> None:
        method = self._owner.methods.get(stream.path)
        if method is None:
            path = stream.path.decode("latin-1")
            self.wire.finish(stream, framing.UNIMPLEMENTED, f"Method not found: {path}")
            return
        if not self._accept(stream, method):
            return
        if method.request_streaming:
            self._take(stream.call, self._owner.serving.arrive(method, stream.call, None))
            if message is not None and stream.call is not None:
                stream.call.arrived([message], last=True)
        elif message is not None:
            self._take(stream.call, self._owner.serving.arrive(method, stream.call, message))

    def _arrived(self, stream: Stream, messages: list[bytes], *, last: bool) -> None:
        call = stream.call
        if call is None or stream.id not in self.wire.streams:
            return
        method = self._owner.methods[stream.path]
        if method.request_streaming:
            call.arrived(messages, last=last)
            return
        # Wherever the call is by now: not begun, waiting for its turn, running, or forwarded.
        received = len(messages) + (call.state is not ARRIVED)
        if received != 1:
            self._cut_off(call, framing.UNIMPLEMENTED, f"expected one message, received {received}")
        elif messages:
            self._take(call, self._owner.serving.arrive(method, call, messages[0]))

    def _take(self, call: NativeCall, work: Work) -> None:
        """Start the work of a call; where there is none it is answered, or waits for its turn."""
        if work is not None:
            task = self._owner.eager.start(work)
            if task is not None and call.state is not DONE:
                call.task = task
                self.tasks.add(task)
        elif call.state is WAITING:
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
        self._take(call, self._owner.serving.resume(call))
        self.flush_soon()

    def _set_deadline(self, call: NativeCall, at: float) -> None:
        deadlines = self._owner.deadlines
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
            call.set_deadline(at, self._owner.deadlines.add(at, call))
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
            self._owner.deadlines.remove(call.slot, call)
        call.run_callbacks()
        if not self._will_flush:
            self._will_flush = True
            self._loop.call_soon(self.flush)

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
        if call.state is WAITING:
            self._owner.serving.withdraw(call, late=True)
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
        if call is None or call.state is DONE:
            return
        call.is_cancelled = True
        if call.state is WAITING:
            self._owner.serving.withdraw(call, late=False)
        elif call.state is FORWARDED and call.cancel_forward is not None:
            # The forward ends at once, and with it the call.
            call.cancel_forward()
        elif call.task is not None:
            call.task.cancel()
        elif call.state is ARRIVED:
            call.state = call.state.end
            self._left(call)

    # The end

    def send_keepalive(self, now: float) -> None:
        """Ask whether the client is there."""
        self.pinged_at = now
        super().ping(b"keepaliv")

    def pause_reading(self) -> None:
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def close(self) -> None:
        """Write what is left, and close."""
        self.flush()
        self.transport.close()

    def closed(self) -> "asyncio.Future[None]":
        """Done once this connection, which is open now, has closed."""
        self._closed = self._closed or self._loop.create_future()
        return self._closed

    async def say_goodbye(self) -> None:
        """Send the client elsewhere, and close when what it has asked meanwhile is answered. Fails no call.

        Returns when the client knows, or has not answered for GOODBYE_S. Source: RFC 9113, section 6.8.
        """
        self.keep()
        if self.is_closing or self._goodbye is not None:
            return
        self._goodbye = self._loop.create_future()
        self.announce_shutdown()
        super().ping(b"goodbye!")
        try:
            await asyncio.wait([self._goodbye], timeout=GOODBYE_S)
        finally:
            # Also where we are cut short: what we have not read the client may then send elsewhere.
            self.go_away()
            self.is_closing = True
            self.flush()


class _Lingering(asyncio.Protocol):
    """In the place of a connection that has said all: reads, so that it is not reset, and waits for its end."""

    def __init__(self, connection: Connection, transport: asyncio.Transport) -> None:
        self._connection = connection
        self.transport = transport
        self._left = LINGER_BYTES
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, transport.close)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        self._connection.connection_lost(error)
