"""One client's connection on our own wire: which shard serves it, its time limits, and its end.

Frames written in one turn of the loop leave in one piece. What happens to the calls on it: `calls_connection`.
"""

import asyncio
import fcntl
import termios
from collections.abc import Sequence
from time import monotonic
from typing import Any, ClassVar, Protocol

from onelane.core import addresses
from onelane.server import auth_context
from onelane.server.call_state import WAITING
from onelane.server.calls_connection import CallsConnection, CallsOwner
from onelane.server.connection_counts import ConnectionCounts
from onelane.server.lingering import Lingering
from onelane.server.methods import Method
from onelane.server.steering import FirstBytes
from onelane.wire import framing
from onelane.wire.driver import TURN_EVENTS, Read
from onelane.wire.http2 import Limits
from onelane.wire.server import Opened, ServerConnection, Stream, WebOpened, WebTranslator

GOAWAY_S = 1.0
"""How long the client may take to acknowledge a GOAWAY before its connection closes."""
HTTP2_BEGINS = b"PRI "
"""The first bytes of HTTP/2's preface. RFC 9113, section 11.6: `PRI` is a method of no other version."""
ANSWERED_PIECE = 8 * 1024
"""Bytes that are replayed at once: libnghttp2 ends a connection that owes its peer 1000 acknowledgements, and so many
PINGs may have been answered, one after the other, before the first request."""


class ConnectionOwner(CallsOwner, Protocol):
    """A listener as its connections see it."""

    limits: Limits
    max_message: int
    max_first_bytes: int
    counts: ConnectionCounts
    web: WebTranslator
    is_paused: bool
    """Nothing is read from any connection."""

    def opened(self, connection: "NativeConnection") -> bool:
        """A client has connected; whether there is room."""

    def lost(self, connection: "NativeConnection") -> None:
        """The connection has closed."""

    def owner_of(self, events: Sequence[Any]) -> str | None:
        """The socket of the shard to which a connection that begins so belongs; "" for this one, None: not known."""

    def hand_over(self, owner: str, fd: int, first: FirstBytes) -> bool:
        """Steer the connection to a sibling; whether it was handed over."""

    def undecided(self, connection: "NativeConnection") -> None:
        """Keep the connection here unless its first request soon says where it belongs."""

    def decided(self, connection: "NativeConnection") -> None:
        """It is known where the connection belongs."""


