"""The listener on our own wire: libnghttp2 under one asyncio Protocol for each connection, no thread.

It adopts sockets that its supervisor holds, so that a client that connects while the shard restarts waits and is not
refused; and it hands a connection to the sibling that owns the key of its first request (`steering`).
"""

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Sequence
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc

from onelane.config import App
from onelane.core.context import attached_context_var, current_call_var
from onelane.core.deadlines import Deadlines
from onelane.server import sockets, tls
from onelane.server.acceptor import TlsAcceptor
from onelane.server.connection import CompressingConnection, NativeConnection
from onelane.server.connection_counts import ConnectionCounts
from onelane.server.eager import Eager
from onelane.server.late_web import LateWeb
from onelane.server.listener import KEEP_S, Bind, Serving, compression_of, end_all, log
from onelane.server.methods import Method
from onelane.server.native_call import NativeCall
from onelane.server.peer_slots import PeerSlots, network_of
from onelane.server.sibling_connection import SiblingConnection
from onelane.server.steering import MAX_FIRST_BYTES, FirstBytes, Steering
from onelane.server.time_limits import TimeLimits
from onelane.server.unix_sockets import ListeningPath
from onelane.server.unpacking import SMALL, Unpacker
from onelane.wire.framing import BadWire
from onelane.wire.held_bytes import HeldBytes
from onelane.wire.http2 import Limits
from onelane.wire.packed import Packed
from onelane.wire.server import Broken, Ended, Messages, Opened, WebOpened, WebTranslator

if TYPE_CHECKING:
    from onelane.server.machine_link_tls import MachineLinkTls

UNDECIDED_S = 0.5
"""How long the key of a first request may take to arrive; then this shard keeps the connection."""


