"""The listener on `grpc.aio`: the reference, and the way to what gRPC's C core alone has.

Generic handlers only: grpcio 1.84 and newer slow down with each registered method. One grpc server for each address,
so that own ports are bound without SO_REUSEPORT and the shared one with it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, cast

import grpc
import grpc.aio

from onelane.config import App, Tls
from onelane.core.hop import split
from onelane.errors import PortTaken
from onelane.server import tls
from onelane.server.call import FORWARDED_HOP, OK, Call, Metadata
from onelane.server.listener import KEEP_S, Bind, Serving, compression_of, log
from onelane.server.methods import Method
from onelane.server.unix_sockets import ListeningPath, make_way
from onelane.wire import framing
from onelane.wire.framing import BadWire
from onelane.wire.http2 import SIBLING_LIMITS

PENDING_CALLS = 100_000
"""Calls that gRPC's core may queue before it refuses at random with CANCELLED; the lane's own admission comes first."""
PENDING_S = 24 * 60 * 60
"""How long a call may wait in gRPC's core until the lane takes it. By default the core ends it as CANCELLED after 30 s,
without a word of ours: behind a lane that was stalled or starved for so long. A client's deadline ends it earlier."""


class Ending:
    """Whether a listener ends the calls that its `stop` has given their time. grpc.aio cancels the task of a call for
    that just as where its client has cancelled it, and tells nobody why."""

    has_begun = False


class GrpcioCall(Call):
    """A call whose bytes come through grpc.aio."""

    __slots__ = ("_context", "_ending", "_hop", "unsent_initial")

    def __init__(self, method: str, context: Any, ending: Ending, *, trusted: bool) -> None:
        metadata, client = split(context.invocation_metadata() or (), trusted=trusted)
        super().__init__(method, metadata, trusted=trusted)
        self._context = context
        self._ending = ending
        self.unsent_initial: Metadata | None = None
        """Initial metadata of a plain handler, which cannot await: sent before its answer, or its next message."""
        self._hop = client
        """Of the client, where a sibling sent the call on."""
        if client is not None:
            self.hop = FORWARDED_HOP
            self.parent = client.trace
            if client.identity is not None:
                self.prove(client.identity)

    async def receive(self) -> bytes | None:
        if self.unsent_initial is not None:
            await self.send_unsent_initial()
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message

    async def send(self, message: bytes) -> None:
        if self.unsent_initial is not None:
            await self.send_unsent_initial()
        await self._context.write(message)

    async def send_initial(self, metadata: Metadata) -> None:
        await self._context.send_initial_metadata(tuple(metadata))

    def send_initial_now(self, metadata: Metadata) -> None:
        self.unsent_initial = metadata

    async def send_unsent_initial(self) -> None:
        """Send the initial metadata of a plain handler."""
        metadata, self.unsent_initial = self.unsent_initial, None
        await self.send_initial(metadata or ())

    def time_remaining(self) -> float | None:
        remaining: float | None = self._context.time_remaining()
        if self._hop is not None and self._hop.deadline_at is not None:
            # The same instant as at the shard that sent it on.
            return max(0.0, self._hop.deadline_at - monotonic())
        return remaining

    def peer(self) -> str:
        return str(self._context.peer()) if self._hop is None else self._hop.peer

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        if self._hop is not None:
            return self._hop.auth
        auth: Mapping[str, Iterable[bytes]] = self._context.auth_context()
        return auth

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        # grpcio's own: it calls them once the answer has left.
        self._context.add_done_callback(lambda _: self.run_callback(callback, self))

    @property
    def is_cancelled_by_client(self) -> bool:
        return not self._ending.has_begun

    def cancelled(self) -> bool:
        return super().cancelled() or bool(self._context.cancelled())

    def set_compression(self, compression: grpc.Compression) -> None:
        super().set_compression(compression)
        self._context.set_compression(compression)

    def disable_next_message_compression(self) -> None:
        self._context.disable_next_message_compression()


