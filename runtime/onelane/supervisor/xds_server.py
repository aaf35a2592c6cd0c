"""The xDS server of a machine: on one port, whatever clients need to follow the placements of all apps of its cluster.

In the supervisor, since that has the view of the cluster, and on our own wire, since that loads no grpcio. Leases are
renewed by the same loop: so what all clients of xDS together may take of it is bounded, in time and in bytes.

Promises: of each client's streams one step is made in turn, for STEPS_S at most, and others have the loop for REST_S
then; no client is answered before a placement is known; what the store does not tell any more stays as it was told.
Leaves out: TLS and who may ask. Placements are public, as those of the service Topology are.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic

import anyio

from onelane.cluster.machines import ClusterView
from onelane.cluster.xds.resources import XdsResources, resources_of
from onelane.cluster.xds.routed_app import RoutedApp, routed_apps
from onelane.cluster.xds.subscription import Nack
from onelane.core import addresses
from onelane.core.printable import escaped
from onelane.server import sockets
from onelane.server.peer_slots import PeerSlots
from onelane.supervisor.xds_connection import XdsConnection, XdsStream
from onelane.wire.held_bytes import HeldBytes

log = logging.getLogger("onelane.supervisor")
STEPS_S = 0.002
REST_S = 0.004
"""So all clients together have a third of the loop at most."""
XDS_PING = b"xds-ping"
SHOWN = 200
"""Characters of a client's own words in a log line."""


@dataclass(frozen=True, slots=True)
class XdsLimits:
    """What clients may make the server hold, and for how long."""

    connections: int = 1024
    connections_of_peer: int = 256
    names: int = 200_000
    """Subscribed to by all clients together."""
    held_bytes: int = 64 * 1024 * 1024
    """Requests that are not handled, and responses that are not taken."""
    connection_held_bytes: int = 8 * 1024 * 1024
    look_s: float = 1.0
    """From one look at all connections to the next."""
    handshake_s: float = 10.0
    """Until the client's preface and settings have come."""
    request_s: float = 30.0
    """Until a request is whole that has begun."""
    idle_s: float = 60.0
    """Without a stream."""
    quiet_s: float = 30.0
    """Without a byte from the client: then it is asked by a ping."""
    pong_s: float = 20.0
    """Until the client has answered that."""
    log_s: float = 1.0
    """From one log line about what a client does to the next of its kind."""


class _PacedLog:
    """A log line that clients can cause: written now and then, with how many were left out."""

    def __init__(self, text: str, every_s: float) -> None:
        self._text = text
        self._every_s = every_s
        self._logged_at = float("-inf")
        self._left_out = 0

    def warning(self, *values: object) -> None:
        now = monotonic()
        if now - self._logged_at < self._every_s:
            self._left_out += 1
            return
        log.warning(self._text, *values, self._left_out)
        self._logged_at, self._left_out = now, 0