class NativeConnection(CallsConnection[ConnectionOwner]):
    """See the module. Owned by its listener."""

    goodbye_s: ClassVar[float] = GOAWAY_S
    # What few connections set stands here: CPython looks up attributes of an instance fast where it has 30 at most.
    network: str | None = None
    """The peer whose slot it has taken, see `peer_slots`; None before."""
    _answered = 0
    """Of `_first_bytes`, those that have been answered."""
    _goaway_acknowledged: asyncio.Future[None] | None = None
    _closed: asyncio.Future[None] | None = None
    _is_http1 = False
    _beginning: bytes | None = None
    """The first bytes, while they do not say whether the client speaks HTTP/2; None once they do."""

    def __init__(
        self,
        owner: ConnectionOwner,
        *,
        limits: Limits | None = None,
        max_message: int | None = None,
        steers: bool = False,
        replay: FirstBytes | None = None,
    ) -> None:
        """limits, max_message: by default the owner's. steers: a sibling may own it. replay: bytes that a sibling read
        before it handed the connection over."""
        longest = owner.max_message if max_message is None else max_message
        web = None if self.trusted else owner.web
        wire = ServerConnection(limits or owner.limits, max_message=longest, joins=True, unpacks=False, web=web)
        super().__init__(owner, wire)
        # For `time_limits`.
        self.opened_at = self.heard_at = self.framed_at = monotonic()
        self.pinged_at = self.asked_at = 0.0
        self.has_request = False
        self._is_watched = True
        """Until its first request, and while it is asked whether a frame is incomplete: what comes is looked at."""
        self._first_bytes: bytes | None = b"" if steers else None
        """Every byte read while the owner of the connection is not known; None from then on."""
        self._first_events: Sequence[Any] = ()
        """The events in these bytes."""
        self._replay = replay

    # asyncio.Protocol

    def connected(self) -> None:
        self.peer = addresses.peer(self.transport)
        if not self._owner.opened(self):
            self.transport.abort()
            return
        if (secured := self.transport.get_extra_info("ssl_object")) is not None:
            protocol = secured.selected_alpn_protocol()
            if protocol not in ("h2", "http/1.1"):
                self._owner.counts.handshake_failed("alpn", self.peer)
                self.transport.abort()
                return
            self.auth = auth_context.auth_context(secured)
            if protocol == "http/1.1":
                self._speak_http1()
        elif self._replay is not None:
            self._replay_first_bytes(self._replay)
            return
        elif not self.trusted:
            self._await_beginning()
            return
        self.flush()

    def receive_in_turns(self, data: Read) -> None:
        if self._beginning is None:
            super().receive_in_turns(data)
        else:
            self._begin(self._beginning + data)

    def data_received(self, data: Read) -> None:
        if len(data) > self.max_read:
            self.receive_in_turns(data)
            return
        self.heard_at = monotonic()
        events = self.wire.receive(data)
        if self._is_watched:
            self._handle_watched(data, events)
        else:
            self.handle(events if len(events) <= TURN_EVENTS else self.postpone(events))

    def _handle_watched(self, data: Read, events: list[Any]) -> None:
        if events:
            self.framed_at = self.heard_at
            self.asked_at = 0.0
        self.has_request = self.has_request or any(
            type(event) is Opened or type(event) is WebOpened for event in events
        )
        if self._first_bytes is not None:
            self._first_bytes += data
            self._first_events = [*self._first_events, *events]
            self._decide()
        else:
            self.handle_in_turns(events)
        self._is_watched = not self.has_request or self._first_bytes is not None or self.asked_at > 0

    def connection_lost(self, error: Exception | None) -> None:
        self.is_closing = True
        self._owner.lost(self)
        self._cancel_all()
        self._owner.serving.untaken(-self.wire.untaken, trusted=self.trusted)
        self.wire.untaken = 0
        self._owner.held_bytes.forget(self)
        self.wake()
        for future in (self._goaway_acknowledged, self._closed):
            if future is not None and not future.done():
                future.set_result(None)

    # Which version of HTTP it is

    def _await_beginning(self) -> None:
        """Write nothing, and look at what comes, until the first bytes say which version of HTTP the client speaks."""
        self._beginning = b""
        self._is_paused = True
        self.max_read = -1

    def _begin(self, data: bytes) -> None:
        if len(data) < len(HTTP2_BEGINS) and HTTP2_BEGINS.startswith(data):
            self._beginning = data
            return
        self._beginning = None
        self._is_paused = False
        self.max_read = self.max_piece
        if not data.startswith(HTTP2_BEGINS) and data[:1].isalpha():
            self._speak_http1()
        else:
            # Our SETTINGS, before what may follow: the sibling that takes this connection over leaves them out.
            self.flush()
        self.data_received(data)

    def _speak_http1(self) -> None:
        """Serve HTTP/1.1. Its requests are forwarded to the owners of their keys: the connection stays here."""
        # h11 takes 20 ms to load, and most shards have no such client.
        from onelane.wire.http1 import Http1Connection

        self._first_bytes = None
        self._is_http1 = True
        self._owner.decided(self)
        self.wire = Http1Connection(
            self._owner.limits, max_message=self._owner.max_message, web=self._owner.web, throttle=self._throttle
        )
        if self.is_leaving:
            self.announce_shutdown()
            super().ping(b"goodbye!")

    def _throttle(self, stops: bool) -> None:
        """HTTP/1.1 has no windows: what a client sends is held up by its socket."""
        if stops:
            self.pause_reading()
        elif not self._owner.is_paused:
            self.resume_reading()

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
        if owner and self._owner.hand_over(owner, fd, FirstBytes(self._first_bytes + self.unhandled(), self._answered)):
            self._owner.decided(self)
            # The owner has them now: a drain of this shard, before the transport has closed, must not serve them too.
            self._first_bytes, self._first_events = None, ()
            self.drop_unhandled()
            self.is_closing = True
            self.transport.abort()
            return
        self.keep()

    def _replay_first_bytes(self, first: FirstBytes) -> None:
        """Begin with the bytes that a sibling has read. Frames that the sibling has sent must not be sent again."""
        self.wire.take()
        self._replay = None
        for at in range(0, first.answered, ANSWERED_PIECE):
            self.wire.receive(first.data[at : min(at + ANSWERED_PIECE, first.answered)])
            self.wire.take()
        self.data_received(first.data[first.answered :])

    def keep(self) -> None:
        """Serve the connection in this shard."""
        if self._first_bytes is None:
            return
        self._owner.decided(self)
        events, self._first_events, self._first_bytes = self._first_events, (), None
        self.handle_in_turns([*events])

    def acknowledged(self) -> None:
        self.pinged_at = self.asked_at = 0.0
        self.framed_at = self.heard_at
        if self._goaway_acknowledged is not None and not self._goaway_acknowledged.done():
            self._goaway_acknowledged.set_result(None)

    # Writing

    def written(self) -> None:
        if self.wire.http2.sent_error:
            self.wire.http2.sent_error = 0
            self._owner.counts.goaway("protocol")
        has_calls = self.tasks or self.wire.streams or self._postponed
        if not has_calls and (self.is_over or not self.wire.answered):
            self._close_after_client()
        elif self.is_over:
            # Now, and not once the transport has closed: a handler that writes without a pause would not let it.
            self._cancel_all()
            self._close_after_client()

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
        self.transport.set_protocol(Lingering(self.transport, self.connection_lost, is_http1=self._is_http1))
        # Where reading had been stopped: what has come must be read, or the socket sends a reset.
        self.transport.resume_reading()

    # The end

    def send_keepalive(self, now: float) -> None:
        """Ping a client that has been quiet."""
        self.pinged_at = now
        super().ping(b"keepaliv")

    def ask_for_frames(self, now: float) -> None:
        """Ping a client that may be in the middle of a header block: it can answer only behind that."""
        self.asked_at = now
        self._is_watched = True
        super().ping(b"complete")

    @property
    def has_settings(self) -> bool:
        return self.wire.has_settings

    @property
    def has_calls(self) -> bool:
        return bool(self.wire.streams)

    @property
    def is_leaving(self) -> bool:
        """It has been sent a GOAWAY."""
        return self._goaway_acknowledged is not None

    @property
    def is_reached(self) -> bool:
        """Whether the client's machine has received all that was sent to it. Linux only."""
        if self.transport.get_write_buffer_size():
            return False
        fd = self.transport.get_extra_info("socket").fileno()
        try:
            unacknowledged = fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4))
        except OSError:
            return False
        return not any(unacknowledged)

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

    async def close_gracefully(self, reason: str = "drain") -> None:
        """Send a GOAWAY, and close when the calls that the client has begun meanwhile are answered. Fails no call.

        reason: as it is counted.
        Returns when the client has acknowledged it, or has not for `goodbye_s`. Source: RFC 9113, section 6.8.
        """
        self.keep()
        if self.is_closing or self._goaway_acknowledged is not None:
            return
        self._goaway_acknowledged = self._loop.create_future()
        if not self.trusted:
            self._owner.counts.goaway(reason)
        self.announce_shutdown()
        super().ping(b"goodbye!")
        try:
            await asyncio.wait([self._goaway_acknowledged], timeout=self.goodbye_s)
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
