"""The asyncio side of one HTTP/2 connection: moves bytes between a transport and the sans-I/O wire.

The one file of this room that knows asyncio. Listeners, channels and the control line derive from `WireProtocol`; what
events mean is theirs.

Promises: what is written in one turn of the loop leaves in one piece, and wakes the peer once; back-pressure reaches
whoever writes messages, by `wait_room`, from the transport's buffer and from the peer's flow-control window alike;
every waiter goes on when the connection is lost; what one peer sends holds the loop for TURN_S, one PIECE and
TURN_EVENTS events at most, then every other connection has its turn.
Leaves out: TLS, reconnecting, keepalive timers.
"""

import asyncio
from time import monotonic
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar, cast

from mypy_extensions import mypyc_attr

from onelane.wire.http2 import Http2

PIECE: Final = 64 * 1024
"""Bytes that are handled in one go: 7281 frames at most, some 4 ms of the smallest DATA frames. Nearly every read is
smaller; larger ones are cut. Cut to 16 KiB, a message of 64 KiB would cost a tenth more."""
TURN_S: Final = 0.001
"""How long the pieces of one read may hold the loop before other connections have their turn. Time, and no number of
frames: a frame costs between 0.2 µs and all that a handler does before it waits."""
TURN_EVENTS: Final = 64
"""Events that are handled in one go: each may begin a call, whose handler runs until it first waits. PIECE alone does
not bound that, some 1000 calls fit into it. A read of an ordinary client has fewer, and is handled at once."""
MAX_QUEUED: Final = 64 * 1024
"""Bytes of one stream that may wait for the peer to read; whoever writes more waits."""


Read = bytes | memoryview
"""Bytes that were read, or a view of a piece of them."""


class Wire(Protocol):
    """One end of a connection: `ServerConnection` or `ClientConnection`."""

    http2: Http2
    streams: dict[int, Any]
    late: list[Any]
    """Events that came up in `take`."""

    def receive(self, data: Read) -> list[Any]:
        """Take bytes from the peer; the events in them."""

    def take(self) -> bytes:
        """The bytes to send now."""

    def take_late(self) -> list[Any]:
        """The events in `late`, once."""


W = TypeVar("W", bound=Wire)


