"""Servers for tests, bytes in, bytes out: grpcio's own, our listener without a lane, a lane behind our listeners."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import trustme
from anyio.from_thread import start_blocking_portal
from onelane.client.options import Dialling
from onelane.client.tls import client_context
from onelane.config import App, Tls
from onelane.core.keys import ANY
from onelane.core.validation import checked
from onelane.server import interceptors
from onelane.server.grpcio_listener import GrpcioListener
from onelane.server.listener import Bind, Listener, Serving
from onelane.server.methods import Method, is_async
from onelane.server.native_listener import NativeListener

from tests.ports import reserved
from tests.shard.parts import setup, wired

_Kind = TypeVar("_Kind", bound=Listener)
READY, FAILURE, IDLE = (
    grpc.ChannelConnectivity.READY,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.IDLE,
)
SOON = Dialling(initial_backoff_s=0.02, max_backoff_s=0.05)
"""For targets where nobody listens yet."""


class Handlers(grpc.GenericRpcHandler):
    """`/t.T/NAME`, answered by `handlers[NAME]`, bytes in and out."""

    def __init__(self, **handlers: Any) -> None:
        self.handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self.handlers.get(handler_call_details.method.rpartition("/")[2])


async def echo(request: bytes, context: Any) -> bytes:
    return request


async def chat(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


ECHO: dict[str, Any] = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
}


@asynccontextmanager
async def stock(
    address: str = "127.0.0.1:0",
    options: Sequence[tuple[str, Any]] = (),
    chain: Sequence[grpc.aio.ServerInterceptor] = (),
    **handlers: Any,
) -> AsyncIterator[tuple[str, grpc.aio.Server]]:
    """A grpc.aio server behind a chain of interceptors; its address."""
    threads = ThreadPoolExecutor(4)  # For plain `def` handlers; it has none before there is one.
    server = grpc.aio.server(
        threads, handlers=[Handlers(**(handlers or ECHO))], options=options, interceptors=list(chain)
    )
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}", server
    finally:
        await server.stop(None)
        threads.shutdown(wait=False)


@asynccontextmanager
async def stock_of_threads(
    *, compression: grpc.Compression | None = None, options: Sequence[tuple[str, Any]] = (), **handlers: Any
) -> AsyncIterator[str]:
    """grpcio's server for plain `def` handlers, which it runs in threads; its address."""
    threads = ThreadPoolExecutor(8)
    server = grpc.server(threads, handlers=[Handlers(**handlers)], options=options, compression=compression)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await asyncio.to_thread(server.stop(None).wait)


@contextmanager
def servers_that_say_their_addresses(count: int) -> Iterator[list[str]]:
    """Each answers `/test/Where` by its address; the addresses. They are native listeners in one thread: for a call
    they take a tenth of the processor time that grpcio's server takes, and clients of the tests make tens of thousands.
    """
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        addresses = [f"127.0.0.1:{stack.enter_context(reserved())}" for _ in range(count)]
        for address in addresses:
            server = _started(NativeListener(), address, _saying(address), method="/test/Where")
            stack.enter_context(portal.wrap_async_context_manager(server))
        yield addresses


def _saying(address: str) -> Callable[[Any, Any], Awaitable[bytes]]:
    async def say(request: bytes, call: Any) -> bytes:
        return address.encode()

    return say


@asynccontextmanager
async def lane_behind(
    listener: str,
    chain: Sequence[grpc.aio.ServerInterceptor] = (),
    settings: dict[str, Any] | None = None,
    /,
    **handlers: Any,
) -> AsyncIterator[str]:
    """A lane behind a listener, `native` or `grpcio`, with the handlers that `stock` takes; its address."""
    # Not late, whatever else its machine does; a test that asks for it says so.
    parts, _ = wired(setup(**({"max_late_s": 60.0} | (settings or {}))))
    around = interceptors.Chain(chain).around
    for name, handler in handlers.items():
        run = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        streams = (handler.request_streaming, handler.response_streaming)
        parsers = (handler.request_deserializer, handler.response_serializer)
        parts.lane.add(around(Method(f"/t.T/{name}", run, is_async(run), *streams, *parsers, ANY)))
    server: Listener = NativeListener() if listener == "native" else GrpcioListener()
    with reserved() as port:
        address = f"127.0.0.1:{port}"
        await server.start([Bind(address)], parts.serving, parts.settings)
        try:
            yield address
        finally:
            await server.stop(1.0)


class Answering(Serving):
    """Answers one method by a function, behind our own listener; without one, by the request."""

    def __init__(self, serve: Callable[[Any, Any], Awaitable[bytes]] | None = None, method: str = "/t.T/Echo") -> None:
        self._answer = serve
        self._method = method

    def methods(self) -> Sequence[Method]:
        return [Method(self._method, lambda *_: None, True, False, False, None, None, ANY)]

    async def serve(self, method: Method, call: Any, request: bytes | None) -> bytes:
        return await self._answer(request, call) if self._answer else request or b""


@asynccontextmanager
async def native(serve: Any = None, **settings: Any) -> AsyncIterator[tuple[str, NativeListener]]:
    """A native listener; its address."""
    with reserved() as port:
        address = f"127.0.0.1:{port}"
        async with native_at(address, serve, **settings) as listener:
            yield address, listener


@asynccontextmanager
async def on_grpcio(serve: Any = None, **settings: Any) -> AsyncIterator[tuple[str, GrpcioListener]]:
    """A listener on grpcio; its address."""
    with reserved() as port:
        address = f"127.0.0.1:{port}"
        async with _started(GrpcioListener(), address, serve, **settings) as listener:
            yield address, listener


@asynccontextmanager
async def native_at(address: str, serve: Any = None, **settings: Any) -> AsyncIterator[NativeListener]:
    async with _started(NativeListener(), address, serve, **settings) as listener:
        yield listener


@asynccontextmanager
async def _started(
    listener: _Kind, address: str, serve: Any, *, method: str = "/t.T/Echo", **settings: Any
) -> AsyncIterator[_Kind]:
    await listener.start(
        [Bind(address)], Answering(serve, method), checked(App, {"services": ("a:B",), "listen": address} | settings)
    )
    try:
        yield listener
    finally:
        await listener.stop(1.0)


class Files:
    """A certificate authority, and what it has issued, on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        self.issue("server", "127.0.0.1", "localhost")

    def issue(self, name: str, *identities: str) -> None:
        issued = self.ca.issue_cert(*identities, common_name=f"{name} {len(list(self.folder.iterdir()))}")
        key, cert = self.folder / f"{name}.key", self.folder / f"{name}.pem"
        issued.private_key_pem.write_to_path(str(key))
        issued.cert_chain_pems[0].write_to_path(str(cert))

    def pair(self, name: str) -> tuple[bytes, bytes]:
        """The private key and the certificate of `name`."""
        return (self.folder / f"{name}.key").read_bytes(), (self.folder / f"{name}.pem").read_bytes()

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def tls(self, **more: str) -> Tls:
        return Tls(cert=self.path("server.pem"), key=self.path("server.key"), **more)

    def client(self, *, cert: str = "") -> ssl.SSLContext:
        own = {"cert": self.path(f"{cert}.pem"), "key": self.path(f"{cert}.key")} if cert else {}
        return client_context(ca=self.path("ca.pem"), **own)


def stock_secure(address: str, files: Files, *, cert: str = "") -> Any:
    def read(name: str) -> bytes:
        return Path(files.path(name)).read_bytes()

    own = {"private_key": read(f"{cert}.key"), "certificate_chain": read(f"{cert}.pem")} if cert else {}
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(read("ca.pem"), **own))
