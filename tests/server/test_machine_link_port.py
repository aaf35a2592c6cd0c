"""A stranger on the port for links gets nothing: no byte of HTTP/2, no call, no slot. A machine is a sibling."""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import grpc.aio
import pytest
import trustme
from onelane.client.channel import dial
from onelane.client.options import Dialling
from onelane.config import App
from onelane.core.machine_links import MachineLinks, certificate_name
from onelane.core.validation import checked
from onelane.server import machine_link_port, tls
from onelane.server.connection_counts import ConnectionCounts
from onelane.server.listener import Bind
from onelane.server.machine_link_tls import MachineLinkTls
from onelane.server.native_listener import NativeListener
from onelane.telemetry.stats import Stats
from onelane.wire.link_frames import MAGIC

from tests.bounds import BOUND_S
from tests.machines import CLUSTER, Certificates
from tests.running_app import eventually
from tests.servers import Answering

PAST = datetime.now(UTC) - timedelta(days=1)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"
TLS_ALERT, TLS_HANDSHAKE = 0x15, 0x16


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Counter[str]]:
    """Handshakes by their error, and refusals by their reason; without either, "done"."""
    stats, totals = Stats(), Counter[str]()
    monkeypatch.setattr("tests.servers.Answering.connection_counts", lambda _: ConnectionCounts(stats))

    def take() -> Counter[str]:
        for point in stats.take():
            if point.kind == "counter" and isinstance(point.value, float | int):
                totals[point.attributes[0][1] if point.attributes else "done"] += int(point.value)
        return totals

    return take


async def seen(request: bytes | None, call: Any) -> bytes:
    """Whether the call comes from a sibling, whose peer it is, and how many seconds it may take."""
    remaining_s = call.time_remaining()
    return f"{call.trusted} {call.hop} {call.peer()} {None if remaining_s is None else round(remaining_s)}".encode()


@asynccontextmanager
async def port_of(links: MachineLinks, **settings: Any) -> AsyncIterator[tuple[str, str]]:
    """A shard's listener on a machine: the address for links, and that for clients."""
    listener = NativeListener()
    sock, public = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    address, public_address = (f"127.0.0.1:{each.getsockname()[1]}" for each in (sock, public))
    app = checked(App, {"services": ("a:B",), "listen": public_address} | settings)
    binds = [
        Bind(public_address, sock=public),
        Bind(address, trusted=True, sock=sock, links=MachineLinkTls(links)),
    ]
    await listener.start(binds, Answering(seen), app)
    try:
        yield address, public_address
    finally:
        await listener.stop(1.0)


def client_of(certificates: Certificates, machine: str = "", *, alpn: str = "h2") -> ssl.SSLContext:
    """The context of a peer that trusts the authority; machine: the certificate that it shows, "" for none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(certificates.files("").ca)
    if machine:
        context.load_cert_chain(certificates.files(machine).cert, certificates.files(machine).key)
    if alpn:
        context.set_alpn_protocols([alpn])
    return context


async def answer_to(address: str, sent: bytes, context: ssl.SSLContext | None = None) -> bytes:
    """All that a peer gets for some bytes until it is cut off."""
    received = b""
    async with asyncio.timeout(BOUND_S):
        try:
            reader, writer = await asyncio.open_connection(*address.split(":"), ssl=context)
            writer.write(sent)
            while data := await reader.read(1000):
                received += data
            writer.close()
        except OSError:
            # Cut off by an alert, or a reset.
            pass
    return received


FORWARDED = (("onelane-forwarded", f"{monotonic() + 1e6:.6f};1"), ("onelane-forwarded-peer", "ipv4:9.9.9.9:9"))


def stock(certificates: Certificates, address: str) -> grpc.aio.Channel:
    """A channel of grpcio by machine `b`, which sends all metadata that it is given."""
    files = certificates.files("b")
    root, key, chain = (Path(file).read_bytes() for file in (files.ca, files.key, files.cert))
    named = [("grpc.ssl_target_name_override", certificate_name("a", CLUSTER))]
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(root, key, chain), options=named)


async def test_a_call_by_a_machine_is_a_siblings_and_its_deadline_is_what_is_left_of_it(
    certificates: Certificates,
) -> None:
    """Of a forwarded call: its mark has the deadline by the clock of the machine that sends it, which is another."""
    certificates.issue("b")
    async with port_of(certificates.links("a")) as (address, _), stock(certificates, address) as machine:
        echo: Any = machine.unary_unary("/t.T/Echo")
        assert (await echo(b"x")).startswith(b"True direct ipv4:127.0.0.1:")
        who, _, remaining_s = (await echo(b"x", metadata=FORWARDED, timeout=3000)).rpartition(b" ")
        assert who == b"True forwarded ipv4:9.9.9.9:9"
        # grpcio rounds a timeout up, to three digits.
        assert 1000 < int(remaining_s) <= 3010
        assert await echo(b"x", metadata=FORWARDED) == b"True forwarded ipv4:9.9.9.9:9 None"


async def test_a_client_on_the_public_port_that_says_it_forwards_is_no_sibling(certificates: Certificates) -> None:
    async with port_of(certificates.links("a")) as (_, public), grpc.aio.insecure_channel(public) as client:
        echo: Any = client.unary_unary("/t.T/Echo")
        reply = await echo(b"x", metadata=FORWARDED)
        assert reply.startswith(b"False direct ipv4:127.0.0.1:")


@pytest.mark.parametrize(
    ("who", "error"),
    [
        ("nobody", "certificate"),
        ("of another authority", "certificate"),
        ("expired", "certificate"),
        ("of another cluster", "name"),
        ("of no machine", "name"),
        ("http/1.1", "alpn"),
        ("no alpn", "alpn"),
    ],
)
async def test_a_stranger_is_cut_off_before_a_byte_of_it_is_read(
    certificates: Certificates,
    counted: Callable[[], Counter[str]],
    caplog: pytest.LogCaptureFixture,
    who: str,
    error: str,
) -> None:
    match who:
        case "of another authority":
            certificates.issue("b", by=trustme.CA())
        case "expired":
            certificates.issue("b", not_after=PAST)
        case "of another cluster":
            certificates.issue("b", "b.other.onelane.internal")
        case "of no machine":
            certificates.issue("b", "arena.example.com")
        case _:
            certificates.issue("b")
    alpn = {"http/1.1": "http/1.1", "no alpn": ""}.get(who, "h2")
    context = client_of(certificates, "" if who == "nobody" else "b", alpn=alpn)
    request = PREFACE if alpn == "h2" else b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    async with port_of(certificates.links("a")) as (address, _):
        assert await answer_to(address, request, context) == b""
        await eventually(lambda: counted()[error] == 1)
        assert ("of no machine of the cluster arena" in caplog.text) is (error == "name")


async def test_a_link_in_an_older_tls_is_refused(
    certificates: Certificates, counted: Callable[[], Counter[str]]
) -> None:
    certificates.issue("b")
    context = client_of(certificates, "b")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with port_of(certificates.links("a")) as (address, _):
        assert await answer_to(address, PREFACE, context) == b""
        await eventually(lambda: counted()["protocol"] == 1)


@pytest.mark.parametrize("sent", [PREFACE, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", MAGIC], ids=["h2", "http/1.1", "link"])
async def test_who_speaks_no_tls_gets_an_alert_at_most(certificates: Certificates, sent: bytes) -> None:
    async with port_of(certificates.links("a")) as (address, _):
        assert (await answer_to(address, sent))[:1] in (b"", bytes([TLS_ALERT]))


@pytest.mark.parametrize("sent", [b"", bytes([TLS_HANDSHAKE, 3, 1, 2, 0, 1])], ids=["nothing", "half a ClientHello"])
async def test_who_does_not_end_its_handshake_is_cut_off_in_time(
    certificates: Certificates, counted: Callable[[], Counter[str]], sent: bytes
) -> None:
    async with port_of(certificates.links("a"), handshake_s=0.3) as (address, _):
        assert await answer_to(address, sent) == b""
        await eventually(lambda: counted()["timeout"] == 1)


async def test_a_machine_that_does_not_speak_http2_on_its_link_is_cut_off(certificates: Certificates) -> None:
    """Also with the frames of `wire/link`, whose deadlines are by the sender's clock."""
    certificates.issue("b")
    async with port_of(certificates.links("a")) as (address, _):
        answer = await answer_to(address, MAGIC + b"\0" * 64, client_of(certificates, "b"))
        assert MAGIC not in answer


