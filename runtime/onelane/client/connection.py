"""One connection of a channel: an asyncio Protocol over `onelane.wire.client`, and the calls on it."""

import asyncio
import logging
import os
import socket
from contextlib import suppress
from typing import Any, ClassVar, Final, Protocol

import grpc

from onelane.client.options import Dialling, NoLink
from onelane.core import addresses
from onelane.wire.client import (
    Answered,
    ClientConnection,
    ClientStream,
    ConnectionLost,
    Event,
    Finished,
    GoingAway,
    Messages,
    Ready,
    SettingsChanged,
    WholeAnswer,
)
from onelane.wire.driver import TURN_EVENTS, Read, WireProtocol
from onelane.wire.framing import Headers, Metadata
from onelane.wire.link_client import LinkClient

log = logging.getLogger("onelane.client")
UNAVAILABLE: Final = grpc.StatusCode.UNAVAILABLE
READ_SIZE: Final = 64 * 1024


class Outgoing(Protocol):
    """A call as its connection sees it."""

    wait_for_ready: bool
    headers: Headers

    @property
    def is_over(self) -> bool:
        """It has ended."""

    @property
    def can_repeat(self) -> bool:
        """It may be sent again where no server has looked at it: every request message is still held."""

    def reset_attempt(self) -> None:
        """Drop its stream, which has ended: it is to be sent again."""

    def moves_to(self, subchannel: Any) -> None:
        """It is sent by another subchannel."""

    def begin(self, connection: "Connection") -> None:
        """Send it on a connection."""

    def begin_late(self, connection: "Connection") -> None:
        """Send it some time after it was made: its server is told what is left of its deadline."""

    def answered(self, metadata: Metadata) -> None:
        """The server has sent initial metadata."""

    def arrived(self, messages: list[bytes]) -> None:
        """The server has sent messages."""

    def answered_whole(self, reply: bytes, trailers: Metadata) -> None:
        """The server has sent the one message of its response, and the status OK."""

    def finish(self, code: Any, details: str, trailers: Metadata = ()) -> None:
        """End it with a status."""

    def abandon(self, details: str) -> None:
        """End it with UNAVAILABLE before it is sent, and make no other attempt."""


class EndedCall:
    """Takes the place of a call that has ended: what its connection has read for it already leads nowhere."""

    wait_for_ready = False
    can_repeat = False
    is_over = True

    def __init__(self) -> None:
        self.headers: Headers = []

    def reset_attempt(self) -> None:
        """See `Outgoing`."""

    def moves_to(self, subchannel: Any) -> None:
        """See `Outgoing`."""

    def begin(self, connection: "Connection") -> None:
        """See `Outgoing`."""

    def begin_late(self, connection: "Connection") -> None:
        """See `Outgoing`."""

    def answered(self, metadata: Metadata) -> None:
        """See `Outgoing`."""

    def arrived(self, messages: list[bytes]) -> None:
        """See `Outgoing`."""

    def answered_whole(self, reply: bytes, trailers: Metadata) -> None:
        """See `Outgoing`."""

    def finish(self, code: Any, details: str, trailers: Metadata = ()) -> None:
        """See `Outgoing`."""

    def abandon(self, details: str) -> None:
        """See `Outgoing`."""


ENDED: Final = EndedCall()


class ConnectionPool(Protocol):
    """A subchannel as its connections see it."""

    @property
    def dialling(self) -> Dialling:
        """How connections are kept."""

    def restart(self, call: Outgoing) -> None:
        """Send a call again that no server has looked at."""

    def leave(self, connection: "Connection") -> None:
        """The server is going away: the connection takes no further call."""

    def lost(self, connection: "Connection") -> None:
        """The connection has closed."""

    def room(self) -> None:
        """The connection may have room for another call."""


