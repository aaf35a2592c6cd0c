"""Accepts the connections of a TLS address, and makes their handshakes one after the other.

A handshake costs the lane a millisecond or more; a burst of clients would hold it for all of theirs. So each turn of
the loop accepts one connection and begins one handshake, and only once the client's first bytes have come: a client
that connects and sends nothing costs a descriptor, a slot of `peer_slots`, and no more, until its time is over.
"""

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from onelane.server.connection import NativeConnection
from onelane.server.connection_counts import ConnectionCounts
from onelane.server.unix_sockets import BACKLOG

MIN_HANDSHAKE_S = 0.1
"""For a handshake whose first bytes came late."""
ACCEPT_PAUSE_S = 1.0
"""Pause where the process, or the system, can open no further descriptor: the listening socket stays readable."""


class TlsOwner(Protocol):
    """A listener as its acceptors see it."""

    loop: asyncio.AbstractEventLoop
    counts: ConnectionCounts

    def admit(self, peer_name: object, peer: str) -> str | None:
        """Take a slot for a connection of this address: what it counts for; None where it was refused."""

    def dismiss(self, network: str) -> None:
        """Give the slot back."""

    def lost(self, connection: NativeConnection) -> None:
        """The connection has closed."""


class TlsAcceptor:
    """See the module. Has the methods of `asyncio.Server` that a listener needs."""

    def __init__(
        self,
        owner: TlsOwner,
        sock: socket.socket,
        context: ssl.SSLContext,
        connected: Callable[[], NativeConnection],
        *,
        handshake_s: float,
    ) -> None:
        """connected: makes the protocol of a connection whose handshake begins."""
        self._owner = owner
        self._listening = sock
        self._context = context
        self._connected = connected
        self._handshake_s = handshake_s
        self._silent: dict[socket.socket, tuple[str, float]] = {}
        """Accepted, nothing has come yet → what it counts for, and until when, in monotonic seconds."""
        self._ready: deque[tuple[socket.socket, str, float]] = deque()
        """Those whose first bytes have come, in that order."""
        self._handshakes: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._will_begin = False
        self._is_closed = False

    async def start_serving(self) -> None:
        self._listening.setblocking(False)
        self._listening.listen(BACKLOG)
        self._accept_on()

    def close(self) -> None:
        """Accept nothing more. Connections that have been accepted go on."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._pause is not None:
            self._pause.cancel()
        self._owner.loop.remove_reader(self._listening)
        self._listening.close()

    def end(self) -> list[asyncio.Task[None]]:
        """Close, also the connections without a handshake; the tasks of handshakes under way."""
        self.close()
        for sock, (network, _) in list(self._silent.items()):
            self._drop(sock, network)
        while self._ready:
            sock, network, _ = self._ready.popleft()
            self._drop(sock, network)
        return list(self._handshakes)

    def sweep(self, now: float) -> None:
        """Close the connections on which nothing has come in time."""
        for sock, (network, until) in list(self._silent.items()):
            if until > now:
                return
            self._owner.counts.handshake_failed("timeout", _peer_of(sock))
            self._drop(sock, network)

    # Accepting

    def _accept_on(self) -> None:
        self._pause = None
        self._owner.loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        try:
            sock, peer_name = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            # Another shard has taken it, or the client has left.
            return
        except OSError as error:
            self._owner.counts.refused("descriptors", error.strerror or str(error))
            self._owner.loop.remove_reader(self._listening)
            self._pause = self._owner.loop.call_later(ACCEPT_PAUSE_S, self._accept_on)
            return
        sock.setblocking(False)
        network = self._owner.admit(peer_name, _peer_of(sock))
        if network is None:
            sock.close()
            return
        self._silent[sock] = (network, monotonic() + self._handshake_s)
        self._owner.loop.add_reader(sock, self._begins, sock)

    def _drop(self, sock: socket.socket, network: str) -> None:
        if self._silent.pop(sock, None) is not None:
            self._owner.loop.remove_reader(sock)
        sock.close()
        self._owner.dismiss(network)

    # Handshakes

    def _begins(self, sock: socket.socket) -> None:
        """The first bytes of a client have come."""
        self._owner.loop.remove_reader(sock)
        self._ready.append((sock, *self._silent.pop(sock)))
        if not self._will_begin:
            self._begin_next()

    def _begin_next(self) -> None:
        """Begin one handshake, and the next one in the next turn of the loop."""
        self._will_begin = bool(self._ready)
        if not self._ready:
            return
        task = self._owner.loop.create_task(self._shake_hands(*self._ready.popleft()))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)
        self._owner.loop.call_soon(self._begin_next)

    async def _shake_hands(self, sock: socket.socket, network: str, until: float) -> None:
        connection = self._connected()
        connection.network = network
        peer = _peer_of(sock)
        try:
            await self._owner.loop.connect_accepted_socket(
                lambda: connection,
                sock,
                ssl=self._context,
                ssl_handshake_timeout=max(MIN_HANDSHAKE_S, until - monotonic()),
            )
        except OSError as error:
            self._owner.counts.handshake_failed(_kind_of(error), peer)
            sock.close()
            self._owner.lost(connection)
        except BaseException:
            connection.connect_failed()
            sock.close()
            self._owner.lost(connection)
            raise
        else:
            self._owner.counts.handshake_done()


def _peer_of(sock: socket.socket) -> str:
    with contextlib.suppress(OSError):
        host, port = sock.getpeername()[:2]
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
    return ""


def _kind_of(error: OSError) -> str:
    """Why a handshake has failed: the value of `error.type`."""
    if isinstance(error, ssl.SSLCertVerificationError) or getattr(error, "reason", None) in (
        "PEER_DID_NOT_RETURN_A_CERTIFICATE",
        "CERTIFICATE_VERIFY_FAILED",
    ):
        return "certificate"
    if isinstance(error, ssl.SSLError):
        return "protocol"
    # The event loops say so where their time for it is over.
    return "timeout" if type(error) is ConnectionAbortedError else "closed"
