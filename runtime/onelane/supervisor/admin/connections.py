"""The connections of the admin server, bounded in number and in the time without a request.

A peer that connects and says nothing, or sends a request byte by byte, would else hold a descriptor for ever; enough of
them would take those that the starts of shards need. Where the bound is reached, the connection that has waited longest
for its request makes room; only where all have a request under way is the new one refused.
"""

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, cast

from aiohttp import web

from onelane.supervisor.admin.auth import AdminHandler

log = logging.getLogger("onelane.supervisor")
MAX_CONNECTIONS = 128
REQUEST_S = 20.0
"""Time from the connection, or from its last answer, until a request must have come whole."""
TELL_EVERY_S = 1.0


class AdminConnections:
    """All connections of one admin server. Owned by its event loop."""

    def __init__(self, max_connections: int, refused: Callable[[str], None]) -> None:
        """refused: told the reason of each connection that is closed, `full` or `slow`."""
        self._refused = refused
        self._max_connections = max_connections
        self._open: dict[web.RequestHandler, AdminConnection] = {}
        self._waiting: dict[AdminConnection, asyncio.TimerHandle] = {}
        """Connections without a request under way, longest wait first → the end of their time."""
        self._loop = asyncio.get_running_loop()
        self._unlogged: Counter[str] = Counter()
        self._logging: asyncio.TimerHandle | None = None

    @web.middleware
    async def serve(self, request: web.Request, handler: AdminHandler) -> web.StreamResponse:
        """Handle a request. Its connection makes room for no other meanwhile."""
        connection = self._open.get(request.protocol)
        self._stop_waiting(connection)
        try:
            return await handler(request)
        finally:
            if connection is not None and connection.handler in self._open:
                self._wait_for_request(connection)

    def admit(self, connection: "AdminConnection") -> bool:
        """A connection has been made; whether there is room, maybe in place of another."""
        if len(self._open) >= self._max_connections:
            longest_waiting = next(iter(self._waiting), None)
            self._refuse(longest_waiting or connection, "full")
            if longest_waiting is None:
                return False
        self._open[connection.handler] = connection
        self._wait_for_request(connection)
        return True

    def lost(self, connection: "AdminConnection") -> None:
        self._open.pop(connection.handler, None)
        self._stop_waiting(connection)

    def close(self) -> None:
        for timer in (*self._waiting.values(), *([self._logging] if self._logging else [])):
            timer.cancel()

    def _wait_for_request(self, connection: "AdminConnection") -> None:
        self._stop_waiting(connection)
        self._waiting[connection] = self._loop.call_later(REQUEST_S, self._refuse, connection, "slow")

    def _stop_waiting(self, connection: "AdminConnection | None") -> None:
        if connection is not None and (timer := self._waiting.pop(connection, None)) is not None:
            timer.cancel()

    def _refuse(self, connection: "AdminConnection", reason: str) -> None:
        self.lost(connection)
        connection.transport.abort()
        self._refused(reason)
        self._unlogged[reason] += 1
        if self._logging is None:
            self._log()

    def _log(self) -> None:
        self._logging = None
        if self._unlogged:
            reasons = " ".join(f"{reason}={count}" for reason, count in self._unlogged.items())
            log.warning("admin.connections_closed %s open=%d", reasons, len(self._open))
            self._unlogged.clear()
            self._logging = self._loop.call_later(TELL_EVERY_S, self._log)


class Abortable(Protocol):
    """A connection, or the handshake that precedes it."""

    def abort(self) -> None:
        """End it at once."""


class _Handshake:
    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def abort(self) -> None:
        self._task.cancel()


class AdminConnection(asyncio.Protocol):
    """One connection: aiohttp's, which is told nothing of it where there is no room, nor before it is secured."""

    transport: "Abortable"

    def __init__(self, handler: web.RequestHandler, connections: AdminConnections) -> None:
        self.handler = handler
        self._connections = connections
        self._is_admitted = False
        self._is_open = False
        """Whether aiohttp has been told of it."""

    def secure(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Take an accepted socket, as one of the connections from now on, and hand it on after its handshake."""
        task = asyncio.get_running_loop().create_task(self._shake_hands(sock, context))
        self.transport = _Handshake(task)
        self._is_admitted = self._connections.admit(self)

        def ended(task: asyncio.Task[None]) -> None:
            if not self._is_open:
                self._connections.lost(self)
                sock.close()

        task.add_done_callback(ended)

    async def _shake_hands(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        with suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self, sock, ssl=context, ssl_handshake_timeout=REQUEST_S
            )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        secured = self._is_admitted
        self.transport = cast(asyncio.Transport, transport)
        self._is_admitted = secured or self._connections.admit(self)
        if self._is_admitted:
            self._is_open = True
            self.handler.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._is_open:
            self._connections.lost(self)
            self.handler.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if self._is_admitted:
            self.handler.data_received(data)

    def eof_received(self) -> None:
        if self._is_admitted:
            self.handler.eof_received()

    def pause_writing(self) -> None:
        self.handler.pause_writing()

    def resume_writing(self) -> None:
        self.handler.resume_writing()