class _Handlers(grpc.GenericRpcHandler):
    """Every method of one lane, as grpc finds them."""

    def __init__(self, serving: Serving, ending: Ending, *, trusted: bool) -> None:
        self._handlers = {m.path: _handler(serving, ending, m, trusted=trusted) for m in serving.methods()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)


def _handler(serving: Serving, ending: Ending, method: Method, *, trusted: bool) -> grpc.RpcMethodHandler[Any, Any]:
    answer = functools.partial(_answer, serving, ending, method, trusted)
    match method.request_streaming, method.response_streaming:
        case False, False:
            # Written out: this is the path of nearly every call.
            async def unary(request: bytes, context: Any) -> bytes:
                call = GrpcioCall(method.path, context, ending, trusted=trusted)
                if call.time_remaining() == 0:
                    await _refuse_late(context)
                try:
                    reply = await serving.serve(method, call, request)
                except asyncio.CancelledError:
                    if context.cancelled():
                        raise
                    # By its own handler, or by a drain: grpcio would answer it with no status at all.
                    reply = b""
                if call.code_now is not OK or call.trailers or call.unsent_initial is not None:
                    await _end(call, context)
                return reply

            return grpc.unary_unary_rpc_method_handler(unary)
        case False, True:

            async def unary_stream(request: bytes, context: Any) -> None:
                await answer(context, request)

            return grpc.unary_stream_rpc_method_handler(unary_stream)
        case True, False:

            async def stream_unary(_: Any, context: Any) -> bytes:
                return await answer(context, None)

            return grpc.stream_unary_rpc_method_handler(stream_unary)

    async def stream_stream(_: Any, context: Any) -> None:
        await answer(context, None)

    return grpc.stream_stream_rpc_method_handler(stream_stream)


async def _answer(
    serving: Serving, ending: Ending, method: Method, trusted: bool, context: Any, request: bytes | None
) -> bytes:
    call = GrpcioCall(method.path, context, ending, trusted=trusted)
    if call.time_remaining() == 0:
        await _refuse_late(context)
    try:
        reply = await serving.serve(method, call, request)
    except asyncio.CancelledError:
        if context.cancelled():
            raise
        # As above: the client still waits.
        reply = b""
    await _end(call, context)
    return reply


async def _refuse_late(context: Any) -> None:
    """End a call whose deadline had passed before it came here, in the words of gRPC's core, which does so itself where
    its timer has run by then."""
    await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")


async def _end(call: GrpcioCall, context: Any) -> None:
    if call.unsent_initial is not None:
        await call.send_unsent_initial()
    if call.trailers:
        try:
            # gRPC's core fails a call without any answer for metadata that it cannot send.
            framing.write_metadata(call.trailers)
        except BadWire as error:
            call.fail(grpc.StatusCode.INTERNAL, str(error))
        else:
            context.set_trailing_metadata(tuple(call.trailers))
    if call.code_now is not OK:
        # And not `set_code`, with which grpc.aio sends an empty message before the status of a unary answer.
        await context.abort(call.code_now, call.details_now)


class _Certificates:
    """The files of one app for gRPC's core, which asks before each handshake, in a thread of its own."""

    def __init__(self, settings: Tls) -> None:
        self._settings = settings
        self.load()

    def load(self) -> None:
        # It says which file cannot be used; gRPC's core would not.
        tls.server_context(self._settings)
        self._newest = grpc.ssl_server_certificate_configuration(
            [(Path(self._settings.key).read_bytes(), Path(self._settings.cert).read_bytes())],
            Path(self._settings.client_ca).read_bytes() if self._settings.client_ca else None,
        )

    def credentials(self) -> grpc.ServerCredentials:
        """For one port: its handshakes use the newest files."""
        used = self._newest

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            if used is self._newest:
                return None
            used = self._newest
            return used

        is_mutual = self._settings.client_ca is not None
        # grpcio takes None for no change.
        fetch = cast(Callable[[], grpc.ServerCertificateConfiguration], changed)
        return grpc.dynamic_ssl_server_credentials(used, fetch, require_client_authentication=is_mutual)


