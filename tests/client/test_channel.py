"""The channel on our own wire, against stock servers and bare sockets: what grpc.aio's channel does, it does."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from onelane.client.channel import NativeChannel, dial
from onelane.client.options import Dialling
from onelane.client.tls import client_context
from onelane.config import App, Tls
from onelane.server import connection, native_listener, tls
from onelane.server.listener import Bind, Serving
from onelane.server.methods import Method
from onelane.server.native_listener import NativeListener
from onelane.server.sockets import claim
from onelane.testing.clock import ManualClock

from tests.frames import PING, frames
from tests.ports import reserved
from tests.running_app import eventually

READY, FAILURE, IDLE = (
    grpc.ChannelConnectivity.READY,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.IDLE,
)
SOON = Dialling(initial_backoff_s=0.02, max_backoff_s=0.05)


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
    address: str = "127.0.0.1:0", options: Sequence[tuple[str, Any]] = (), **handlers: Any
) -> AsyncIterator[tuple[str, grpc.aio.Server]]:
    """A grpc.aio server; its address."""
    server = grpc.aio.server(handlers=[Handlers(**(handlers or ECHO))], options=options)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}", server
    finally:
        await server.stop(None)


class Lane(Serving):
    """Bytes in, bytes out, behind our own listener."""

    def __init__(self, serve: Callable[[Any, Any], Awaitable[bytes]] | None = None) -> None:
        self.one = serve

    def methods(self) -> Sequence[Method]:
        from onelane.core.keys import ANY

        return [Method("/t.T/Echo", lambda *_: None, True, False, False, None, None, ANY)]

    async def serve(self, method: Method, call: Any, request: bytes | None) -> bytes:
        return await self.one(request, call) if self.one else request or b""


@asynccontextmanager
async def ours(serve: Any = None, **settings: Any) -> AsyncIterator[tuple[str, NativeListener]]:
    """A native listener; its address."""
    listener = NativeListener()
    with reserved() as port:
        address = f"127.0.0.1:{port}"
        await listener.start([Bind(address)], Lane(serve), App(services=("a:B",), listen=address, **settings))
        try:
            yield address, listener
        finally:
            await listener.stop(1.0)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "unix"])
async def test_it_dials_every_kind_of_target(address: str, tmp_path: Path) -> None:
    async with stock(f"unix:{tmp_path}/s" if address == "unix" else address) as (target, _):
        scheme = {"127": "ipv4:", "[::": "dns:///"}.get(target[:3], "")
        for name in (target, scheme + target):
            async with dial(name) as channel:
                assert await channel.unary_unary("/t.T/Echo")(b"hello", timeout=5) == b"hello"


@pytest.mark.parametrize("target", ["xds:///a", "nonsense", "host:", "host:99999", "a/b:80", ""])
async def test_a_target_that_is_none_is_told_at_once(target: str) -> None:
    with pytest.raises(ValueError, match="expected host:port"):
        dial(target)


@pytest.fixture
def unserved() -> Iterator[str]:
    """An address where nobody listens, until the test does."""
    with reserved() as port:
        yield f"127.0.0.1:{port}"


async def test_nobody_there_is_unavailable_and_says_why(unserved: str) -> None:
    address = unserved
    async with dial(address, dialling=SOON) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match=f"failed to connect to {address}") as caught:
            await channel.unary_unary("/t.T/Echo")(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_wait_for_ready_waits_until_the_server_is_there(unserved: str) -> None:
    address = unserved
    async with dial(address, dialling=SOON) as channel:
        call = channel.unary_unary("/t.T/Echo")(b"late", wait_for_ready=True, timeout=20)
        while channel.get_state() is not FAILURE:
            await channel.wait_for_state_change(channel.get_state())
        async with stock(address):
            assert await call == b"late"
            assert channel.get_state() is READY


async def test_a_call_that_waits_keeps_its_deadline(unserved: str) -> None:
    async with dial(unserved, dialling=SOON) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Echo")(b"", wait_for_ready=True, timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_it_connects_anew_after_the_server_went(unserved: str) -> None:
    async with stock(unserved) as (address, server):
        channel = dial(address, dialling=SOON)
        assert await channel.unary_unary("/t.T/Echo")(b"1", timeout=5) == b"1"
        await server.stop(None)
        while channel.get_state() is READY:
            await channel.wait_for_state_change(READY)
    async with stock(address), channel:
        assert await channel.unary_unary("/t.T/Echo")(b"2", timeout=5, wait_for_ready=True) == b"2"


async def test_a_full_connection_gets_another_beside_it() -> None:
    """The server lets two calls in at once; six are under way at the same time all the same."""
    running, everybody = 0, asyncio.Event()

    async def hold(request: bytes, context: Any) -> bytes:
        nonlocal running
        running += 1
        if running == 6:
            everybody.set()
        await everybody.wait()
        return request

    async with ours(hold, max_streams=2) as (address, _), dial(address) as channel:
        calls = [channel.unary_unary("/t.T/Echo")(b"%d" % n, timeout=10) for n in range(6)]
        assert [await call for call in calls] == [b"%d" % n for n in range(6)]


async def test_more_calls_than_all_connections_hold_wait_their_turn() -> None:
    async with ours(max_streams=1) as (address, _), dial(address, dialling=Dialling(max_connections=2)) as channel:
        calls = [channel.unary_unary("/t.T/Echo")(b"%d" % n, timeout=10) for n in range(200)]
        assert [await call for call in calls] == [b"%d" % n for n in range(200)]


async def test_a_drain_of_the_server_fails_no_call() -> None:
    """GOAWAY: what is under way finishes, what was not looked at goes to the successor."""
    address, held = claim("127.0.0.1:0", shared=True)
    slow = asyncio.Event()

    async def serve(request: bytes, call: Any) -> bytes:
        if request == b"slow":
            await slow.wait()
        return request

    def settings() -> App:
        return App(services=("a:B",), listen=address)

    first, second = NativeListener(), NativeListener()
    await first.start([Bind(address, shared=True)], Lane(serve), settings())
    async with dial(address) as channel:
        send = channel.unary_unary("/t.T/Echo")
        waiting = send(b"slow", timeout=20)
        answers = [await send(b"%d" % n, timeout=20) for n in range(10)]
        await second.start([Bind(address, shared=True)], Lane(serve), settings())
        draining = asyncio.create_task(first.drain())
        while not draining.done():
            answers.append(await send(b"more", timeout=20))
        answers += [await send(b"after", timeout=20) for _ in range(10)]
        slow.set()
        assert await waiting == b"slow"
        assert {*answers} >= {b"0", b"after"}
    await first.stop(1)
    await second.stop(1)
    held.close()


async def test_a_refused_stream_is_sent_again_unseen() -> None:
    """REFUSED_STREAM says that nothing was looked at."""
    refused = 0

    async with ours() as (address, _listener):
        from onelane.server.connection import NativeConnection

        def refuse_first(self: NativeConnection, stream: Any, message: bytes | None) -> None:
            nonlocal refused
            if refused == 0:
                refused += 1
                self.wire.refuse(stream)
                return
            real(self, stream, message)

        real = NativeConnection._opened
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(NativeConnection, "_opened", refuse_first)
            async with dial(address) as channel:
                assert await channel.unary_unary("/t.T/Echo")(b"again", timeout=5) == b"again"
    assert refused == 1


async def test_keepalive_ends_a_connection_that_says_nothing() -> None:
    """A server that says hello and then nothing: after the ping's time the call fails, not at its deadline."""

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\0\0\4\0\0\0\0\0")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    dialling = Dialling(keepalive_s=0.05, ping_timeout_s=0.1)
    async with server, dial(address, dialling=dialling) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="ping timeout") as caught:
            await channel.unary_unary("/t.T/Echo")(b"", timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_accepts_and_says_nothing_is_no_server() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    async with server, dial(address, dialling=Dialling(connect_s=0.1)) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match=r"no answer within 0\.1 s"):
            await channel.unary_unary("/t.T/Echo")(b"", timeout=30)


