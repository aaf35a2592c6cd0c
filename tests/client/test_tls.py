"""TLS and mutual TLS between our channels and grpcio's, and both listeners; certificates are reloaded."""

import asyncio
import logging
import socket
import ssl
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.client.channel import dial
from onelane.client.options import Dialling
from onelane.server import tls

from tests.bounds import BOUND_S
from tests.running_app import eventually
from tests.servers import SOON, Files, native, on_grpcio, stock_secure


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(params=[native, on_grpcio])
def listening(request: pytest.FixtureRequest) -> Any:
    """Makes a listener of each kind."""
    return request.param


async def test_tls_with_alpn_serves_stock_and_our_own_clients(files: Files, listening: Any) -> None:
    async with listening(tls=files.tls()) as (address, _):
        for channel in (stock_secure(address, files), dial(address, dialling=Dialling(tls=files.client()))):
            assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
            await channel.close()
        no_alpn = ssl.create_default_context(cafile=files.path("ca.pem"))
        reader, writer = await asyncio.open_connection(*address.split(":"), ssl=no_alpn, server_hostname="127.0.0.1")
        assert await reader.read() == b""
        writer.close()
        async with dial(address, dialling=SOON) as cleartext:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await cleartext.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_tls_server_that_does_not_speak_http2_is_told_at_once(files: Files) -> None:
    """It waits for a request in HTTP/1, and says nothing. grpcio tells it at once, too."""

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    http1 = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    http1.load_cert_chain(files.path("server.pem"), files.path("server.key"))
    server = await asyncio.start_server(mute, "127.0.0.1", 0, ssl=http1)
    address = "{}:{}".format(*server.sockets[0].getsockname())
    async with server, asyncio.timeout(BOUND_S):
        for channel in (stock_secure(address, files), dial(address, dialling=Dialling(tls=files.client()))):
            with pytest.raises(grpc.aio.AioRpcError, match="ALPN") as caught:
                await channel.unary_unary("/t.T/Echo")(b"x")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await channel.close()


async def test_mutual_tls_names_the_client_and_refuses_strangers(files: Files, listening: Any) -> None:
    seen: list[Any] = []

    async def identify(request: bytes, call: Any) -> bytes:
        seen.append((call.auth_context(), list(call.peer_identities())))
        return request

    files.issue("client", "client.example")
    async with listening(identify, tls=files.tls(client_ca=files.path("ca.pem"))) as (address, _):
        for channel in (
            stock_secure(address, files, cert="client"),
            dial(address, dialling=Dialling(tls=files.client(cert="client"))),
        ):
            assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
            await channel.close()
        for stranger in (stock_secure(address, files), dial(address, dialling=Dialling(tls=files.client()))):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stranger.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await stranger.close()
    assert [identities for _, identities in seen] == [[b"client.example"]] * 2
    assert seen[0][0]["transport_security_type"] == [b"ssl"]


def is_served(address: str, context: ssl.SSLContext, sessions: list[ssl.SSLSession | None]) -> bool:
    """Whether a client gets the server's settings. sessions: the last of them is resumed; the new one is added."""
    host, port = address.split(":")
    try:
        with (
            socket.create_connection((host, int(port)), timeout=BOUND_S) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1", session=sessions[-1]) as secured,
        ):
            secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            answer = secured.recv(100)
            sessions.append(secured.session)
            return answer != b""
    except OSError:
        return False


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_an_authority_that_was_taken_out_is_trusted_no_longer_though_a_session_is_resumed(
    version: ssl.TLSVersion,
    files: Files,
    listening: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tls, "LOOK_S", 0.02)
    caplog.set_level(logging.INFO)
    (tmp_path / "other").mkdir()
    other = Files(tmp_path / "other")
    clients: list[tuple[ssl.SSLContext, list[ssl.SSLSession | None]]] = []
    for authority in (files, other):
        authority.issue("client", "client.example")
        context = files.client()
        context.maximum_version = version
        context.load_cert_chain(authority.path("client.pem"), authority.path("client.key"))
        clients.append((context, [None]))
    remaining = files.ca.cert_pem.bytes()
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(remaining + other.ca.cert_pem.bytes())
    async with listening(tls=files.tls(client_ca=str(bundle))) as (address, _):
        assert [await asyncio.to_thread(is_served, address, *client) for client in clients] == [True, True]
        bundle.write_bytes(remaining)
        await eventually(lambda: "tls.reloaded" in caplog.text)
        assert [await asyncio.to_thread(is_served, address, *client) for client in clients] == [True, False]


async def test_a_changed_certificate_is_used_without_a_restart(
    files: Files, listening: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "LOOK_S", 0.02)

    def name_shown(address: str) -> Any:
        host, port = address.split(":")
        with (
            socket.create_connection((host, int(port))) as raw,
            files.client().wrap_socket(raw, server_hostname="127.0.0.1") as secured,
        ):
            certificate: Any = secured.getpeercert()
            return dict(part[0] for part in certificate["subject"])["commonName"]

    async with (
        listening(tls=files.tls()) as (address, _),
        dial(address, dialling=Dialling(tls=files.client())) as channel,
    ):
        before = await asyncio.to_thread(name_shown, address)
        assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
        await asyncio.to_thread(Path(files.path("server.pem")).write_text, "broken")
        await eventually(lambda: "tls.reload_failed" in caplog.text)
        assert await asyncio.to_thread(name_shown, address) == before
        files.issue("server", "127.0.0.1")
        await eventually(lambda: name_shown(address) != before)
        assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
