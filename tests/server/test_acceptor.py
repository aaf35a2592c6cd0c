"""TLS clients that are silent, many, or wrong: bounded, counted, and no neighbour waits long."""

import asyncio
import errno
import ssl
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onelane.client.channel import dial
from onelane.client.options import Dialling
from onelane.server import acceptor, tls
from onelane.server.connection_counts import ConnectionCounts
from onelane.telemetry.stats import Stats

from tests.bounds import BOUND_S
from tests.running_app import eventually
from tests.servers import Files, native

CLIENT_HELLO_BEGINS = b"\x16\x03\x01\x02\x00\x01"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


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


@pytest.mark.parametrize("begins_with", [b"", CLIENT_HELLO_BEGINS])
async def test_a_client_that_does_not_end_its_handshake_is_cut_off_and_its_neighbour_served(
    files: Files, counted: Callable[[], Counter[str]], begins_with: bytes
) -> None:
    async with (
        native(tls=files.tls(), handshake_s=0.3) as (address, listener),
        dial(address, dialling=Dialling(tls=files.client())) as neighbour,
    ):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(begins_with)
        assert await neighbour.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
        async with asyncio.timeout(BOUND_S):
            assert await reader.read() == b""
        writer.close()
        assert await neighbour.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
        assert counted() == {"done": 1, "timeout": 1}
        assert listener._slots.taken == 1


async def test_silent_clients_of_one_address_are_bounded_before_their_handshake(
    files: Files, counted: Callable[[], Counter[str]]
) -> None:
    async with native(tls=files.tls(), max_connections_per_peer=3) as (address, listener):
        clients = [await asyncio.open_connection(*address.split(":")) for _ in range(5)]
        await eventually(lambda: counted() == {"peer": 2})
        for _, writer in clients:
            writer.close()
        await eventually(lambda: listener._slots.taken == 0)
        async with dial(address, dialling=Dialling(tls=files.client())) as channel:
            assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"


async def test_a_burst_of_clients_begins_one_handshake_in_a_turn(
    files: Files, monkeypatch: pytest.MonkeyPatch, counted: Callable[[], Counter[str]]
) -> None:
    turns, begun = [0], Counter[int]()

    class Counting(tls.RenewedContext):
        def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
            begun[turns[0]] += 1
            return super().wrap_bio(*args, **kwargs)

    async def count_turns() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(tls, "RenewedContext", Counting)
    async with native(tls=files.tls()) as (address, _):
        context = ssl.create_default_context(cafile=files.path("ca.pem"))
        # Held by the kernel until the loop turns: all say hello before the first is accepted.
        ends = [(ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(20)]
        clients = []
        for inward, outward in ends:
            hello = context.wrap_bio(inward, outward, server_hostname="127.0.0.1")
            with pytest.raises(ssl.SSLWantReadError):
                hello.do_handshake()
            reader, writer = await asyncio.open_connection(*address.split(":"))
            clients.append((reader, writer, outward.read()))
        counting = asyncio.create_task(count_turns())
        for _, writer, hello_bytes in clients:
            writer.write(hello_bytes)
        async with asyncio.timeout(BOUND_S):
            for reader, _, _ in clients:
                assert await reader.readexactly(5)
        counting.cancel()
        for _, writer, _ in clients:
            writer.close()
        assert sum(begun.values()) == len(clients)
        assert max(begun.values()) == 1
        await eventually(lambda: counted()["closed"] == len(clients))


async def test_failed_handshakes_are_counted_by_their_error(files: Files, counted: Callable[[], Counter[str]]) -> None:
    async with native(tls=files.tls(client_ca=files.path("ca.pem"))) as (address, listener):
        for begins_with in (b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            reader, writer = await asyncio.open_connection(*address.split(":"))
            writer.write(begins_with)
            async with asyncio.timeout(BOUND_S):
                await reader.read()
            writer.close()
        without_certificate = dial(address, dialling=Dialling(tls=files.client()))
        async with without_certificate as channel:
            with pytest.raises(Exception, match="UNAVAILABLE"):
                await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S)
        await eventually(lambda: counted()["protocol"] >= 2 and counted()["certificate"] >= 1)
        await eventually(lambda: listener._slots.taken == 0)


async def test_where_no_descriptor_is_left_the_acceptor_pauses_and_goes_on(
    files: Files, monkeypatch: pytest.MonkeyPatch, counted: Callable[[], Counter[str]]
) -> None:
    monkeypatch.setattr(acceptor, "ACCEPT_PAUSE_S", 0.1)
    async with native(tls=files.tls()) as (address, listener):
        ((_, server),) = listener._servers

        class NoneLeft:
            def __init__(self, sock: Any) -> None:
                self.fileno, self.close, self.accept_for_real = sock.fileno, sock.close, sock.accept
                self.refusals_left = 2

            def accept(self) -> Any:
                if self.refusals_left:
                    self.refusals_left -= 1
                    raise OSError(errno.EMFILE, "Too many open files")
                return self.accept_for_real()

        server._listening = NoneLeft(server._listening)  # type: ignore[union-attr]
        async with dial(address, dialling=Dialling(tls=files.client())) as channel:
            assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
        assert counted() == {"descriptors": 2, "done": 1}