async def test_a_reader_that_does_not_read_holds_the_server_back() -> None:
    """1 KiB messages for ever: no more than the windows come until somebody reads."""
    sent = 0

    async def flood(request: bytes, context: Any) -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 1024

    async with stock(Flood=grpc.unary_stream_rpc_method_handler(flood)) as (address, _), dial(address) as channel:
        call = channel.unary_stream("/t.T/Flood")(b"", timeout=30)
        await call.read()
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.2)
        held = sum(map(len, call.messages))
        assert held <= 1024 * 1024
        for _ in range(3000):
            assert len(await call.read()) == 1024
        assert sent > before
        assert call.cancel()
        assert await call.code() is grpc.StatusCode.CANCELLED


async def test_a_message_over_the_limit_is_resource_exhausted() -> None:
    async with stock() as (address, _), dial(address, dialling=Dialling(max_message_bytes=1000)) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match=r"larger than max \(1001 vs. 1000\)") as caught:
            await channel.unary_unary("/t.T/Echo")(b"x" * 1001, timeout=5)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_large_messages_pass_the_windows() -> None:
    big = b"x" * 3_900_000
    async with stock() as (address, _), dial(address) as channel:
        assert await channel.unary_unary("/t.T/Echo")(big, timeout=20) == big
        both = channel.stream_stream("/t.T/Chat")(iter([big, big]), timeout=20)
        assert [answer async for answer in both] == [big, big]


