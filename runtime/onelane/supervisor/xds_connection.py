"""One client's connection to the xDS server, on our own wire: streams of the aggregated discovery service.

The requests of a stream wait in its inbox until the server has it handle them, and its window is given back once none
waits: a client that sends faster than it is served is held back.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from time import monotonic
from typing import Any, Protocol

from onelane.cluster.xds.delta import Delta
from onelane.cluster.xds.resources import XdsResources
from onelane.cluster.xds.state_of_the_world import StateOfTheWorld
from onelane.cluster.xds.subscription import Nack, XdsRefused
from onelane.core import addresses
from onelane.server.peer_slots import network_of
from onelane.wire import framing
from onelane.wire.driver import Read, WireProtocol
from onelane.wire.held_bytes import HeldBytes
from onelane.wire.http2 import Limits
from onelane.wire.server import Broken, ConnectionLost, Ended, Held, Messages, Opened, Pong, ServerConnection, Stream

log = logging.getLogger("onelane.supervisor")
MAX_REQUEST = 256 * 1024
"""Bytes of one request: 1000 names of 256 characters each. Envoy's first one lists its extensions, some 50 KiB."""
STREAMS_PER_CONNECTION = 4
"""Of one connection. A client has one."""
WIRE_LIMITS = Limits(
    max_streams=STREAMS_PER_CONNECTION, window=64 * 1024, wide_window=MAX_REQUEST, wide_streams=1, resets=(100, 5)
)
SERVICE = b"/envoy.service.discovery.v3.AggregatedDiscoveryService/"
VARIANTS: Mapping[bytes, type[StateOfTheWorld] | type[Delta]] = {
    SERVICE + b"StreamAggregatedResources": StateOfTheWorld,
    SERVICE + b"DeltaAggregatedResources": Delta,
}
"""Path of a method → the session that serves its streams."""


class XdsOwner(Protocol):
    """The server, as its connections see it."""

    held_bytes: HeldBytes
    resources: XdsResources | None
    """None while nothing is known of any placement; then nothing is answered."""

    def has_room(self, connection: "XdsConnection") -> bool:
        """A client has connected; False where there is no room for it."""

    def lost(self, connection: "XdsConnection") -> None:
        """The connection has closed."""

    def due(self, stream: "XdsStream") -> None:
        """Have the stream handle what it has to, by `step`, when it is its turn."""

    def counted(self, change: int) -> bool:
        """Streams have subscribed to so many names more; False where these are too many."""

    def refused(self, peer: str, stream: "XdsStream", nack: Nack) -> None:
        """A client has refused a response."""


class XdsStream:
    """One stream of xDS."""

    def __init__(self, connection: "XdsConnection", stream: Stream, session: StateOfTheWorld | Delta) -> None:
        self.session = session
        self.inbox: deque[bytes] = deque()
        self.is_half_closed = False
        """The client has said that it will send no further request."""
        self.is_over = False
        self.is_due = False
        """It waits for its turn, see `XdsOwner.due`."""
        self.stream = stream
        self._connection = connection
        self._names = 0

    def step(self, owner: XdsOwner) -> bool:
        """Handle one request, or send what is due; whether there is more to do."""
        if self.is_over:
            return False
        try:
            if self.inbox:
                self._receive(self.inbox.popleft(), owner)
            if not self.inbox:
                self._respond(owner)
        except XdsRefused as error:
            self._connection.end(self, error.code, str(error))
        except Exception:
            # A defect of ours: it ends its own stream. Raised on, it would end the turns of all.
            log.exception("xds.failed peer=%s", self._connection.peer)
            self._connection.end(self, framing.INTERNAL, "the server failed; its log has the reason")
        return bool(self.inbox) and not self.is_over

    def end(self, owner: XdsOwner) -> None:
        """Forget what it holds."""
        self.is_over = True
        self.inbox.clear()
        owner.counted(-self._names)
        self._names = 0

    def _receive(self, data: bytes, owner: XdsOwner) -> None:
        session = self.session
        try:
            session.receive(data)
        finally:
            change = session.name_count - self._names
            self._names += change
            has_room = owner.counted(change)
        if change > 0 and not has_room:
            raise XdsRefused("the clients of this server subscribe to too many names", code=framing.RESOURCE_EXHAUSTED)
        for nack in session.nacks:
            owner.refused(self._connection.peer, self, nack)
        session.nacks.clear()

    def _respond(self, owner: XdsOwner) -> None:
        self._connection.wire.consumed(self.stream)
        if owner.resources is not None:
            for response in self.session.respond(owner.resources):
                self._connection.wire.send_message(self.stream, framing.frame(response))
        if self.is_half_closed:
            self._connection.end(self, framing.OK)
        self._connection.flush_soon()


