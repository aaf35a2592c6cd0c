"""The connections of a channel to one address: made when needed, kept, made anew, several where one is full.

Promises: a call that no server has looked at is sent again, unseen by its caller; everything else that a lost
connection takes with it fails with UNAVAILABLE at once. Source: grpc/doc/connectivity-semantics-and-api.md,
connection-backoff.md, wait-for-ready.md.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from time import monotonic
from typing import Any

import grpc
import grpc.aio

from onelane.client.connection import UNAVAILABLE, Connection, Outgoing
from onelane.client.options import Dialling, NoLink
from onelane.core import addresses
from onelane.core.backoff import backoff_s
from onelane.core.deadlines import Deadlines
from onelane.errors import NotKept, caused
from onelane.wire import unix_peers
from onelane.wire.framing import Headers

State = grpc.ChannelConnectivity
CHANNEL_CLOSED = "Channel is closed."
"""grpc.aio's text."""
BACKOFF_GROWTH = 1.6
BACKOFF_JITTER = (0.8, 1.2)


class Subchannel:
    """See the module. Owned by the event loop in which it is first used; it may be made before one runs."""

    def __init__(self, target: str, dialling: Dialling) -> None:
        self.dialling = dialling
        address = addresses.parse_target(target)
        self.authority = (dialling.authority or ("localhost" if address.startswith("unix:") else address)).encode()
        self.address = (
            addresses.parse_target(overrides.get(address, address))
            if (overrides := dialling.resolver_overrides)
            else address
        )
        self.state = State.IDLE
        self.deadlines = Deadlines(monotonic, _call_later)
        self._connections: list[Connection] = []
        """Those that take calls."""
        self._open_connections = self._connections
        """The same list, unless the channel closes: then new calls see none."""
        self._is_closing = False
        self._leaving: set[Connection] = set()
        """Those whose server is going away: only their calls under way go on."""
        self._waiting: deque[Outgoing] = deque()
        self._preparing: dict[asyncio.Task[None], Outgoing] = {}
        """Calls that wait for some of their headers."""
        self._connecting: asyncio.Task[None] | None = None
        self._changed: list[asyncio.Future[None]] = []
        self._last_error = ""
        self._rng = Random()
        self.fallback: Subchannel | None = None
        """Where calls go that find no connection here; without one they wait for it."""

    def start(self, call: Outgoing) -> None:
        """Send a call now, or when a connection stands.

        Raises:
            UsageError: the channel is closed, or closes.
        """
        for connection in self._open_connections:
            if connection.can_call:
                call.begin(connection)
                return
        self._check_open(call)
        self._wait_for_connection(call)

    def _check_open(self, call: Outgoing) -> None:
        if self._is_closing:
            # What the call holds is released, though its caller never sees it.
            call.finish(UNAVAILABLE, CHANNEL_CLOSED)
            raise grpc.aio.UsageError(CHANNEL_CLOSED)

    def start_later(self, call: Outgoing, headers: Callable[[], Awaitable[Headers]]) -> None:
        """Send a call once some of its headers are known, which `headers` returns; its failure is the call's.

        Raises:
            UsageError: see `start`.
        """
        self._check_open(call)
        task = asyncio.get_running_loop().create_task(self._start_with(call, headers))
        self._preparing[task] = call
        task.add_done_callback(self._preparing.pop)

    async def _start_with(self, call: Outgoing, headers: Callable[[], Awaitable[Headers]]) -> None:
        try:
            call.headers = [*call.headers, *await headers()]
        except NotKept as error:
            # Another attempt would be sent: what the call rests on has never happened.
            call.abandon(str(error))
        except Exception as error:
            # Of whatever kind: the call fails with it.
            call.finish(UNAVAILABLE, str(error))
        else:
            if not call.is_over:
                self.restart(call)

    def restart(self, call: Outgoing) -> None:
        """Send a call again that no server has looked at, or another attempt of one that has failed."""
        if self.state is State.SHUTDOWN:
            call.finish(UNAVAILABLE, CHANNEL_CLOSED)
        elif (connection := self._with_room()) is not None:
            call.begin_late(connection)
        else:
            self._wait_for_connection(call)

    def _with_room(self) -> Connection | None:
        return next((connection for connection in self._connections if connection.can_call), None)

    def _wait_for_connection(self, call: Outgoing) -> None:
        if self.fallback is not None and not self._connections:
            self._give_away(call, self.fallback)
        elif self.state is State.TRANSIENT_FAILURE and not call.wait_for_ready:
            call.finish(UNAVAILABLE, self._failure())
        elif len(self._waiting) >= self.dialling.max_waiting:
            call.finish(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self.dialling.max_waiting} calls wait for {self.address}"
            )
        else:
            self._waiting.append(call)
            for connection in [connection for connection in self._connections if connection.is_used_up]:
                connection.retire()
                self.leave(connection)
            if len(self._connections) < self.dialling.max_connections:
                self.connect()

    def _give_away(self, call: Outgoing, fallback: "Subchannel") -> None:
        call.moves_to(fallback)
        fallback.restart(call)

    def forget(self, call: Outgoing) -> None:
        """Remove a call that waits for a connection, or for its headers."""
        if call in self._waiting:
            self._waiting.remove(call)
        for task, prepared in self._preparing.items():
            if prepared is call:
                task.cancel()

    def connect(self) -> None:
        """Begin to connect, unless that is under way."""
        if self._connecting is None and self.state is not State.SHUTDOWN:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def state_change(self, last: grpc.ChannelConnectivity) -> None:
        """Wait until the state is not `last`.

        Raises:
            UsageError: the channel is closed.
        """
        if self.state is State.SHUTDOWN:
            raise grpc.aio.UsageError(CHANNEL_CLOSED)
        while self.state is last:
            changed = asyncio.get_running_loop().create_future()
            self._changed.append(changed)
            try:
                await changed
            finally:
                # Remove the future of a waiter that was cancelled.
                if changed in self._changed:
                    self._changed.remove(changed)

    # Any: compiled, an int would become a float, and the error names it as it was given.
    async def close(self, grace: Any) -> None:
        """Take no new call; let those that were made finish for `grace` seconds (None: 0), then cancel them.

        Raises:
            ValueError: grace is negative.
        """
        self.begin_close(grace)
        if grace and (calls := self._calls()):
            await asyncio.wait([asyncio.ensure_future(call.wait_ended()) for call in calls], timeout=grace)
        self._become(State.SHUTDOWN)
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        for call in self._calls():
            call.cancel()
        for task in self._preparing:
            task.cancel()
        self._waiting.clear()
        for connection in [*self._connections, *self._leaving]:
            connection.close()

    def give_up(self, reason: str) -> None:
        """Take no new call, and end all others with UNAVAILABLE at once: the peer does not answer."""
        self.begin_close(None)
        self._become(State.SHUTDOWN)
        if self._connecting is not None:
            self._connecting.cancel()
        waiting = [*self._waiting, *self._preparing.values()]
        for task in self._preparing:
            task.cancel()
        self._waiting.clear()
        for call in waiting:
            call.finish(UNAVAILABLE, reason)
        for connection in [*self._connections, *self._leaving]:
            connection.cut_off(reason)

    def begin_close(self, grace: Any) -> None:
        """Take no new call; `close` must follow.

        Raises:
            ValueError: grace is negative.
        """
        if grace is not None and grace < 0:
            raise ValueError(f"grace must be non-negative, got {grace}.")
        self._is_closing = True
        self._open_connections = []

    def _calls(self) -> list[Any]:
        """Those under way, and those that wait for a connection or for their headers."""
        connections = [*self._connections, *self._leaving]
        under_way = (stream.call for connection in connections for stream in connection.wire.streams.values())
        return [*under_way, *self._waiting, *self._preparing.values()]

    # Called by connections, see `ConnectionPool`

    def leave(self, connection: Connection) -> None:
        """The server of a connection is going away: it takes no further call."""
        if connection in self._connections:
            self._leaving.add(connection)
        self._remove(connection)

    def lost(self, connection: Connection) -> None:
        """A connection has closed."""
        self._leaving.discard(connection)
        self._remove(connection)

    def _remove(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            if not self._connections and self.state is State.READY:
                self._become(State.IDLE)
        if self._waiting:
            self.connect()

    def room(self) -> None:
        """A connection may have room again: send calls that wait."""
        while self._waiting and (connection := self._with_room()) is not None:
            self._waiting.popleft().begin_late(connection)

    # Connecting

    async def _connect(self) -> None:
        attempt = 0
        try:
            while not self._connections or self._waiting:
                if not self._connections and self.state is not State.TRANSIENT_FAILURE:
                    # After a failure it stays failed until a connection stands: no call waits for another attempt that
                    # is as likely to fail, unless it wants to. gRFC A62.
                    self._become(State.CONNECTING)
                try:
                    connection = await self._dial()
                except Exception as error:
                    # Of whatever kind: the calls that wait for a connection fail with it.
                    self._failed(error)
                    await asyncio.sleep(self._pause_s(attempt))
                    attempt += 1
                    continue
                self._connections.append(connection)
                self._become(State.READY)
                self.room()
                if len(self._connections) >= self.dialling.max_connections:
                    break
        finally:
            self._connecting = None

    async def _dial(self) -> Connection:
        if self.dialling.offers_link:
            with suppress(NoLink):
                return await self._dial_by(link=True)
        return await self._dial_by(link=False)

    async def _dial_by(self, *, link: bool) -> Connection:
        connections: list[Connection] = []

        def factory() -> Connection:
            connections.append(Connection(self, link))
            return connections[-1]

        try:
            async with asyncio.timeout(self.dialling.connect_s):
                await self._open(factory)
                await connections[-1].ready
        except BaseException as error:
            # One that was cancelled may be ready already.
            for connection in connections:
                connection.give_up()
            if isinstance(error, TimeoutError) and self.dialling.connect_s is not None:
                late = TimeoutError(f"no answer within {self.dialling.connect_s:g} s")
                raise caused(late, error) from error
            raise
        return connections[-1]

    async def _open(self, factory: Callable[[], Connection]) -> None:
        loop, tls = asyncio.get_running_loop(), self.dialling.tls
        if self.address.startswith("unix:"):
            transport, _ = await loop.create_unix_connection(
                factory, self.address.removeprefix("unix:"), ssl=tls, server_hostname="localhost" if tls else None
            )
            # A connection that has failed already is not looked at: it never becomes ready.
            if self.dialling.own_user_only and not transport.is_closing():
                unix_peers.check_own(transport.get_extra_info("socket"))
            return
        host, port = addresses.split(self.address)
        name = (
            addresses.split(self.dialling.authority)[0] if ":" in self.dialling.authority else self.dialling.authority
        )
        transport, _ = await loop.create_connection(
            factory, host, port, ssl=tls, server_hostname=(name or host) if tls else None
        )
        if self.dialling.check_peer is not None:
            self.dialling.check_peer(transport)

    def _failed(self, error: Exception) -> None:
        self._last_error = str(error) or type(error).__name__
        if self._connections:
            return
        self._become(State.TRANSIENT_FAILURE)
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            if self.fallback is not None:
                self._give_away(call, self.fallback)
            elif call.wait_for_ready:
                self._waiting.append(call)
            else:
                call.finish(UNAVAILABLE, self._failure())

    def _failure(self) -> str:
        return f"failed to connect to {self.address}: {self._last_error}"

    def _pause_s(self, attempt: int) -> float:
        initial_s, max_s = self.dialling.initial_backoff_s, self.dialling.max_backoff_s
        return backoff_s(
            attempt, base_s=initial_s, cap_s=max_s, growth=BACKOFF_GROWTH, jitter=BACKOFF_JITTER, rng=self._rng
        )

    def _become(self, state: grpc.ChannelConnectivity) -> None:
        if state is self.state or self.state is State.SHUTDOWN:
            return
        self.state = state
        changed, self._changed = self._changed, []
        for future in changed:
            if not future.done():
                future.set_result(None)


def _call_later(delay_s: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(delay_s, callback)