async def test_gzip_goes_both_ways() -> None:
    async def packed(request: bytes, context: Any) -> bytes:
        context.set_compression(grpc.Compression.Gzip)
        return request

    async with ours(packed) as (address, _):
        for channel in (dial(address, compression=grpc.Compression.Gzip), grpc.aio.insecure_channel(address)):
            send: Any = channel.unary_unary("/t.T/Echo")
            assert await send(b"x" * 100_000, compression=grpc.Compression.Gzip, timeout=5) == b"x" * 100_000
            await channel.close()
        async with dial(address) as channel:
            with pytest.raises(NotImplementedError, match="Deflate"):
                channel.unary_unary("/t.T/Echo")(b"", compression=grpc.Compression.Deflate)


async def test_closing_with_grace_lets_calls_finish_and_without_ends_them() -> None:
    going = asyncio.Event()

    async def slow(request: bytes, call: Any) -> bytes:
        await going.wait()
        return request

    async with ours(slow) as (address, _):
        patient, hasty = dial(address), dial(address)
        calls = [channel.unary_unary("/t.T/Echo")(b"x", timeout=20) for channel in (patient, hasty)]
        for call in calls:
            await call.wait_for_connection()
        await hasty.close()
        with pytest.raises(asyncio.CancelledError):
            await calls[1]
        closing = asyncio.create_task(patient.close(grace=10))
        going.set()
        assert await calls[0] == b"x"
        await closing
        with pytest.raises(grpc.aio.AioRpcError, match="the channel is closed"):
            await patient.unary_unary("/t.T/Echo")(b"")


