"""The port of a shard for the shards of other machines.

Promises: before a handshake has proven a machine of the cluster, a connection costs a slot of few, a descriptor, and
the handshake; it ends in time; nothing that it sends is read as HTTP/2. Such connections take no slot of the clients',
and clients none of theirs.
Not promised: room for a machine while strangers hold every slot. Connections that stand go on meanwhile.
"""

import asyncio
import logging
import socket
from time import monotonic
from typing import Protocol

from onelane.server.acceptor import TlsAcceptor
from onelane.server.connection import ConnectionOwner, NativeConnection
from onelane.server.connection_counts import REFUSAL_EVERY_S, ConnectionCounts
from onelane.server.machine_link_connection import MachineLinkConnection
from onelane.server.machine_link_tls import MachineLinkTls
from onelane.server.peer_slots import PeerSlots, network_of
from onelane.server.unix_sockets import BACKLOG

log = logging.getLogger("onelane.links")
MAX_HANDSHAKES, MAX_HANDSHAKES_PER_PEER = 512, 128
"""Connections that have not proven who they are: in all, and of one peer. All lanes of a machine may come at once, with
two connections each."""
DEAD_AFTER_S = (20, 5, 4)
"""Of the system's keepalive: seconds of silence, seconds between questions, and how many. A machine that is cut off, or
off, says no goodbye."""


class LinkOwner(ConnectionOwner, Protocol):
    """The listener that serves the connections of the port."""

    loop: asyncio.AbstractEventLoop
    counts: ConnectionCounts


class MachineLinkPort:
    """See the module. Owned by its listener."""

    def __init__(self, owner: LinkOwner, links: MachineLinkTls) -> None:
        self.loop = owner.loop
        self.counts = owner.counts
        self._owner = owner
        self._links = links
        self._slots = PeerSlots(in_all=MAX_HANDSHAKES, per_peer=MAX_HANDSHAKES_PER_PEER)
        self._logs_from = 0.0

    async def listen(self, sock: socket.socket, *, handshake_s: float) -> asyncio.Server | TlsAcceptor:
        """What accepts, once it is told to. handshake_s: how long a handshake may take."""
        idle_s, between_s, questions = DEAD_AFTER_S
        # Accepted sockets inherit them.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, questions)
        if self._links.server is None:
            return await self.loop.create_server(self._connection, sock=sock, backlog=BACKLOG, start_serving=False)
        return TlsAcceptor(self, sock, self._links.server, self._connection, handshake_s=handshake_s)

    def _connection(self) -> MachineLinkConnection:
        return MachineLinkConnection(self._owner, self)

    # For its connections

    def enter(self, connection: NativeConnection) -> bool:
        self.lost(connection)
        secured = connection.transport.get_extra_info("ssl_object")
        if secured is None:
            return self._links.server is None
        if secured.selected_alpn_protocol() != "h2":
            self.counts.handshake_failed("alpn", connection.peer)
            return False
        if fault := self._links.fault_of(secured):
            self.counts.handshake_failed("name", connection.peer)
            self._log_refused(connection.peer, fault)
            return False
        return True

    def _log_refused(self, peer: str, fault: str) -> None:
        """Once a second at most: the peer tries again."""
        now = monotonic()
        if now >= self._logs_from:
            self._logs_from = now + REFUSAL_EVERY_S
            log.warning("link.refused peer=%s %s", peer, fault)

    # For its acceptor

    def admit(self, peer_name: object, peer: str) -> str | None:
        network = network_of(peer_name)
        if fault := self._slots.fault(network):
            self.counts.refused(fault, peer)
            return None
        self._slots.take(network)
        return network

    def dismiss(self, network: str) -> None:
        self._slots.give_back(network)

    def lost(self, connection: NativeConnection) -> None:
        if connection.network is not None:
            self.dismiss(connection.network)
            connection.network = None