class XdsServer:
    """See the module. `start` it, `follow` or `show` placements, and `close` it; all in one event loop."""

    def __init__(self, listen: str, limits: XdsLimits | None = None) -> None:
        """listen: `ip:port`; port 0 takes a free one."""
        self.resources: XdsResources | None = None
        self.address = listen
        """Once it is started, with the real port."""
        self._limits = limits or XdsLimits()
        self.held_bytes = HeldBytes(limit=self._limits.held_bytes, per_connection=self._limits.connection_held_bytes)
        self._apps: dict[str, RoutedApp] = {}
        self._faults: dict[str, str] = {}
        self._connections: set[XdsConnection] = set()
        self._slots = PeerSlots(in_all=self._limits.connections, per_peer=self._limits.connections_of_peer)
        self._names = 0
        self._due: deque[XdsStream] = deque()
        self._is_working = False
        """A turn is under way, or is to come."""
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        every_s = self._limits.log_s
        self._no_room = _PacedLog("xds.no_room peer=%s connections=%d reason=%s left_out=%d", every_s)
        self._nacks = _PacedLog("xds.refused peer=%s node=%s type=%s reason=%s left_out=%d", every_s)

    async def start(self) -> None:
        """Raises:
        PortTaken: somebody else listens there.
        """
        sock = sockets.listening(self.address)
        host, _ = addresses.split(self.address)
        self.address = addresses.join(host, sock.getsockname()[1])
        self._server = await asyncio.get_running_loop().create_server(lambda: XdsConnection(self), sock=sock)
        self._look()
        log.info("xds.serves address=%s", self.address)

    async def close(self) -> None:
        """Stop listening, and end all streams with UNAVAILABLE: clients go to the next server of their bootstrap."""
        if self._server is not None:
            self._server.close()
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._connections):
            connection.leave()
        # One turn of the loop: what was written has left, or never will.
        await asyncio.sleep(0)
        for connection in list(self._connections):
            connection.abort()

    # Placements

    def show(self, apps: Mapping[str, RoutedApp]) -> None:
        """These are all apps now; each stream is sent what is new to it."""
        if self.resources is not None and apps == self._apps:
            return
        self._apps = dict(apps)
        self.resources = resources_of(self._apps)
        for connection in self._connections:
            for stream in connection.streams.values():
                self.due(stream)

    async def follow(self, view: Callable[[], ClusterView | None], changed: Callable[[], anyio.Event]) -> None:
        """Show the placements of each view of the cluster, until cancelled. changed: an event that is set once `view`
        returns another one."""
        while True:
            # First: a view that changes meanwhile is seen by the next turn.
            event, current = changed(), view()
            if current is not None:
                apps, faults = routed_apps(current, self._apps)
                for app, fault in faults.items():
                    if self._faults.get(app) != fault:
                        log.error("xds.not_followed app=%s reason=%s", app, fault)
                self._faults = faults
                self.show(apps)
            await event.wait()

    # What connections report, see `xds_connection.XdsOwner`

    def has_room(self, connection: XdsConnection) -> bool:
        fault = self._slots.fault(connection.network)
        if fault:
            self._no_room.warning(connection.peer, self._slots.taken, fault)
            return False
        self._slots.take(connection.network)
        self._connections.add(connection)
        return True

    def lost(self, connection: XdsConnection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._slots.give_back(connection.network)

    def counted(self, change: int) -> bool:
        self._names += change
        return self._names <= self._limits.names

    def refused(self, peer: str, stream: XdsStream, nack: Nack) -> None:
        node, reason = escaped(stream.session.node[:SHOWN]), escaped(nack.reason[:SHOWN])
        self._nacks.warning(peer, node, nack.kind, reason)

    def due(self, stream: XdsStream) -> None:
        if not stream.is_due:
            stream.is_due = True
            self._due.append(stream)
        if not self._is_working:
            self._is_working = True
            asyncio.get_running_loop().call_soon(self._work)

    def _work(self) -> None:
        """Let streams make one step each, for `STEPS_S`; go on after `REST_S` where there is more."""
        ends = monotonic() + STEPS_S
        while self._due and monotonic() < ends:
            stream = self._due.popleft()
            if stream.step(self):
                self._due.append(stream)
            else:
                stream.is_due = False
        self._is_working = bool(self._due)
        if self._due:
            asyncio.get_running_loop().call_later(REST_S, self._work)

    # Time

    def _look(self) -> None:
        now = monotonic()
        for connection in list(self._connections):
            self._look_at(connection, now)
        self._timer = asyncio.get_running_loop().call_later(self._limits.look_s, self._look)

    def _look_at(self, connection: XdsConnection, now: float) -> None:
        limits = self._limits
        if not connection.wire.has_settings:
            if now - connection.opened_at > limits.handshake_s:
                connection.abort()
            return
        if connection.pinged_at and now - connection.pinged_at > limits.pong_s:
            connection.abort()
        elif not connection.streams and now - connection.last_stream_at > limits.idle_s:
            connection.leave()
        elif not connection.pinged_at and now - connection.heard_at > limits.quiet_s:
            connection.pinged_at = now
            connection.ping(XDS_PING)
        connection.end_slow_requests(now, limits.request_s)