class GrpcioListener:
    """See `onelane.server.listener.Listener`."""

    def __init__(self) -> None:
        self._servers: list[grpc.aio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = Ending()

    async def start(self, binds: Sequence[Bind], serving: Serving, settings: App) -> None:
        certificates = _Certificates(settings.tls) if settings.tls is not None else None
        bound = functools.partial(
            _server, serving=serving, settings=settings, certificates=certificates, ending=self._ending
        )
        servers = [bound(bind) for bind in binds]
        for server in servers:
            await server.start()
        self._servers = servers
        background = [self._keep_open(bind, bound) for bind in binds if bind.address.startswith("unix:")]
        if certificates is not None and settings.tls is not None:
            background.append(tls.reload_when_changed(settings.tls, certificates.load))
        self._tasks = [asyncio.get_running_loop().create_task(work) for work in background]

    async def _keep_open(self, bind: Bind, bound: Callable[[Bind], grpc.aio.Server]) -> None:
        """Listen anew wherever the path of a Unix socket has been removed."""
        path = bind.address.removeprefix("unix:")
        listening_path = ListeningPath(path)
        while True:
            await asyncio.sleep(KEEP_S)
            if listening_path.is_in_place:
                continue
            try:
                make_way(path)
                self._servers.append(bound(bind))
                await self._servers[-1].start()
            except (OSError, PortTaken) as error:
                log.error("listener.socket_lost %s cannot be restored: %s", bind.address, error)
                continue
            listening_path = ListeningPath(path)
            log.warning("listener.socket_restored %s had been removed", bind.address)

    async def drain(self) -> None:
        """Nothing: a server of gRPC's core sends its clients elsewhere only in `stop`."""

    async def stop(self, grace_s: float) -> None:
        for task in self._tasks:
            task.cancel()
        # Before the timers of the servers.
        timer = asyncio.get_running_loop().call_later(grace_s, setattr, self._ending, "has_begun", True)
        async with asyncio.TaskGroup() as tasks:
            for server in self._servers:
                tasks.create_task(server.stop(grace_s))
        timer.cancel()

    def under_way(self) -> Sequence[Call]:
        """None: gRPC's core does not tell. `stop` gives them their grace."""
        return ()


def _server(
    bind: Bind, *, serving: Serving, settings: App, certificates: _Certificates | None, ending: Ending
) -> grpc.aio.Server:
    """A server that is bound to one address and not started yet.

    Raises:
        PortTaken: another process has it.
    """
    server = grpc.aio.server(
        handlers=[_Handlers(serving, ending, trusted=bind.trusted)],
        options=_options(bind, settings),
        # Also for siblings: the answers of forwarded calls pass on as they are.
        compression=compression_of(settings),
    )
    try:
        # Unix sockets stay within the machine.
        if certificates is None or bind.address.startswith("unix:"):
            server.add_insecure_port(bind.address)
        else:
            server.add_secure_port(bind.address, certificates.credentials())
    except RuntimeError as error:
        raise PortTaken(bind.address, "another process") from error
    return server


def _options(bind: Bind, settings: App) -> list[tuple[str, int]]:
    max_metadata = SIBLING_LIMITS.max_metadata if bind.trusted else 16 * 1024
    return [
        ("grpc.so_reuseport", int(bind.shared)),
        ("grpc.max_concurrent_streams", 2**31 - 1 if bind.trusted else settings.max_streams),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Equal, or between the two grpc refuses at random.
        ("grpc.max_metadata_size", max_metadata),
        ("grpc.absolute_max_metadata_size", max_metadata),
        ("grpc.server.max_pending_requests", PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS),
        ("grpc.server_max_unrequested_time_in_server", PENDING_S),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
