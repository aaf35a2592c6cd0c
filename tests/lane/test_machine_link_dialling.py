"""A life of another machine is dialled by TLS, and gets no call unless it is on the machine that is meant."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import trustme
from onelane.client.channel import NativeChannel
from onelane.core.machine_links import LinkAddress, MachineLinks
from onelane.core.placement import Member
from onelane.lane import machine_link_dialling
from onelane.lane.machine_link_dialling import LINK_DIALLING, MachineLinkDialling, is_listening
from onelane.server.machine_link_tls import MachineLinkTls

from tests.machines import CLUSTER, Certificates
from tests.server.test_machine_link_port import port_of


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def member(machine: str, address: str) -> Member:
    host, _, port = address.partition(":")
    return Member("echo-1", "", str(LinkAddress(machine, host, int(port))))


@asynccontextmanager
async def channel_to(sibling: Member, links: MachineLinks) -> AsyncIterator[NativeChannel]:
    target, dialling = MachineLinkDialling(MachineLinkTls(links))(sibling)
    async with NativeChannel(target, dialling) as channel:
        yield channel


async def test_the_machine_that_is_meant_gets_the_call(certificates: Certificates) -> None:
    async with (
        port_of(certificates.links("b")) as (address, _),
        channel_to(member("b", address), certificates.links("a")) as channel,
    ):
        assert (await channel.unary_unary("/t.T/Echo")(b"x")).startswith(b"True direct")


async def test_an_insecure_one_gets_it_too() -> None:
    async with (
        port_of(MachineLinks(CLUSTER, "b", None)) as (address, _),
        channel_to(member("b", address), MachineLinks(CLUSTER, "a", None)) as channel,
    ):
        assert (await channel.unary_unary("/t.T/Echo")(b"x")).startswith(b"True direct")


async def test_another_machine_of_the_cluster_gets_no_call(certificates: Certificates) -> None:
    async with (
        port_of(certificates.links("c")) as (address, _),
        channel_to(member("b", address), certificates.links("a")) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Echo")(b"x")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    names = "its certificate is of c.arena.onelane.internal, not of b.arena.onelane.internal"
    assert f"another machine is at {address}: {names}" in str(caught.value.details())


async def test_a_machine_of_another_authority_gets_no_call(certificates: Certificates, tmp_path: Path) -> None:
    others = Certificates(tmp_path / "others")
    async with (
        port_of(others.links("b")) as (address, _),
        channel_to(member("b", address), certificates.links("a")) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Echo")(b"x")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_without_tls_gets_nothing_but_a_client_hello(certificates: Certificates) -> None:
    received = bytearray()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.read(100))
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with channel_to(member("b", address), certificates.links("a")) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/t.T/Echo")(b"x")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert received[:1] == b"\x16"


async def test_a_machine_that_answers_nothing_is_given_up(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its system accepts, as that of a machine whose processes are stopped does."""
    monkeypatch.setattr(machine_link_dialling, "LINK_DIALLING", replace(LINK_DIALLING, connect_s=0.2))
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
        async with channel_to(member("b", address), certificates.links("a")) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="no answer within"):
                await channel.unary_unary("/t.T/Echo")(b"x")


async def test_a_call_to_a_machine_that_becomes_silent_ends(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = replace(LINK_DIALLING, keepalive_s=0.1, ping_timeout_s=0.1)
    monkeypatch.setattr(machine_link_dialling, "LINK_DIALLING", silent)
    async with Proxy() as proxy, port_of(certificates.links("b")) as (address, _):
        proxy.target = address
        async with channel_to(member("b", proxy.address), certificates.links("a")) as channel:
            echo = channel.unary_unary("/t.T/Echo")
            assert await echo(b"x", wait_for_ready=True)
            proxy.is_cut = True
            with pytest.raises(grpc.aio.AioRpcError, match=r"ping timeout|failed to connect"):
                await echo(b"x")


class Proxy:
    """Passes bytes on to `target`, until it is cut: then it takes them, and passes nothing on."""

    target = ""
    is_cut = False

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_upstream = await asyncio.open_connection(*self.target.split(":"))
        await asyncio.gather(self._copy(reader, to_upstream), self._copy(upstream, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not self.is_cut:
                writer.write(data)
        writer.close()


async def test_it_is_seen_whether_a_life_of_another_machine_is_there() -> None:
    held = socket.create_server(("127.0.0.1", 0))
    sibling = member("b", f"127.0.0.1:{held.getsockname()[1]}")
    assert await is_listening(sibling)
    held.close()
    assert not await is_listening(sibling)


async def test_a_certificate_that_was_renewed_is_shown_by_the_next_connection(certificates: Certificates) -> None:
    """The server trusts the new authority alone."""
    links = MachineLinkTls(certificates.links("a"))
    certificates.ca = trustme.CA()
    certificates.ca.cert_pem.write_to_path(str(certificates.folder / "ca.pem"))
    async with port_of(certificates.links("b")) as (address, _):
        target, dialling = MachineLinkDialling(links)(member("b", address))
        async with NativeChannel(target, dialling) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary("/t.T/Echo")(b"x")
            certificates.issue("a")
            links.renew()
            assert await channel.unary_unary("/t.T/Echo")(b"x", wait_for_ready=True)
