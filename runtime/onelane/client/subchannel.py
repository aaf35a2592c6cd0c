"""The connections of a channel to one address: made when needed, kept, made anew, several where one is full.

Promises: a call that no server has looked at is sent again, unseen by its caller; everything else that a lost
connection takes with it fails with UNAVAILABLE at once. Source: grpc/doc/connectivity-semantics-and-api.md,
connection-backoff.md, wait-for-ready.md.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, cast

import grpc

from onelane.core.deadlines import Deadlines
from onelane.server import sockets
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

State = grpc.ChannelConnectivity
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
HELD_BACK = 64 * 1024
"""Bytes of one stream that may wait for the server to read; `write` waits with more."""
BACKOFF_GROWTH = 1.6
BACKOFF_JITTER = 0.2


@dataclass(frozen=True, slots=True)
class Dialling:
    """How a channel connects and keeps its connections. The defaults are gRPC's."""

    initial_backoff_s: float = 1.0
    max_backoff_s: float = 120.0
    connect_s: float = 20.0
    """How long one attempt may take, the server's hello included."""
    keepalive_s: float | None = None
    """Quiet seconds after which a ping asks whether the server is there; None for never."""
    ping_timeout_s: float = 20.0
    max_message_bytes: int = 4 * 1024 * 1024
    """Largest message taken; a larger one fails its call with RESOURCE_EXHAUSTED."""
    max_connections: int = 8
    """Connections at once, where one has as many calls as the server allows."""
    max_waiting: int = 10_000
    """Calls that may wait for a connection; one more fails with RESOURCE_EXHAUSTED."""
    tls: ssl.SSLContext | None = None
    """See `onelane.tls.client_context`; None for cleartext."""
    reach: Mapping[str, str] | None = None
    """host:port → the target that is dialled instead; for tests, and for what stands between."""
    authority: str = ""
    """What `:authority` says, and the name that the server's certificate must have; the target's host where empty."""


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


class Connection(asyncio.Protocol):
    """One connection. Owned by its subchannel."""

    def __init__(self, owner: "Subchannel") -> None:
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
        return sockets.peer(self._transport)

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


class Subchannel:
    """See the module. Owned by one event loop."""

    def __init__(self, target: str, dialling: Dialling) -> None:
        self.dialling = dialling
        address = sockets.dialled(target)
        self.authority = (dialling.authority or ("localhost" if address.startswith("unix:") else address)).encode()
        self.address = sockets.dialled(dialling.reach.get(address, address)) if dialling.reach is not None else address
        self.state = State.IDLE
        self.loop = asyncio.get_running_loop()
        self.deadlines = Deadlines(self.loop)
        self._connections: list[Connection] = []
        self._waiting: deque[Outgoing] = deque()
        self._connecting: asyncio.Task[None] | None = None
        self._changed: list[asyncio.Future[None]] = []
        self._last_error = ""
        self._rng = Random()

    def start(self, call: Outgoing) -> None:
        """Send a call now, or when a connection stands."""
        for connection in self._connections:
            if connection.can_call:
                call.begin(connection)
                return
        if self.state is State.SHUTDOWN:
            call.finish(UNAVAILABLE, "the channel is closed")
        elif self.state is State.TRANSIENT_FAILURE and not call.wait_for_ready:
            call.finish(UNAVAILABLE, self._failure())
        elif len(self._waiting) >= self.dialling.max_waiting:
            call.finish(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self.dialling.max_waiting} calls wait for {self.address}"
            )
        else:
            self._waiting.append(call)
            if len(self._connections) < self.dialling.max_connections:
                self.connect()

    def forget(self, call: Outgoing) -> None:
        """A call that waits need not be sent any more."""
        if call in self._waiting:
            self._waiting.remove(call)

    def connect(self) -> None:
        """Begin to connect, unless that is under way."""
        if self._connecting is None and self.state is not State.SHUTDOWN:
            self._connecting = self.loop.create_task(self._connect())

    async def state_change(self, last: grpc.ChannelConnectivity) -> None:
        """Wait until the state is not `last`."""
        while self.state is last:
            changed = self.loop.create_future()
            self._changed.append(changed)
            try:
                await changed
            finally:
                # Who has stopped to wait is not kept.
                if changed in self._changed:
                    self._changed.remove(changed)

    async def close(self, grace: float | None) -> None:
        """Take no call; let those under way finish for `grace` seconds (None: 0), then cancel them."""
        self._become(State.SHUTDOWN)
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        calls = [stream.call for connection in self._connections for stream in connection.wire.streams.values()]
        if grace and calls:
            await asyncio.wait([asyncio.ensure_future(call.over()) for call in calls], timeout=grace)
        for call in (*calls, *self._waiting):
            call.cancel()
        self._waiting.clear()
        for connection in list(self._connections):
            connection.close()

    # What connections say

    def leave(self, connection: Connection) -> None:
        """A connection takes no further call."""
        if connection in self._connections:
            self._connections.remove(connection)
            if not self._connections and self.state is State.READY:
                self._become(State.IDLE)
        if self._waiting:
            self.connect()

    lost = leave

    def room(self) -> None:
        """A connection may have room again."""
        while self._waiting and any(connection.can_call for connection in self._connections):
            self.start(self._waiting.popleft())

    # Connecting

    async def _connect(self) -> None:
        attempt = 0
        try:
            while not self._connections or self._waiting:
                if not self._connections:
                    self._become(State.CONNECTING)
                try:
                    connection = await self._dial()
                except Exception as error:
                    # Whatever it is, who waits must learn of it.
                    self._failed(error)
                    await asyncio.sleep(self._backoff_s(attempt))
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
        made: list[Connection] = []

        def factory() -> Connection:
            made.append(Connection(self))
            return made[-1]

        try:
            async with asyncio.timeout(self.dialling.connect_s):
                await self._open(factory)
                await made[-1].ready
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {self.dialling.connect_s:g} s") from error
        finally:
            for connection in made:
                if not connection.ready.done() or connection.ready.cancelled() or connection.ready.exception():
                    connection.give_up()
        return made[-1]

    async def _open(self, factory: Callable[[], Connection]) -> None:
        tls = self.dialling.tls
        if self.address.startswith("unix:"):
            await self.loop.create_unix_connection(
                factory, self.address.removeprefix("unix:"), ssl=tls, server_hostname="localhost" if tls else None
            )
            return
        host, port = sockets.split(self.address)
        name = sockets.split(self.dialling.authority)[0] if ":" in self.dialling.authority else self.dialling.authority
        await self.loop.create_connection(factory, host, port, ssl=tls, server_hostname=(name or host) if tls else None)

    def _failed(self, error: Exception) -> None:
        self._last_error = str(error) or type(error).__name__
        if self._connections:
            return
        self._become(State.TRANSIENT_FAILURE)
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            if call.wait_for_ready:
                self._waiting.append(call)
            else:
                call.finish(UNAVAILABLE, self._failure())

    def _failure(self) -> str:
        return f"failed to connect to {self.address}: {self._last_error}"

    def _backoff_s(self, attempt: int) -> float:
        base = min(self.dialling.max_backoff_s, self.dialling.initial_backoff_s * BACKOFF_GROWTH ** min(attempt, 64))
        return base * self._rng.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)

    def _become(self, state: grpc.ChannelConnectivity) -> None:
        if state is self.state or self.state is State.SHUTDOWN:
            return
        self.state = state
        changed, self._changed = self._changed, []
        for future in changed:
            if not future.done():
                future.set_result(None)