@mypyc_attr(allow_interpreted_subclasses=True)
class WireProtocol(asyncio.Protocol, Generic[W]):
    """See the module. Owned by one event loop.

    A subclass handles events, sets `is_closing` once nothing new is begun here, and may say by `written` how the
    transport is closed after the last bytes.
    """

    max_queued: ClassVar[int] = MAX_QUEUED
    max_piece: ClassVar[int] = PIECE
    max_events: ClassVar[int] = TURN_EVENTS
    # Here, not set for each connection: see `server/connection`.
    _is_lost = False
    _is_shut = False
    """Nothing is written any more: our side of the socket is shut, or it was never quite connected."""
    _is_stopped = False
    """See `pause_reading`."""

    def __init__(self, wire: W, loop: asyncio.AbstractEventLoop) -> None:
        self.wire = wire
        self.is_closing = False
        """Nothing new is begun on it: `written` runs after each write."""
        self.transport: asyncio.Transport
        self._loop = loop
        self._will_flush = False
        self._is_paused = False
        """The transport's buffer is full."""
        self.max_read = self.max_piece
        """Bytes of a read that `data_received` handles in one go; none while an earlier read is pending."""
        self._unhandled = b""
        """The last read, or reads, while they are handled piece by piece. No more is read meanwhile."""
        self._handled = 0
        """Of these, the bytes that have been handled."""
        self._postponed: list[Any] = []
        """Events of the last piece that are to be handled before further bytes. No more is read meanwhile."""
        self._turn_ends: float | None = None
        """When this connection leaves the loop to others, in monotonic seconds; None while it has no turn."""
        self._waiters: dict[asyncio.Future[None], int] | None = None
        """Those who wait for room, and the stream that each of them writes on."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports derive from nothing of asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        self.connected()

    def data_received(self, data: Read) -> None:
        if len(data) > self.max_read:
            self.receive_in_turns(data)
            return
        events = self.wire.receive(data)
        self.handle(events if len(events) <= self.max_events else self.postpone(events))
        self.flush_soon()

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self.flush()

    def connect_failed(self) -> None:
        """Read and write nothing more: whoever was to connect it has failed, or was cancelled.

        Where that came after `connection_made`, uvloop has closed the transport, and tells nobody: not by
        `connection_lost`, nor by `is_closing`. It raises where such a transport is used.
        """
        self._is_shut = self._is_stopped = True

    # What a subclass says

    def connected(self) -> None:
        """The transport is there: send our SETTINGS."""
        self.flush()

    def handle(self, events: list[Any]) -> None:
        """Act on what the peer has sent."""
        raise NotImplementedError

    def handle_late(self, events: list[Any]) -> None:
        """Act on what has come up while bytes were taken to be sent."""
        if self._postponed:
            self._postponed += events
        else:
            self.handle(events)

    def written(self) -> None:
        """All there is to say has been written, and `is_closing` is set or HTTP/2 has ended."""
        self.transport.close()

    def held_back(self) -> None:
        """Nothing can be written, since the transport's buffer is full."""

    @property
    def reads_no_more(self) -> bool:
        """What has been read and not handled is dropped."""
        return self._is_shut or self.is_over or self.transport.is_closing()

    def caught_up(self) -> None:
        """All that has been read is handled: read on."""
        if not self._is_stopped and not self.transport.is_closing():
            self.transport.resume_reading()

    # Reading in turns

    def receive_in_turns(self, data: Read) -> None:
        """Handle a large read piece by piece, in as many turns of the loop as that takes; each goes through
        `data_received`. In between, every other connection has its turn. The order is kept."""
        is_behind = self.is_behind
        self._unhandled, self._handled = self.unhandled() + data, 0
        if is_behind:
            # Read though reading was paused: TLS had it in its buffer.
            self._stop_reading()
            return
        if self._turn_ends is None:
            self._begin_turn()
        self._handle_pieces()

    def handle_in_turns(self, events: list[Any]) -> None:
        """Handle events, however many, in as many turns of the loop as that takes."""
        self.handle(events if len(events) <= self.max_events else self.postpone(events))

    def postpone(self, events: list[Any]) -> list[Any]:
        """The first of many events; the others are handled later in this turn of the loop, or in further turns. The
        order is kept: all that comes up meanwhile is handled after them."""
        self._postponed += events
        self.max_read = -1
        if self._turn_ends is None:
            self._begin_turn()
        return self._next_events()

    def drop_postponed(self, stream: Any) -> None:
        """Forget the events of a stream that has ended here."""
        self._postponed = [event for event in self._postponed if getattr(event, "stream", None) is not stream]

    def pause_reading(self) -> None:
        """Read nothing, and handle nothing, until `resume_reading`."""
        self._is_stopped = True
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self._is_stopped = False
        if not self.is_behind:
            self.caught_up()
        elif self._turn_ends is None:
            self._begin_turn()

    @property
    def is_behind(self) -> bool:
        """Something has been read and not handled."""
        return bool(self._unhandled or self._postponed)

    def unhandled(self) -> bytes:
        """The bytes that have been read and not handled."""
        return self._unhandled[self._handled :]

    def drop_unhandled(self) -> None:
        self._unhandled, self._handled, self.max_read = b"", 0, self.max_piece
        self._postponed.clear()

    def _begin_turn(self) -> None:
        self._turn_ends = monotonic() + TURN_S
        self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn_ends = None
        if self.is_behind and not self._is_stopped:
            self._begin_turn()
            self._handle_pieces()
            if not self.is_behind:
                self.caught_up()

    def _handle_pieces(self) -> None:
        """Handle one piece, or the next events of one, and further ones until this turn ends."""
        assert self._turn_ends is not None
        is_late = False
        while not self.reads_no_more:
            if is_late or self._is_stopped:
                self._stop_reading()
                return
            if self._postponed:
                self.handle(self._next_events())
                self.flush_soon()
            else:
                # A view: what is cut out would be copied, and large messages come in large reads.
                piece = memoryview(self._unhandled)[self._handled : self._handled + self.max_piece]
                self._handled += len(piece)
                self.max_read = self.max_piece
                self.data_received(piece)
            if self._handled >= len(self._unhandled) and not self._postponed:
                break
            is_late = monotonic() >= self._turn_ends
        self.drop_unhandled()

    def _next_events(self) -> list[Any]:
        events = self._postponed[: self.max_events]
        del self._postponed[: self.max_events]
        return events

    def _stop_reading(self) -> None:
        self.max_read = -1
        if not self.transport.is_closing():
            self.transport.pause_reading()

    # Writing

    def flush_soon(self) -> None:
        """Write what is ready at the end of this turn of the loop."""
        if not self._will_flush:
            self._will_flush = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is ready now."""
        self._will_flush = False
        if self.transport.is_closing() or self._is_shut:
            return
        if self._is_paused:
            self.held_back()
        elif data := self.wire.take():
            self.transport.write(data)
        if self.wire.late:
            self.handle_late(self.wire.take_late())
        if self._waiters:
            self._wake_ready()
        if self.is_closing or self.wire.http2.is_over:
            self.written()

    def must_wait(self, stream_id: int) -> bool:
        """Whether who has written on the stream has to `wait_room` before the next message. Asked first, it spares each
        message a coroutine."""
        return (self._is_paused or self.wire.http2.queued(stream_id) > self.max_queued) and (
            stream_id in self.wire.streams
        )

    async def wait_room(self, stream_id: int) -> None:
        """Wait while the peer does not read what was sent on the stream; returns where either is over.

        A transport that is closing is not over yet: whoever does not wait writes on and on, and so the loop never comes
        to `connection_lost`, which would cancel it.
        """
        while self.must_wait(stream_id):
            if self._is_lost:
                # A handler that ignores its cancellation must not keep the loop to itself.
                await asyncio.sleep(0)
                return
            if self._waiters is None:
                self._waiters = {}
            self.wire.http2.share_window(stream_id)
            waiter = self._loop.create_future()
            self._waiters[waiter] = stream_id
            try:
                await waiter
            finally:
                self._waiters.pop(waiter, None)

    def _wake_ready(self) -> None:
        """Let those go on whose stream has room, or is over.

        Only a flush makes room: what the peer's windows let through leaves then. So a WINDOW_UPDATE wakes nobody, and
        however many a peer sends, the writers are looked at once for each flush. Those for which the connection's
        window has no room are fed in turn, see `share_window`.
        """
        queued, streams = self.wire.http2.queued, self.wire.streams
        for waiter, stream_id in (self._waiters or {}).items():
            has_room = not self._is_paused and queued(stream_id) <= self.max_queued
            if (has_room or stream_id not in streams) and not waiter.done():
                waiter.set_result(None)

    def wake(self) -> None:
        """Let everyone who waits for room go on: the connection is lost."""
        self._is_lost = True
        for waiter in self._waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    # Of the connection as a whole

    @property
    def is_over(self) -> bool:
        """HTTP/2 has ended: nothing is read or written any more."""
        return self.wire.http2.is_over

    def ping(self, payload: bytes) -> None:
        """Ask whether the peer is there. payload: 8 bytes."""
        self.wire.http2.ping(payload)
        self.flush()

    def announce_shutdown(self) -> None:
        """Send a GOAWAY that still takes every stream which the peer has opened meanwhile. RFC 9113, section 6.8."""
        self.wire.http2.shutdown_notice()

    def go_away(self) -> None:
        """Send a GOAWAY: no further stream is taken, those that are open go on."""
        self.wire.http2.go_away()

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        self.transport.abort()
