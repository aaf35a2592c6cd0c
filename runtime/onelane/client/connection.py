"""One connection of a channel: an asyncio Protocol over `onelane.wire.client`, and the calls on it."""

import asyncio
from typing import Any, Protocol, cast

import grpc

from onelane.client.options import Dialling
from onelane.core import addresses
from onelane.wire.client import (
    Answered,
    ClientConnection,
    ClientStream,
    Finished,
    GoingAway,
    Gone,
    Messages,
    Pong,
    Ready,
    Writable,
)
from onelane.wire.framing import Metadata
from onelane.wire.http2 import Limits

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


HELD_BACK = 64 * 1024
"""Bytes of one stream that may wait for the server to read; `write` waits with more."""


class Outgoing(Protocol):
    """A call as its connection sees it."""

    wait_for_ready: bool

    @property
    def can_repeat(self) -> bool:
        """Nothing was lost yet that sending it again would need."""

    def begin(self, connection: "Connection") -> None:
        """Send it."""

    def answered(self, metadata: Metadata) -> None:
        """The server's initial metadata have come."""

    def arrived(self, messages: list[bytes]) -> None:
        """Messages have come."""

    def finish(self, code: Any, details: str, trailers: Metadata = ()) -> None:
        """It is over."""


class ConnectionOwner(Protocol):
    """A subchannel as its connections see it."""

    @property
    def dialling(self) -> Dialling:
        """How connections are kept."""

    def start(self, call: Outgoing) -> None:
        """Send a call again that no server has looked at."""

    def leave(self, connection: "Connection") -> None:
        """The server is going away: the connection takes no further call."""

    def lost(self, connection: "Connection") -> None:
        """The connection has closed."""

    def room(self) -> None:
        """The connection may have room for another call."""


class Connection(asyncio.Protocol):
    """One connection. Owned by its subchannel."""

    def __init__(self, owner: ConnectionOwner) -> None:
        self.wire = ClientConnection(Limits(max_metadata=64 * 1024))
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._flushing = False
        self._paused = False
        self._heard = False
        self._keepalive: asyncio.TimerHandle | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._reason = "Socket closed"

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        for event in self.wire.receive(data):
            match event:
                case Messages(stream, messages):
                    stream.call.arrived(messages)
                case Finished():
                    self._finished(event)
                case Answered(stream, metadata):
                    stream.call.answered(metadata)
                case Writable():
                    self._wake()
                case Ready():
                    self._greeted()
                case GoingAway(error, debug):
                    self._reason = f"the server is going away ({error} {debug})".rstrip(" )") + ")"
                    self._owner.leave(self)
                case Gone(reason):
                    self._reason = reason
                    self.abort()
                case Pong():
                    pass
        if self.wire.going_away and not self.wire.streams:
            self._transport.close()
        self.flush_soon()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if self._keepalive is not None:
            self._keepalive.cancel()
        reason = str(error) if error else self._reason
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(reason))
        streams, self.wire.streams = self.wire.streams, {}
        for stream in streams.values():
            stream.call.finish(UNAVAILABLE, reason)
        self._wake()
        self._owner.lost(self)

    # What calls do.

    @property
    def can_call(self) -> bool:
        return self.wire.can_call and not self._transport.is_closing()

    def flush_soon(self) -> None:
        """Write what is ready at the end of this turn of the loop, in one piece."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    async def wait_room(self, stream: ClientStream) -> None:
        """Wait while the server does not read what was sent."""
        while (self._paused or self.wire.http2.queued(stream.id) > HELD_BACK) and stream.id in self.wire.streams:
            waiting = self._loop.create_future()
            self._waiting.add(waiting)
            try:
                await waiting
            finally:
                self._waiting.discard(waiting)

    def cancel(self, stream: ClientStream) -> None:
        self.wire.cancel(stream)
        self._wake()
        self.flush_soon()

    def peer(self) -> str:
        return addresses.peer(self._transport)

    # The end

    def give_up(self) -> None:
        """End a connection that did not come about."""
        self.ready.cancel()
        if hasattr(self, "_transport"):
            self._transport.abort()

    def close(self) -> None:
        """Close once what was written has left."""
        if not self._transport.is_closing():
            self.wire.http2.go_away()
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        self._flush()
        self._transport.abort()

    def _flush(self) -> None:
        self._flushing = False
        if self._paused or self._transport.is_closing():
            return
        if data := self.wire.take():
            self._transport.write(data)
            if self._waiting:
                self._wake()
        if self.wire.http2.is_over:
            # The server has broken HTTP/2, or all is said and done.
            self._transport.close()

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._owner.room()

    def _finished(self, event: Finished) -> None:
        call = event.stream.call
        if event.untouched and call.can_repeat:
            self._owner.start(call)
            return
        call.finish(event.code, event.details, event.trailers)
        self._wake()

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
        self.wire.http2.ping(b"keepaliv")
        self._flush()
        self._keepalive = self._loop.call_later(self._owner.dialling.ping_timeout_s, self._answered_ping)

    def _answered_ping(self) -> None:
        if self._heard:
            assert self._owner.dialling.keepalive_s is not None
            self._listen_for(self._owner.dialling.keepalive_s)
            return
        self._reason = f"ping timeout: nothing heard for {self._owner.dialling.ping_timeout_s:g} s"
        self._transport.abort()