class XdsConnection(WireProtocol[ServerConnection]):
    """See the module. Owned by the server."""

    trusted = False
    """See `held_bytes.Holder`."""

    def __init__(self, owner: XdsOwner) -> None:
        super().__init__(ServerConnection(WIRE_LIMITS, max_message=MAX_REQUEST), asyncio.get_running_loop())
        self.peer = ""
        self.network = ""
        """For which it counts, see `peer_slots`."""
        self.streams: dict[Stream, XdsStream] = {}
        self.opened_at = self.heard_at = self.last_stream_at = monotonic()
        self.pinged_at = 0.0
        """When the ping was sent that has not been acknowledged; 0 where there is none."""
        self._owner = owner

    # asyncio.Protocol

    def connected(self) -> None:
        self.peer = addresses.peer(self.transport)
        self.network = network_of(self.transport.get_extra_info("peername"))
        if self._owner.has_room(self):
            self.flush()
        else:
            self.abort()

    def data_received(self, data: Read) -> None:
        self.heard_at = monotonic()
        super().data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._forget_all()
        self._owner.held_bytes.forget(self)
        self._owner.lost(self)
        self.wake()

    # Events of the wire

    def handle(self, events: list[Any]) -> None:
        for event in events:
            match event:
                case Messages(stream, messages, last):
                    self._arrived(stream, messages, last=last)
                case Opened(stream):
                    self._opened(stream)
                case Ended(stream):
                    self._forget(stream)
                case Broken(stream, code, details):
                    self._forget(stream)
                    self.wire.finish(stream, code, details)
                case Pong():
                    self.pinged_at = 0.0
                case ConnectionLost():
                    self._forget_all()
        self.flush_soon()

    def handle_late(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, Held):
                self._owner.held_bytes.report(self, event.held)
            elif isinstance(event, Ended):
                super().handle_late([event])

    def held_back(self) -> None:
        self.wire.weigh()

    def let_go(self, level: int, reason: str, *, keeps_oldest: bool) -> int:
        """See `held_bytes.Holder`."""
        text = f"more than this server holds for its clients ({reason})"
        for stream in self.wire.let_go(level, text, keeps_oldest=keeps_oldest):
            self._forget(stream)
            self.drop_postponed(stream)
        self.flush_soon()
        return self.wire.weigh()

    def _opened(self, stream: Stream) -> None:
        variant = VARIANTS.get(stream.path)
        if variant is None:
            path = stream.path.decode("latin-1")
            self.wire.finish(stream, framing.UNIMPLEMENTED, f"unknown method {path}: this is an xDS server")
            return
        self.streams[stream] = XdsStream(self, stream, variant())
        self.wire.send_headers(stream)

    def _arrived(self, stream: Stream, messages: list[bytes], *, last: bool) -> None:
        xds_stream = self.streams.get(stream)
        if xds_stream is not None:
            xds_stream.inbox += messages
            xds_stream.is_half_closed = xds_stream.is_half_closed or last
            self._owner.due(xds_stream)

    # The end of streams, and of all

    def end(self, xds_stream: XdsStream, code: int, details: str = "") -> None:
        """End a stream with a status."""
        self._forget(xds_stream.stream)
        self.wire.finish(xds_stream.stream, code, details)
        self.flush_soon()

    def leave(self) -> None:
        """End all streams, so that their clients go to another server, and close."""
        for xds_stream in list(self.streams.values()):
            self.end(xds_stream, framing.UNAVAILABLE, "this xDS server ends: ask another one")
        self.go_away()
        self.is_closing = True
        self.flush()

    def end_slow_requests(self, now: float, request_s: float) -> None:
        """End streams of which a request is not whole `request_s` after that was first seen."""
        for stream, xds_stream in list(self.streams.items()):
            if stream.is_whole:
                continue
            stream.waits_since = stream.waits_since or now
            if now - stream.waits_since > request_s:
                text = f"a request that has begun was not whole after {request_s:g} s"
                self.end(xds_stream, framing.RESOURCE_EXHAUSTED, text)

    def _forget(self, stream: Stream) -> None:
        xds_stream = self.streams.pop(stream, None)
        if xds_stream is not None:
            xds_stream.end(self._owner)
            self.last_stream_at = monotonic()

    def _forget_all(self) -> None:
        for stream in list(self.streams):
            self._forget(stream)
