"""Which requests are taken on the port of gRPC, and what the others are told; GET; pages of other origins."""

import asyncio
import json
import socket
import ssl
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from onelane.config import CorsSettings
from onelane.core.validation import checked
from onelane.server.connection import NativeConnection

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2 as m
from tests.echo.v1 import echo_pb2_grpc
from tests.running_app import RunningApp, eventually, running
from tests.servers import Files, native, stock_secure
from tests.web import ECHO_APP, JSON, Send, by_http1

PAGE = "https://page.example"
TOML = f'{ECHO_APP}[apps.echo.cors]\norigins = ["{PAGE}"]\n'
"""See the fixture `app`."""
WHO = "/echo.v1.Echo/Who"


@pytest.mark.parametrize(
    ("method", "path", "kind", "status"),
    [
        ("GET", "/", "", 404),
        ("GET", "/favicon.ico", "", 404),
        ("GET", "/echo.v1.Echo/Unary?encoding=json&message={}", "", 405),
        ("GET", "/echo.v1.Echo/Download?encoding=json&message={}", "", 405),
        ("GET", f"{WHO}?encoding=xml&message={{}}", "", 415),
        ("GET", f"{WHO}?message={{}}", "", 415),
        ("GET", f"{WHO}?encoding=json&base64=1&message=!", "", 400),
        ("GET", f"{WHO}?encoding=json&message={{", "", 400),
        ("GET", f"{WHO}?encoding=json&connect=v2&message={{}}", "", 400),
        ("GET", f"{WHO}?encoding=proto&compression=gzip&message=x", "", 500),
        ("PUT", "/echo.v1.Echo/Unary", "application/json", 405),
        ("OPTIONS", "/echo.v1.Echo/Unary", "", 405),
        ("POST", "/echo.v1.Echo/Unary", "text/html", 415),
        ("POST", "/echo.v1.Echo/Unary", "", 415),
        ("POST", "/echo.v1.Echo/Unary", "application/xml", 415),
        ("POST", "/echo.v1.Echo/Unary", "application/connect+json", 415),
        ("POST", "/echo.v1.Echo/Download", "application/json", 415),
        ("POST", "/echo.v1.Echo/None", "application/json", 404),
    ],
)
def test_what_cannot_be_served_is_refused_in_http(
    address: str, send: Send, method: str, path: str, kind: str, status: int
) -> None:
    headers = {"content-type": kind} if kind else {}
    assert send(address, path, method=method, headers=headers).status == status


def test_grpc_over_http_1_is_told_to_use_another_version(address: str) -> None:
    assert by_http1(address, WHO, headers={"content-type": "application/grpc"}).status == 505


def test_a_get_is_served_where_the_proto_promises_no_side_effects(address: str, send: Send) -> None:
    message = json.dumps({"key": "home"})
    answer = send(address, f"{WHO}?connect=v1&encoding=json&message={quote(message)}", method="GET", headers={})
    assert (answer.status, answer.json["shard"][:5]) == (200, "echo-")
    raw = urlsafe_b64encode(m.EchoRequest(key="home").SerializeToString()).rstrip(b"=").decode()
    answer = send(address, f"{WHO}?encoding=proto&base64=1&message={raw}", method="GET", headers={})
    assert m.EchoReply.FromString(answer.body).shard.startswith("echo-")


def test_headers_over_the_limit_are_refused(address: str, send: Send) -> None:
    assert send(address, WHO, b"{}", headers=JSON | {"x-much": "y" * 17_000}).status == 431


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """Takes more metadata than one header of HTTP/2 can have."""
    with running(tmp_path_factory.mktemp("roomy"), ECHO_APP + "max_metadata_bytes = 1048576\n") as app:
        yield app


@pytest.mark.parametrize("key", ["home", "away"])
@pytest.mark.parametrize("longest", [("y" * 100_000, "x"), ("n", "\\" * 70_000)])
def test_a_header_that_no_sibling_takes_is_refused_at_the_edge_and_costs_no_other_call(
    roomy: RunningApp, key: str, longest: tuple[str, str]
) -> None:
    """By HTTP/1.1: in HTTP/2 it ends its connection. Sent on, it would end that of all forwarded calls."""
    address = roomy.shards()[0]["address"]
    body, many = json.dumps({"key": key}).encode(), {f"x-{number}": "y" * 60_000 for number in range(4)}
    path = "/echo.v1.Echo/Unary"
    assert by_http1(address, path, body, headers=JSON | many).status == 200
    assert by_http1(address, path, body, headers=JSON | dict([longest])).status == 431
    assert by_http1(address, path, body).status == 200


# Pages of other origins


def test_a_page_that_the_settings_name_may_call(address: str, send: Send) -> None:
    asked = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "x-a"}
    preflight = send(address, WHO, method="OPTIONS", headers=asked)
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, PAGE)
    assert (preflight.headers["access-control-allow-headers"], preflight.headers["vary"]) == ("x-a", "origin")
    answer = send(
        address, "/echo.v1.Echo/Misbehave", b'{"key": "home", "order": "metadata"}', headers=JSON | {"origin": PAGE}
    )
    assert answer.headers["access-control-allow-origin"] == PAGE
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert any(name.startswith("trailer-") for name in exposed)