async def test_a_flood_is_bounded_and_stops_no_link_that_stands_and_no_client(
    certificates: Certificates, counted: Callable[[], Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_link_port, "MAX_HANDSHAKES", 3)
    certificates.issue("b")
    links, tls_of_b = certificates.links("a"), Dialling(tls=client_of(certificates, "b"))
    async with (
        port_of(links, max_connections=2) as (address, public),
        dial(address, dialling=tls_of_b) as standing,
        dial(public) as client,
        dial(address, dialling=tls_of_b) as later,
    ):
        assert await standing.unary_unary("/t.T/Echo")(b"x")
        flood = [await asyncio.open_connection(*address.split(":")) for _ in range(8)]
        await eventually(lambda: counted()["full"] == 5)
        assert await standing.unary_unary("/t.T/Echo")(b"x")
        assert await client.unary_unary("/t.T/Echo")(b"x")
        for _, writer in flood:
            writer.close()
        assert await later.unary_unary("/t.T/Echo")(b"x", wait_for_ready=True)


async def test_a_connection_after_a_change_of_the_files_is_made_by_the_new_ones(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here the authority is another one: who has a certificate of the old one is a stranger from then on; what stands
    goes on."""
    monkeypatch.setattr(tls, "LOOK_S", 0.01)
    caplog.set_level("INFO", "onelane.tls")
    certificates.issue("b")
    async with (
        port_of(certificates.links("a")) as (address, _),
        dial(address, dialling=Dialling(tls=client_of(certificates, "b"))) as standing,
    ):
        assert await standing.unary_unary("/t.T/Echo")(b"x")
        old = client_of(certificates, "b")
        certificates.ca = trustme.CA()
        certificates.ca.cert_pem.write_to_path(str(certificates.folder / "ca.pem"))
        certificates.issue("a")
        certificates.issue("b")
        await eventually(lambda: "tls.reloaded" in caplog.text)
        assert await standing.unary_unary("/t.T/Echo")(b"x")
        old.load_verify_locations(certificates.files("").ca)
        assert await answer_to(address, PREFACE, old) == b""
        async with dial(address, dialling=Dialling(tls=client_of(certificates, "b"))) as new:
            assert await new.unary_unary("/t.T/Echo")(b"x")


async def test_an_insecure_link_is_a_siblings_too(certificates: Certificates) -> None:
    async with port_of(MachineLinks(CLUSTER, "a", None)) as (address, _), dial(address) as machine:
        assert (await machine.unary_unary("/t.T/Echo")(b"x")).startswith(b"True direct")


async def test_a_method_that_is_not_there_is_unimplemented_over_a_link_as_anywhere(certificates: Certificates) -> None:
    certificates.issue("b")
    async with (
        port_of(certificates.links("a")) as (address, _),
        dial(address, dialling=Dialling(tls=client_of(certificates, "b"))) as machine,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await machine.unary_unary("/t.T/Nope")(b"x")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