class Tagging(grpc.aio.UnaryUnaryClientInterceptor, grpc.aio.StreamStreamClientInterceptor):
    """Adds a message of its own to what goes out."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(client_call_details, b"tag:" + request)

    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        async def tagged() -> AsyncIterator[bytes]:
            async for request in request_iterator:
                yield b"tag:" + request

        return await continuation(client_call_details, tagged())


async def test_client_interceptors_stand_between(tmp_path: Path) -> None:
    async with stock() as (address, _), dial(address, interceptors=[Tagging()]) as channel:
        call = channel.unary_unary("/t.T/Echo")(b"x", timeout=5)
        assert await call == b"tag:x"
        assert await call.code() is grpc.StatusCode.OK
        written = channel.stream_stream("/t.T/Chat")(timeout=5)
        await written.write(b"1")
        assert await written.read() == b"tag:1"
        await written.done_writing()
        assert await written.read() is grpc.aio.EOF
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/t.T/Nothing")(b"x", timeout=5)
    with pytest.raises(ValueError, match=r"none of grpc\.aio's client interceptors"):
        dial(address, interceptors=[object()])  # type: ignore[list-item]
    with pytest.raises(NotImplementedError, match="Deflate"):
        dial(address, compression=grpc.Compression.Deflate)


# TLS


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

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def tls(self, **more: str) -> Tls:
        return Tls(cert=self.path("server.pem"), key=self.path("server.key"), **more)

    def client(self, *, cert: str = "") -> ssl.SSLContext:
        own = {"cert": self.path(f"{cert}.pem"), "key": self.path(f"{cert}.key")} if cert else {}
        return client_context(ca=self.path("ca.pem"), **own)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def stock_secure(address: str, files: Files, *, cert: str = "") -> Any:
    def read(name: str) -> bytes:
        return Path(files.path(name)).read_bytes()

    own = {"private_key": read(f"{cert}.key"), "certificate_chain": read(f"{cert}.pem")} if cert else {}
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(read("ca.pem"), **own))


async def test_tls_with_alpn_serves_stock_and_our_own_clients(files: Files) -> None:
    async with ours(tls=files.tls()) as (address, _):
        for channel in (stock_secure(address, files), dial(address, dialling=Dialling(tls=files.client()))):
            assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=5) == b"x"
            await channel.close()
        no_alpn = ssl.create_default_context(cafile=files.path("ca.pem"))
        reader, writer = await asyncio.open_connection(*address.split(":"), ssl=no_alpn, server_hostname="127.0.0.1")
        assert await reader.read() == b""
        writer.close()
        async with dial(address, dialling=SOON) as cleartext:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await cleartext.unary_unary("/t.T/Echo")(b"x", timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_names_the_client_and_refuses_strangers(files: Files) -> None:
    seen: list[Any] = []

    async def who(request: bytes, call: Any) -> bytes:
        seen.append((call.auth_context(), list(call.peer_identities())))
        return request

    files.issue("client", "client.example")
    async with ours(who, tls=files.tls(client_ca=files.path("ca.pem"))) as (address, _):
        for channel in (
            stock_secure(address, files, cert="client"),
            dial(address, dialling=Dialling(tls=files.client(cert="client"))),
        ):
            assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=5) == b"x"
            await channel.close()
        for stranger in (stock_secure(address, files), dial(address, dialling=Dialling(tls=files.client()))):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stranger.unary_unary("/t.T/Echo")(b"x", timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await stranger.close()
    assert [identities for _, identities in seen] == [[b"client.example"]] * 2
    assert seen[0][0]["transport_security_type"] == [b"ssl"]


async def test_a_changed_certificate_is_used_without_a_restart(
    files: Files, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "LOOK_S", 0.02)

    def name_shown(address: str) -> Any:
        import socket

        host, port = address.split(":")
        with (
            socket.create_connection((host, int(port))) as raw,
            files.client().wrap_socket(raw, server_hostname="127.0.0.1") as secured,
        ):
            certificate: Any = secured.getpeercert()
            return dict(part[0] for part in certificate["subject"])["commonName"]

    async with ours(tls=files.tls()) as (address, _), dial(address, dialling=Dialling(tls=files.client())) as channel:
        before = await asyncio.to_thread(name_shown, address)
        assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=5) == b"x"
        await asyncio.to_thread(Path(files.path("server.pem")).write_text, "broken")
        await eventually(lambda: "tls.reload_failed" in caplog.text)
        assert await asyncio.to_thread(name_shown, address) == before
        files.issue("server", "127.0.0.1")
        await eventually(lambda: name_shown(address) != before)
        assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=5) == b"x"


# The listener's limits in time


async def test_an_idle_client_is_sent_away_and_comes_back(files: Files) -> None:
    async with ours(max_idle_s=0.2) as (address, _), dial(address) as channel:
        send = channel.unary_unary("/t.T/Echo")
        for _ in range(3):
            assert await send(b"x", timeout=5) == b"x"
            while channel.get_state() is not IDLE:
                await channel.wait_for_state_change(channel.get_state())


async def test_an_old_connection_is_replaced_without_losing_a_call() -> None:
    async with ours(max_age_s=0.1) as (address, _), dial(address) as channel:
        send = channel.unary_unary("/t.T/Echo")
        gone = 0
        while gone < 3:
            assert await send(b"x", timeout=5) == b"x"
            gone += channel.get_state() is IDLE


async def test_a_client_that_does_not_answer_a_ping_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(now=1000.0)
    for module in (connection, native_listener):
        monkeypatch.setattr(module, "monotonic", clock.now)
    async with ours(keepalive_s=0.1, ping_timeout_s=0.1) as (address, listener), dial(address) as channel:
        assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=5) == b"x"
        (answering,) = listener._connections
        reader, writer = await asyncio.open_connection(*address.split(":"))
        clock.advance(0.2)
        async for kind, *_ in frames(reader):
            if kind == PING:
                break
        while answering.heard_at < clock.now():  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)
        clock.advance(0.2)
        await reader.read()
        writer.close()
        assert channel.get_state() is READY


async def test_one_connection_too_many_is_closed_and_the_others_live() -> None:
    async with ours(max_connections=2) as (address, _):
        channels = [dial(address), dial(address)]
        for channel in channels:
            assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=5) == b"x"
        async with dial(address, dialling=SOON) as third:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await third.unary_unary("/t.T/Echo")(b"x", timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        for channel in channels:
            assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=5) == b"x"
            await channel.close()


def test_a_channel_is_one_of_grpc_aios() -> None:
    assert issubclass(NativeChannel, grpc.aio.Channel)


async def test_a_write_behind_an_interceptor_ends_with_its_call_though_nobody_reads() -> None:
    async def refuse(_: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")

    async def write_on(call: Any) -> None:
        while True:
            await call.write(b"x")

    handler: Any = grpc.stream_stream_rpc_method_handler(refuse)
    async with stock(Chat=handler) as (address, _), dial(address, interceptors=[Tagging()]) as channel:
        call = channel.stream_stream("/t.T/Chat")(timeout=20)
        with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
            await write_on(call)
        assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_who_stops_to_wait_for_a_state_is_not_kept() -> None:
    async with dial("127.0.0.1:1") as channel:
        for _ in range(20):
            waiting = asyncio.ensure_future(channel.wait_for_state_change(grpc.ChannelConnectivity.IDLE))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert channel.subchannel._changed == []