def test_a_page_of_another_origin_may_not(address: str, send: Send) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert send(address, WHO, method="OPTIONS", headers=asked).status == 403
    answer = send(address, WHO, b"{}", headers=JSON | {"origin": "https://evil.example"})
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert answer.headers["vary"] == "origin"


def test_credentials_are_for_origins_with_names() -> None:
    with pytest.raises(ValueError, match="credentials"):
        checked(CorsSettings, {"origins": ("*",), "credentials": True})


# Connections


async def test_a_client_that_says_its_first_byte_and_no_more_is_cut_off() -> None:
    async with native(preface_s=0.2) as (address, _):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(b"P")
        async with asyncio.timeout(BOUND_S):
            assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("beginning", [b"POST /t.T/Echo HT", b"POST /t.T/Echo HTTP/1.1\r\nhost: h\r\nx"])
async def test_a_client_that_does_not_complete_its_first_headers_is_cut_off(beginning: bytes) -> None:
    async with native(preface_s=0.2) as (address, _):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(beginning)
        async with asyncio.timeout(BOUND_S):
            assert await reader.read() == b""
        writer.close()


async def test_a_client_that_does_not_complete_later_headers_is_cut_off() -> None:
    async with native(headers_s=0.2) as (address, _):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(b"PUT / HTTP/1.1\r\nhost: h\r\n\r\n")
        async with asyncio.timeout(BOUND_S):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 405")
            writer.write(b"GET / HT")
            assert await reader.read() == b""
        writer.close()


async def test_a_body_that_does_not_end_ends_its_call() -> None:
    async with native(message_s=0.2) as (address, _):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(
            b"POST /t.T/Echo HTTP/1.1\r\nhost: h\r\ncontent-type: application/proto\r\ncontent-length: 9\r\n\r\nx"
        )
        async with asyncio.timeout(BOUND_S):
            assert (await reader.read()).startswith(b"HTTP/1.1 429 ")
        writer.close()


def test_who_is_answered_in_the_middle_of_its_request_may_send_what_is_on_its_way(address: str) -> None:
    """A reset, for bytes that nobody has read, would overtake the answer."""
    body = b"\0" + (5 << 20).to_bytes(4) + bytes(5 << 20)
    head = f"POST {WHO} HTTP/1.1\r\nhost: h\r\ncontent-type: application/grpc-web+proto\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=BOUND_S) as client:
        client.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"grpc-status: 8" in answer.lower()


async def test_a_drain_closes_a_connection_of_http_1_after_its_answer() -> None:
    held = asyncio.Event()

    async def serve(request: bytes, context: Any) -> bytes:
        await held.wait()
        return request

    async with native(serve) as (address, listener):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        idle_reader, idle = await asyncio.open_connection(*address.split(":"))
        idle.write(b"PUT / HTTP/1.1\r\nhost: h\r\n\r\n")
        async with asyncio.timeout(BOUND_S):
            await idle_reader.readuntil(b"\r\n\r\n")
            body = b"content-type: application/proto\r\ncontent-length: 2\r\n\r\nhi"
            writer.write(b"POST /t.T/Echo HTTP/1.1\r\nhost: h\r\n" + body)
            await eventually(listener.under_way)
            await listener.drain()
            assert await idle_reader.read() == b""
            held.set()
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in answer.lower()
        writer.close()
        idle.close()


async def test_a_call_is_cancelled_once_its_client_has_left() -> None:
    cancelled = asyncio.Event()

    async def serve(request: bytes, context: Any) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    async with native(serve) as (address, listener):
        _, writer = await asyncio.open_connection(*address.split(":"))
        body = b"content-type: application/proto\r\ncontent-length: 2\r\n\r\nhi"
        writer.write(b"POST /t.T/Echo HTTP/1.1\r\nhost: h\r\n" + body)
        async with asyncio.timeout(BOUND_S):
            await eventually(listener.under_way)
            writer.close()
            await cancelled.wait()


async def test_a_server_says_nothing_before_its_client_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeConnection, "goodbye_s", 0.1)
    async with native() as (address, listener):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        await eventually(lambda: listener._connections)
        await listener.drain()
        async with asyncio.timeout(BOUND_S):
            assert await reader.read() == b""
        writer.close()


async def test_tls_serves_both_versions_as_the_client_chooses(tmp_path: Path) -> None:
    files = Files(tmp_path)
    async with native(tls=files.tls()) as (address, _):
        channel = stock_secure(address, files)
        assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
        await channel.close()
        context = ssl.create_default_context(cafile=files.path("ca.pem"))
        context.set_alpn_protocols(["http/1.1"])
        reader, writer = await asyncio.open_connection(*address.split(":"), ssl=context, server_hostname="127.0.0.1")
        body = b"content-type: application/proto\r\ncontent-length: 2\r\n\r\nhi"
        writer.write(b"POST /t.T/Echo HTTP/1.1\r\nhost: h\r\n" + body)
        async with asyncio.timeout(BOUND_S):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(2) == b"hi"
        writer.close()


async def test_calls_of_grpc_and_of_browsers_reach_the_same_state(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        assert (await stub.Unary(m.EchoRequest(key="same", text="a"), timeout=BOUND_S)).text == "a"
    assert by_http1(address, "/echo.v1.Echo/Unary", b'{"key": "same"}').json["seen"] == 2