class NativeListener:
    """See `onelane.server.listener.Listener`."""

    def __init__(self) -> None:
        self.serving: Serving
        self.counts: ConnectionCounts
        self.loop: asyncio.AbstractEventLoop
        self.deadlines: Deadlines
        self.eager: Eager
        self.methods: dict[bytes, Method] = {}
        self.limits = Limits()
        self.max_message = 0
        self.max_first_bytes = MAX_FIRST_BYTES
        self.web: WebTranslator
        self.held_bytes: HeldBytes
        self.unpacker: Unpacker
        self.compression = grpc.Compression.NoCompression
        self._connection_type: type[NativeConnection] = NativeConnection
        self._slots: PeerSlots
        self._time_limits: TimeLimits
        self._swept_at = 0.0
        self._connections: set[NativeConnection] = set()
        self._undecided: dict[NativeConnection, float] = {}
        """NativeConnection → when this shard keeps it, in monotonic seconds."""
        self._servers: list[tuple[Bind, asyncio.Server | TlsAcceptor]] = []
        self._steering: Steering | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._is_draining = False
        self._is_over = False
        """A connection that was accepted before, and is told of now, is refused."""
        self.is_paused = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self, binds: Sequence[Bind], serving: Serving, settings: App) -> None:
        self.loop = asyncio.get_running_loop()
        self.deadlines = Deadlines(monotonic, self.loop.call_later)
        # Set before `Eager` copies the context: a variable that is new to it costs a task for each call.
        current_call_var.set(None)
        attached_context_var.set(None)
        self.eager = Eager(self.loop)
        self.serving = serving
        self.counts = serving.connection_counts()
        self.counts.observe_open(lambda: self._slots.taken)
        self._slots = PeerSlots(in_all=settings.max_connections, per_peer=settings.max_connections_per_peer)
        self._time_limits = TimeLimits.of(settings)
        self.methods = {method.path.encode(): method for method in serving.methods()}
        self.limits = Limits(max_streams=settings.max_streams, max_metadata=settings.max_metadata_bytes)
        self.max_message = settings.max_message_bytes
        self.web = LateWeb(self.methods, max_message=self.max_message, limits=self.limits, cors=settings.cors)
        self.unpacker = Unpacker(self.loop)
        self.held_bytes = HeldBytes(limit=settings.shard_held_bytes, per_connection=settings.connection_held_bytes)
        self.compression = compression_of(settings)
        self._connection_type = CompressingConnection if self.compression else NativeConnection
        secure = renew = None
        if settings.tls is not None:
            secure, renew = tls.renewed_context(
                functools.partial(tls.server_context, settings.tls, protocols=("h2", "http/1.1"))
            )
        async with contextlib.AsyncExitStack() as bound:
            servers: list[tuple[Bind, asyncio.Server | TlsAcceptor]] = []
            for bind in binds:
                if bind.links is None:
                    server = await self._listen(bind, None if bind.trusted else secure)
                else:
                    server = await self._listen_for_machines(bind, bind.links)
                bound.push_async_callback(_close, server)
                servers.append((bind, server))
            bound.pop_all()
        self._servers = servers
        self._open_steering(binds, secured=secure is not None)
        if renew is not None and settings.tls is not None:
            self._spawn(tls.reload_when_changed(settings.tls, renew))
        self._swept_at = monotonic()
        self._sweep()
        for bind, server in servers:
            await server.start_serving()
            if bind.trusted and bind.address.startswith("unix:"):
                self._keeping = self._spawn(self._keep_open(bind))

    async def _listen(self, bind: Bind, secure: ssl.SSLContext | None) -> asyncio.Server | TlsAcceptor:
        steers = bind.shared and secure is None

        def connected() -> NativeConnection:
            if bind.trusted:
                return SiblingConnection(self)
            return self._connection_type(self, steers=steers and self._steering is not None)

        sock = bind.sock or sockets.listening(bind.address, shared=bind.shared)
        if secure is not None and sock.family != socket.AF_UNIX:
            # Unix sockets stay within the machine.
            return TlsAcceptor(self, sock, secure, connected, handshake_s=self._time_limits.handshake_s)
        # Not `create_unix_server`: from CPython 3.13 on it removes the path when it closes, though the supervisor holds
        # the socket, and the next process of this shard listens on it.
        return await self.loop.create_server(connected, sock=sock, backlog=sockets.BACKLOG, start_serving=False)

    async def _listen_for_machines(self, bind: Bind, links: "MachineLinkTls") -> asyncio.Server | TlsAcceptor:
        # Only with a cluster.
        from onelane.server.machine_link_port import MachineLinkPort

        sock = bind.sock or sockets.listening(bind.address)
        self._spawn(links.follow())
        return await MachineLinkPort(self, links).listen(sock, handshake_s=self._time_limits.handshake_s)

    def _open_steering(self, binds: Sequence[Bind], *, secured: bool) -> None:
        trusted = next((bind for bind in binds if bind.trusted and bind.links is None), None)
        if trusted is None or secured or not any(bind.shared for bind in binds):
            return
        path = trusted.address.removeprefix("unix:")
        self._steering = Steering(path, adopt=self._adopt, take_back=self._adopt)
        self._steering.open()

    async def _keep_open(self, bind: Bind) -> None:
        """Listen anew for siblings wherever the path of their socket has been removed."""
        path = ListeningPath(bind.address.removeprefix("unix:"))
        while True:
            await asyncio.sleep(KEEP_S)
            try:
                if not path.is_in_place:
                    server = await self._listen(replace(bind, sock=path.listen_again()), None)
                    self._servers.append((bind, server))
                    await server.start_serving()
                    log.warning("listener.socket_restored %s had been removed", bind.address)
                if self._steering is not None:
                    self._steering.keep_open()
            except OSError as error:
                log.error("listener.socket_lost %s cannot be restored: %s", bind.address, error)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        """Run `work` until it ends, or the listener does."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Connections

    def opened(self, connection: NativeConnection) -> bool:
        """A client has connected; whether there is room."""
        if self._is_over:
            return False
        if not connection.trusted and connection.network is None:
            connection.network = self.admit(connection.transport.get_extra_info("peername"), connection.peer)
            if connection.network is None:
                return False
        self._connections.add(connection)
        if self.is_paused:
            connection.pause_reading()
        if self._is_draining and not connection.trusted:
            # Accepted between `drain` and closing the socket.
            self._spawn(connection.close_gracefully())
        return True

    def admit(self, peer_name: object, peer: str) -> str | None:
        """Take a slot for a connection of this address: what it counts for; None where it was refused."""
        network = network_of(peer_name)
        if fault := self._slots.fault(network):
            self.counts.refused(fault, peer)
            return None
        self._slots.take(network)
        return network

    def dismiss(self, network: str) -> None:
        """Give the slot of a connection back."""
        self._slots.give_back(network)

    def lost(self, connection: NativeConnection) -> None:
        self._connections.discard(connection)
        self._undecided.pop(connection, None)
        if connection.network is not None:
            self.dismiss(connection.network)
            connection.network = None

    # Which shard owns them

    def owner_of(self, events: Sequence[Any]) -> str | None:
        """The socket of the sibling that owns a connection which begins with these events; "" for this shard, None
        where the key may still arrive."""
        opened = next((event for event in events if type(event) is Opened), None)
        if opened is None:
            # Requests of other protocols are forwarded: a browser has one connection for all keys.
            return "" if any(type(event) is WebOpened for event in events) else None
        stream = opened.stream
        method = self.methods.get(stream.path)
        if method is None:
            return ""
        message = opened.message
        if message is None:
            message = next(
                (e.messages[0] for e in events if type(e) is Messages and e.stream is stream and e.messages), None
            )
        try:
            metadata, _ = stream.metadata()
            if isinstance(message, Packed):
                # A large one is not unpacked for its key: nobody has admitted the call.
                message = message.message() if message.advance(SMALL) else None
        except BadWire:
            return ""
        owner = self.serving.home_of(method, metadata, message)
        if owner is None and (stream.ended or any(type(e) in (Ended, Broken) and e.stream is stream for e in events)):
            # No message will follow, and so no key.
            return ""
        return owner

    def hand_over(self, owner: str, fd: int, first: FirstBytes) -> bool:
        return self._steering is not None and self._steering.hand_over(owner, fd, first)

    def give_up(self, owner: str) -> None:
        """The lane of the sibling with this socket does not tick: end the connections that it has not taken."""
        if self._steering is not None:
            self._steering.give_up(owner)

    def undecided(self, connection: NativeConnection) -> None:
        """Keep a connection in this shard unless the key of its first request arrives within UNDECIDED_S."""
        self._undecided.setdefault(connection, monotonic() + UNDECIDED_S)
        if "undecided" not in self._timers:
            self._timers["undecided"] = self.loop.call_later(UNDECIDED_S, self._keep_undecided)

    def decided(self, connection: NativeConnection) -> None:
        self._undecided.pop(connection, None)

    def _keep_undecided(self) -> None:
        del self._timers["undecided"]
        now = monotonic()
        for connection, at in list(self._undecided.items()):
            if at > now:
                self._timers["undecided"] = self.loop.call_later(at - now, self._keep_undecided)
                return
            connection.keep()

    def _adopt(self, sock: socket.socket, first: FirstBytes) -> None:
        self._spawn(self._adopt_connection(sock, first))

    async def _adopt_connection(self, sock: socket.socket, first: FirstBytes) -> None:
        sock.setblocking(False)
        connection = self._connection_type(self, replay=first)
        try:
            await self.loop.connect_accepted_socket(lambda: connection, sock)
        except BaseException:
            connection.connect_failed()
            raise
        self.serving.steered()

    # Time limits

    def _sweep(self) -> None:
        """Check the time limits of every connection, and again after a fraction of the shortest."""
        now, sweep_s = monotonic(), self._time_limits.sweep_s
        acceptors = [server for _, server in self._servers if isinstance(server, TlsAcceptor)]
        if now - self._swept_at <= 2 * sweep_s:
            # Else the loop stood still: what the clients have sent meanwhile has not been read.
            for connection in list(self._connections):
                if not connection.trusted:
                    self._check_limits(connection, now)
            for acceptor in acceptors:
                acceptor.sweep(now)
        self._swept_at = now
        self._timers["sweep"] = self.loop.call_later(sweep_s, self._sweep)

    def _check_limits(self, connection: NativeConnection, now: float) -> None:
        limits = self._time_limits
        if fault := limits.breach(connection, now):
            self.counts.refused(fault, connection.peer)
            connection.abort()
        elif not connection.is_leaving and (reason := limits.goodbye(connection, now)):
            self._spawn(connection.close_gracefully(reason))
        elif limits.is_keepalive_due(connection, now):
            connection.send_keepalive(now)
        elif limits.is_question_due(connection, now):
            connection.ask_for_frames(now)
        connection.end_slow_calls(now, limits.message_s)

    # The end

    async def drain(self) -> None:
        self._is_draining = True
        await self._stop_accepting([server for bind, server in self._servers if not bind.trusted])
        if self._steering is not None:
            self._steering.close()
        clients = [connection for connection in self._connections if not connection.trusted]
        await asyncio.gather(*(connection.close_gracefully() for connection in clients))

    async def stop(self, grace_s: float) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        await self._stop_accepting([server for _, server in self._servers])
        if self._steering is not None:
            self._steering.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                connections = list(self._connections)
                await asyncio.gather(*(connection.close_gracefully() for connection in connections))
                # Futures, made now: a coroutine would begin one turn of the loop later, and miss a connection that
                # closes in between.
                await asyncio.gather(*(c.closed() for c in connections if c in self._connections))
        self.eager.close()
        for timer in self._timers.values():
            timer.cancel()
        handshakes = [t for _, server in self._servers if isinstance(server, TlsAcceptor) for t in server.end()]
        await end_all([*self._tasks, *handshakes, *self._under_way()])
        self._is_over = True
        for connection in list(self._connections):
            connection.close()

    def under_way(self) -> Sequence[NativeCall]:
        streams = (stream for connection in self._connections for stream in connection.wire.streams.values())
        return [stream.call for stream in streams if stream.call is not None]

    def pause(self) -> None:
        """Read nothing from any connection until `resume`."""
        self.is_paused = True
        for connection in self._connections:
            connection.pause_reading()

    def resume(self) -> None:
        self.is_paused = False
        for connection in self._connections:
            connection.resume_reading()

    async def abort(self) -> None:
        """Close every socket at once, as a process that dies does."""
        self._is_over = True
        await self._stop_accepting([server for _, server in self._servers])
        for connection in list(self._connections):
            connection.abort()
        await self.stop(0.0)

    async def _stop_accepting(self, servers: Sequence[asyncio.Server | TlsAcceptor]) -> None:
        """Accept nothing more by these."""
        for server in servers:
            for sock in getattr(server, "sockets", ()):
                self.loop.remove_reader(sock.fileno())
        # What asyncio has accepted already it never closes, where its server is closed first.
        await asyncio.sleep(0)
        for server in servers:
            server.close()

    def _under_way(self) -> list[asyncio.Task[None]]:
        return [task for connection in self._connections for task in connection.tasks]


async def _close(server: asyncio.Server | TlsAcceptor) -> None:
    server.close()
