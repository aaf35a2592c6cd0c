"""One client's connection on our own wire: an asyncio Protocol over `onelane.wire.server`, and the calls on it.

Back-pressure reaches both ends: a handler that does not read lets the client's window run dry, and `send` waits while
the client does not read. Frames written in one turn of the loop leave in one piece.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol

import grpc

from onelane.core import addresses
from onelane.core.deadlines import Deadlines
from onelane.core.hop import write_client
from onelane.core.turns import patience_s
from onelane.server import auth_context
from onelane.server.call import OK
from onelane.server.call_state import ARRIVED, DONE, FORWARDED, WAITING
from onelane.server.eager import Eager
from onelane.server.lingering import Lingering
from onelane.server.listener import Serving, Work
from onelane.server.methods import Method
from onelane.server.native_call import NativeCall
from onelane.server.steering import FirstBytes
from onelane.wire import framing
from onelane.wire.driver import WireProtocol
from onelane.wire.framing import BadWire, Headers
from onelane.wire.http2 import Limits
from onelane.wire.server import (
    Broken,
    ConnectionLost,
    Ended,
    Messages,
    Opened,
    Pong,
    ServerConnection,
    Stream,
    Writable,
)

log = logging.getLogger("onelane.connection")
GOAWAY_S = 1.0
"""How long the client may take to acknowledge a GOAWAY before its connection closes."""


class ConnectionOwner(Protocol):
    """A listener as its connections see it."""

    serving: Serving
    loop: asyncio.AbstractEventLoop
    deadlines: Deadlines
    eager: Eager
    methods: dict[bytes, Method]
    limits: Limits
    max_message: int
    compression: grpc.Compression
    max_first_bytes: int

    def opened(self, connection: "NativeConnection") -> bool:
        """A client has connected; whether there is room."""

    def lost(self, connection: "NativeConnection") -> None:
        """The connection has closed."""

    def owner_of(self, events: list[Any]) -> str | None:
        """The socket of the shard to which a connection that begins so belongs; "" for this one, None: not known."""

    def hand_over(self, owner: str, fd: int, first: FirstBytes) -> bool:
        """Steer the connection to a sibling; whether it was handed over."""

    def undecided(self, connection: "NativeConnection") -> None:
        """Keep the connection here unless its first request soon says where it belongs."""

    def decided(self, connection: "NativeConnection") -> None:
        """It is known where the connection belongs."""


class NativeConnection(WireProtocol[ServerConnection]):
    """See the module. Owned by its listener."""

    trusted = False
    """A sibling's, see `SiblingConnection`."""
    _identity: Headers | None = None

    def __init__(
        self,
        owner: ConnectionOwner,
        *,
        limits: Limits | None = None,
        steers: bool = False,
        replay: FirstBytes | None = None,
    ) -> None:
        """limits: by default the owner's. steers: a sibling may own it. replay: bytes that a sibling read before it
        handed the connection over."""
        wire = ServerConnection(limits or owner.limits, max_message=owner.max_message, joins=True)
        super().__init__(wire, owner.loop)
        self.peer = ""
        self.auth: Mapping[str, Iterable[bytes]] = auth_context.INSECURE
        self.opened_at = self.heard_at = monotonic()
        self.pinged_at = 0.0
        """When a keepalive ping was sent; 0 unless its answer is due."""
        self.tasks: set[asyncio.Task[None]] = set()
        """The calls under way."""
        self._owner = owner
        self._first_bytes: bytes | None = b"" if steers else None
        """Every byte read while the owner of the connection is not known; None from then on."""
        self._answered = 0
        """Of these, the bytes that have been answered."""
        self._first_events: list[Any] = []
        """The events in these bytes."""
        self._replay = replay
        self._goaway_acknowledged: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] | None = None

    # asyncio.Protocol

    def connected(self) -> None:
        self.peer = addresses.peer(self.transport)
        if not self._owner.opened(self):
            self.transport.abort()
            return
        if (secured := self.transport.get_extra_info("ssl_object")) is not None:
            if secured.selected_alpn_protocol() != "h2":
                self.transport.abort()
                return
            self.auth = auth_context.auth_context(secured)
        if self._replay is not None:
            self._replay_first_bytes(self._replay)
        else:
            self.flush()

    def data_received(self, data: bytes) -> None:
        self.heard_at = monotonic()
        events = self.wire.receive(data)
        if self._first_bytes is not None:
            self._first_bytes += data
            self._first_events += events
            self._decide()
        else:
            self.handle(events)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closing = True
        self._owner.lost(self)
        self._cancel_all()
        self.wake()
        for future in (self._goaway_acknowledged, self._closed):
            if future is not None and not future.done():
                future.set_result(None)

    # Which shard owns it

    def _decide(self) -> None:
        """Hand this connection over, keep it, or wait for more of its first request."""
        assert self._first_bytes is not None
        owner = self._owner.owner_of(self._first_events)
        if owner is None and len(self._first_bytes) < self._owner.max_first_bytes:
            if self.wire.streams:
                self._owner.undecided(self)
            else:
                # No request yet: SETTINGS and pings are answered, so that the client may wait as long as it likes.
                self.flush()
                self._answered = len(self._first_bytes)
            return
        fd = self.transport.get_extra_info("socket").fileno()
        if owner and self._owner.hand_over(owner, fd, FirstBytes(self._first_bytes, self._answered)):
            self._owner.decided(self)
            self.is_closing = True
            self.transport.abort()
            return
        self.keep()

    def _replay_first_bytes(self, first: FirstBytes) -> None:
        """Begin with the bytes that a sibling has read. Frames that the sibling has sent must not be sent again."""
        self.wire.take()
        self._replay = None
        if first.answered:
            self.wire.receive(first.data[: first.answered])
            self.wire.take()
        self.data_received(first.data[first.answered :])

    def keep(self) -> None:
        """Serve the connection in this shard."""
        if self._first_bytes is None:
            return
        self._owner.decided(self)
        events, self._first_events, self._first_bytes = self._first_events, [], None
        self.handle(events)

    def handle(self, events: list[Any]) -> None:
        for event in events:
            kind = type(event)
            try:
                if kind is Messages:
                    self._arrived(event.stream, event.messages, last=event.last)
                elif kind is Opened:
                    self._opened(event.stream, event.message)
                elif kind is Ended:
                    self._cancel(event.stream)
                elif kind is Broken:
                    self._broken(event.stream, event.code, event.details)
                elif kind is Writable:
                    self.wake()
                elif kind is Pong:
                    self.pinged_at = 0.0
                    if self._goaway_acknowledged is not None and not self._goaway_acknowledged.done():
                        self._goaway_acknowledged.set_result(None)
                elif kind is ConnectionLost:
                    self.is_closing = True
            except Exception:
                # A defect of ours: it ends its own call. Raised on, it would close the connection, with all its calls.
                self._event_failed(event)
        # Not at once: the answers of one turn of the loop leave together, and wake the client once.
        self.flush_soon()

    def _event_failed(self, event: Any) -> None:
        stream: Stream | None = getattr(event, "stream", None)
        if stream is not None:
            if stream.id in self.wire.streams:
                self.wire.finish(stream, framing.INTERNAL, "unexpected failure; the shard's log has the rest")
            self._cancel(stream)
        with suppress(Exception):
            log.exception("connection.event_failed peer=%s event=%s", self.peer, type(event).__name__)

    # Writing

    def written(self) -> None:
        if not self.tasks and not self.wire.streams:
            self._close_after_client()
        elif self.is_over:
            # Now, and not once the transport has closed: a handler that writes without a pause would not let it.
            self._cancel_all()
            self.transport.close()

    def _close_after_client(self) -> None:
        """Close once the client has closed its side. Closed with unread bytes in its buffer, the socket would send a
        reset, and the client might lose our last frames."""
        if not self.transport.can_write_eof() or self.transport.get_write_buffer_size():
            # TLS has a closing alert of its own; and a client that does not read will not close soon.
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:
            # The client has closed its side already.
            self.transport.close()
            return
        self._is_shut = True
        self.transport.set_protocol(Lingering(self.transport, self.connection_lost))

    def streams_requests(self, call: NativeCall) -> bool:
        return self._owner.methods[call.stream.path].request_streaming

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
            self._start(stream.call, self._owner.serving.arrive(method, stream.call, None))
            if message is not None and stream.call is not None:
                stream.call.arrived([message], last=True)
        elif message is not None:
            self._start(stream.call, self._owner.serving.arrive(method, stream.call, message))

    def _arrived(self, stream: Stream, messages: list[bytes], *, last: bool) -> None:
        call = stream.call
        if call is None or stream.id not in self.wire.streams:
            return
        call.arrived(messages, last=last)
        method = self._owner.methods[stream.path]
        if not method.request_streaming:
            self._begin_whole(call, method, last=last)

    def _broken(self, stream: Stream, code: int, details: str) -> None:
        """The client has broken gRPC's rules. A handler that reads its messages gets those before first."""
        call = stream.call
        if call is None:
            if stream.id in self.wire.streams:
                self.wire.finish(stream, code, details)
        elif self._owner.methods[stream.path].request_streaming:
            call.broken(code, details)
        else:
            self.cut_off(call, code, details)

    def _begin_whole(self, call: NativeCall, method: Method, *, last: bool) -> None:
        """Begin a call of one message once the client has half-closed: a second message is refused before a handler
        runs, wherever the frames were cut."""
        received = call.unread_messages
        if received > 1 or (last and not received):
            # Not how many: that depends on where the frames were cut.
            self.cut_off(
                call, framing.UNIMPLEMENTED, f"expected one message, received {'more' if received else 'none'}"
            )
        elif last:
            self._start(call, self._owner.serving.arrive(method, call, call.take_message()))

    def _start(self, call: NativeCall, work: Work) -> None:
        """Start the work of a call. None: the call is DONE, FORWARDED, or WAITING for its turn."""
        if work is not None:
            task = self._owner.eager.start(work)
            if task is not None and call.state is not DONE:
                call.task = task
                self.tasks.add(task)
        elif call.state is WAITING:
            self._wait(call)

    def _wait(self, call: NativeCall) -> None:
        """Let a call without a task wait for its turn, until a little before its deadline."""
        remaining = call.time_remaining()
        if remaining is not None:
            self._set_deadline(call, monotonic() + patience_s(remaining))

    def proceed(self, call: NativeCall) -> None:
        """The turn of a call has come."""
        if call.deadline_at is not None:
            self._set_deadline(call, call.deadline_at)
        self._start(call, self._owner.serving.resume(call))
        self.flush_soon()

    def _set_deadline(self, call: NativeCall, at: float) -> None:
        deadlines = self._owner.deadlines
        deadlines.remove(call.slot, call)
        call.slot = deadlines.add(at, call)

    def _accept(self, stream: Stream, method: Method) -> bool:
        """Make the call of a new stream; False where its headers were refused."""
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

    def identity_headers(self) -> Headers:
        """What the owner of a call's key is told of its client: the same for each call of this connection."""
        if self._identity is None:
            self._identity = write_client(self.peer, self.auth)
        return self._identity

    def answer(self, call: NativeCall, reply: bytes) -> None:
        """Send the outcome of a call, unless its client has cancelled it."""
        stream = call.stream
        if call.is_cancelled:
            call.discard_unread()
        else:
            try:
                if call.code_now is OK and not (
                    call.trailers or call.has_stream or stream.sent_headers or stream.encoding
                ):
                    self.wire.answer(stream, reply)
                else:
                    self._send_answer(call, reply)
            except Exception as error:
                self._answer_failed(call, error)
        self._release(call)

    def _answer_failed(self, call: NativeCall, error: Exception) -> None:
        """End a call whose outcome cannot be sent. A defect of ours: `arguments` has checked what the handler gave."""
        details = str(error) if isinstance(error, BadWire) else "unexpected failure; the shard's log has the rest"
        self.wire.finish(call.stream, error.code if isinstance(error, BadWire) else framing.INTERNAL, details)
        with suppress(Exception):
            log.error("call.answer_failed method=%s", call.method[1:], exc_info=error)

    def _release(self, call: NativeCall) -> None:
        if call.task is not None:
            self.tasks.discard(call.task)
            call.task = None
        # A call, its stream and its task refer to each other: cut here, the cycle needs no garbage collector.
        call.stream.call = None
        if call.slot:
            self._owner.deadlines.remove(call.slot, call)
        call.run_callbacks()
        if not self._will_flush:
            self._will_flush = True
            self._loop.call_soon(self.flush)

    def _send_answer(self, call: NativeCall, reply: bytes) -> None:
        stream = call.stream
        call.discard_unread()
        if call.code_now is OK:
            if self._owner.methods[stream.path].response_streaming:
                self.wire.send_headers(stream)
            else:
                is_packed = hasattr(call, "packed_reply")
                self.wire.send_message(stream, call.packed_reply if is_packed else call.framed(reply))
        cut = self.wire.finish(stream, call.code_now.value[0], call.details_now, tuple(call.trailers))
        if cut:
            self._owner.serving.truncated("details" if "details" in cut else "trailers")

    def expired(self, call: NativeCall) -> None:
        """The deadline of a call has passed."""
        details = "Deadline Exceeded"
        if call.state is WAITING:
            self._owner.serving.withdraw(call, late=True)
            details = call.details_now
        self.cut_off(call, framing.DEADLINE_EXCEEDED, details)

    def cut_off(self, call: NativeCall, code: int, details: str) -> None:
        """End a call with a status of our own, whatever its handler or its owner does."""
        if call.stream.id in self.wire.streams:
            self.wire.finish(call.stream, code, details)
        self._cancel(call.stream)
        self.flush_soon()

    def _cancel(self, stream: Stream) -> None:
        call = stream.call
        if call is None or call.state is DONE or call.is_cancelled:
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
            self._release(call)

    def _cancel_all(self) -> None:
        for stream in list(self.wire.streams.values()):
            self._cancel(stream)

    # The end

    def send_keepalive(self, now: float) -> None:
        """Ping a client that has been quiet."""
        self.pinged_at = now
        super().ping(b"keepaliv")

    def pause_reading(self) -> None:
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def close(self) -> None:
        """Cut off the calls that have not ended, write what is queued, and close."""
        for stream in list(self.wire.streams.values()):
            if stream.call is not None and stream.call.state is WAITING:
                self._owner.serving.withdraw(stream.call, late=False)
            elif stream.call is not None:
                self.cut_off(stream.call, framing.UNAVAILABLE, "the server has shut down before the answer was ready")
        self.flush()
        self.transport.close()

    def closed(self) -> "asyncio.Future[None]":
        """A future that is done once this connection, which is open now, has closed."""
        self._closed = self._closed or self._loop.create_future()
        return self._closed

    async def close_gracefully(self) -> None:
        """Send a GOAWAY, and close when the calls that the client has begun meanwhile are answered. Fails no call.

        Returns when the client has acknowledged it, or has not for GOAWAY_S. Source: RFC 9113, section 6.8.
        """
        self.keep()
        if self.is_closing or self._goaway_acknowledged is not None:
            return
        self._goaway_acknowledged = self._loop.create_future()
        self.announce_shutdown()
        super().ping(b"goodbye!")
        try:
            await asyncio.wait([self._goaway_acknowledged], timeout=GOAWAY_S)
        finally:
            # Also where this is cancelled: after a GOAWAY the client may send unread calls to another server.
            self.go_away()
            self.is_closing = True
            self.flush()


class CompressingConnection(NativeConnection):
    """A connection of an app whose responses are compressed unless a handler says otherwise."""

    def _accept(self, stream: Stream, method: Method) -> bool:
        is_accepted = super()._accept(stream, method)
        if is_accepted:
            stream.call.set_compression(self._owner.compression)
        return is_accepted