class Connection(WireProtocol[ClientConnection]):
    """One connection. Owned by its subchannel."""

    max_events: ClassVar[int] = 2 * TURN_EVENTS
    """An answer that comes in pieces causes two: its message, and its status."""

    def __init__(self, owner: ConnectionPool, link: bool = False) -> None:
        """link: between siblings, in place of HTTP/2."""
        self.link = LinkClient(owner.dialling.limits) if link else None
        """Its wire where it is a link; else None."""
        super().__init__(self.link or ClientConnection(owner.dialling.limits), asyncio.get_running_loop())
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self._owner = owner
        self._heard = False
        self._keepalive: asyncio.TimerHandle | None = None
        self._reason = "Socket closed"
        self._lost_by: tuple[Exception | None] | None = None
        """Why the connection was lost while bytes that came before were still to be handled."""
        self._unread: socket.socket | None = None
        """A copy of the socket: the transport closes its own where a write fails, with all that has not been read."""

    def connected(self) -> None:
        if self._owner.dialling.reads_to_end:
            self._unread = socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno()))
        secured = self.transport.get_extra_info("ssl_object")
        if secured is not None and secured.selected_alpn_protocol() != "h2":
            # Such a server may say nothing at all: it waits for a request in HTTP/1.
            self._reason = "the server has not agreed to HTTP/2 (ALPN h2)"
            self.transport.abort()
            return
        self.flush()

    def data_received(self, data: Read) -> None:
        if len(data) > self.max_read:
            self.receive_in_turns(data)
            return
        self._heard = True
        events = self.wire.receive(data)
        self.handle(events if len(events) <= self.max_events else self.postpone(events))
        if self.wire.going_away and not self.wire.streams:
            self.transport.close()
        self.flush_soon()

    def connection_lost(self, error: Exception | None) -> None:
        if self.is_behind:
            # The server may have answered before: its calls end as it said.
            self._lost_by = (error,)
            return
        if self._keepalive is not None:
            self._keepalive.cancel()
        reason = str(error) if error else self._reason
        if self._unread is not None:
            self._read_to_end(self._unread)
        if not self.ready.done():
            self.ready.set_exception(NoLink(reason) if self.link is not None else ConnectionError(reason))
        self._fail_calls(reason)
        self.wake()
        self._owner.lost(self)

    @property
    def reads_no_more(self) -> bool:
        return self.is_over and not self._postponed

    def caught_up(self) -> None:
        if self._lost_by is None:
            super().caught_up()
        else:
            self.connection_lost(*self._lost_by)

    def _read_to_end(self, unread: socket.socket) -> None:
        """Take what the server sent before it closed. Its socket's buffer bounds that."""
        with unread, suppress(OSError):
            while self.wire.streams and not self.is_over and (data := unread.recv(READ_SIZE, socket.MSG_DONTWAIT)):
                self.handle(self.wire.receive(data))

    def handle(self, events: list[Event]) -> None:
        for event in events:
            try:
                # Each call has one or two of these; compiled, a pattern looks its fields up by name.
                if isinstance(event, WholeAnswer):
                    event.stream.call.answered_whole(event.message, event.trailers)
                    self._owner.room()
                elif isinstance(event, Messages):
                    event.stream.call.arrived(event.messages)
                elif isinstance(event, Finished):
                    self._finished(event)
                elif isinstance(event, Answered):
                    event.stream.call.answered(event.metadata)
                else:
                    self._handle_own(event)
            except Exception:
                # A defect of ours: it ends its own call. Raised on, it would close the connection, with all its calls.
                self._event_failed(event)

    def _handle_own(self, event: Event) -> None:
        """Handle what is of the connection, and of no call."""
        match event:
            case SettingsChanged():
                self._owner.room()
            case Ready():
                self._greeted()
            case GoingAway(error, debug):
                self._reason = f"the server is going away ({error} {debug})".rstrip(" )") + ")"
                self._owner.leave(self)
            case ConnectionLost(reason):
                self._reason = reason
                self.abort()
            case _:
                # Pong: that something has been heard is enough.
                pass

    def _event_failed(self, event: Event) -> None:
        log.exception("client.event_failed peer=%s event=%s", self.peer(), type(event).__name__)
        stream: ClientStream | None = getattr(event, "stream", None)
        if stream is not None and (call := stream.call) is not None:
            self.wire.cancel(stream)
            call.finish(grpc.StatusCode.INTERNAL, "unexpected failure; the log of this process has the rest")

    def written(self) -> None:
        # Now, and not once the transport has closed: a writer that never pauses would not let it.
        self._fail_calls(self._reason)
        super().written()

    def _fail_calls(self, reason: str) -> None:
        for stream in self.wire.abandon():
            stream.call.finish(UNAVAILABLE, reason)

    # Called by calls and their channel

    @property
    def can_call(self) -> bool:
        return self.wire.can_call and not self.transport.is_closing()

    @property
    def is_used_up(self) -> bool:
        """No stream can be opened any more: every stream id has been used. There are 2^30."""
        return not self.wire.http2.can_open

    def retire(self) -> None:
        """Close once its calls have ended."""
        self.wire.going_away = True
        if not self.wire.streams:
            self.close()

    def cancel(self, stream: ClientStream, error: int) -> None:
        """error: of HTTP/2."""
        self.wire.cancel(stream, error)
        self._owner.room()
        self.flush_soon()

    def peer(self) -> str:
        return addresses.peer(self.transport)

    # The end

    def give_up(self) -> None:
        """End a connection that nobody uses: it was not established in time, or was given up meanwhile."""
        if not self.ready.cancel() and not self.ready.cancelled():
            # Looked at: asyncio reports an error that nobody knows of.
            self.ready.exception()
        self.connect_failed()
        if hasattr(self, "transport"):
            self.transport.abort()

    def cut_off(self, reason: str) -> None:
        """End its calls with UNAVAILABLE, and close without writing anything more."""
        self._reason = reason
        self._fail_calls(reason)
        self.transport.abort()

    def close(self) -> None:
        """Close once all written bytes have been sent."""
        if not self.transport.is_closing():
            self.go_away()
            self.flush()
            self.transport.close()

    def abort(self) -> None:
        self.flush()
        super().abort()

    def _finished(self, event: Finished) -> None:
        call = event.stream.call
        if event.unprocessed and call.can_repeat:
            # Else it would still be cancelled, and written to, on the stream that is gone.
            call.reset_attempt()
            self._owner.restart(call)
            return
        call.finish(event.code, event.details, event.trailers)
        self._owner.room()

    def _greeted(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)
        if self._owner.dialling.keepalive_s is not None:
            self._listen_for(self._owner.dialling.keepalive_s)

    def _listen_for(self, quiet_s: float) -> None:
        self._heard = False
        self._keepalive = self._loop.call_later(quiet_s, self._ask_if_quiet)

    def _ask_if_quiet(self) -> None:
        assert self._owner.dialling.keepalive_s is not None
        if self._heard:
            self._listen_for(self._owner.dialling.keepalive_s)
            return
        self.ping(b"keepaliv")
        self._keepalive = self._loop.call_later(self._owner.dialling.ping_timeout_s, self._answered_ping)

    def _answered_ping(self) -> None:
        if self._heard:
            assert self._owner.dialling.keepalive_s is not None
            self._listen_for(self._owner.dialling.keepalive_s)
            return
        self._reason = f"ping timeout: nothing heard for {self._owner.dialling.ping_timeout_s:g} s"
        self.transport.abort()
