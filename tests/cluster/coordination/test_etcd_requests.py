"""To which member of etcd a request goes, until when, and what is left of one that is late."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from email.utils import formatdate

import pytest
import trustme
from onelane.cluster.coordination import CoordinationUnavailable, Put
from onelane.cluster.coordination.etcd import EtcdStore

from tests import ports
from tests.bounds import BOUND_S
from tests.cluster.coordination.wires import Wire, opened
from tests.etcd import EtcdServer, etcd
from tests.supervisor.scripted_lives import until

LATE_S = 0.1
WAY_S = 0.4
"""There, or back."""
DAY_S = 86_400.0


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with etcd() as server:
        yield server


# One that is late


async def test_a_request_that_is_late_leaves_its_connection_to_the_next_one(server: EtcdServer) -> None:
    """Which would need three ways there and back for one of its own."""
    wire = Wire(server.url)
    async with wire.running() as url, opened(url, timeout_s=LATE_S) as store:
        with wire.held_up(), pytest.raises(CoordinationUnavailable, match=rf"{url} does not answer within 0\.1 s"):
            await store.read("/a/")
        await until(lambda: not store.under_way)
        # A request that has more time, however busy the machine is: there is no such lease.
        assert await store.renew(1) == 0
        assert wire.connections == 1


async def test_a_write_that_is_late_is_carried_out_once(server: EtcdServer) -> None:
    """Its caller has been told that nobody knows."""
    wire = Wire(server.url)
    async with wire.running() as url, opened(url, timeout_s=LATE_S) as store, opened(server.url) as direct:
        start = (await direct.read("/once/")).revision
        with wire.held_up(), pytest.raises(CoordinationUnavailable):
            await store.commit([], [Put("/once/", b"1")])
        await until(lambda: not store.under_way)
        assert (await direct.read("/once/")).revision == start + 1


async def test_a_renewal_is_waited_for_beyond_the_time_of_other_requests(server: EtcdServer) -> None:
    wire = Wire(server.url)
    async with wire.running() as url, opened(server.url) as direct, opened(url, timeout_s=LATE_S) as store:
        lease_id = (await direct.grant(60)).lease_id
        with wire.held_up():
            renewing = asyncio.ensure_future(store.renew(lease_id))
            with pytest.raises(CoordinationUnavailable):
                await store.read("/a/")
            assert not renewing.done()
        assert await renewing >= 60


async def test_a_renewal_that_is_never_answered_ends(server: EtcdServer) -> None:
    wire = Wire(server.url)
    async with wire.running() as url, opened(url, timeout_s=LATE_S / 2, linger_s=LATE_S) as store:
        with wire.held_up(), pytest.raises(CoordinationUnavailable, match="does not answer"):
            await store.renew(1)
        await until(lambda: not store.under_way)


async def test_while_a_member_owes_an_answer_another_one_is_asked(server: EtcdServer) -> None:
    wire = Wire(server.url)
    async with wire.running() as url, opened(url, server.url, late_s=0.0) as store:
        with wire.held_up():
            owed = asyncio.ensure_future(store.read("/a/"))
            await until(lambda: wire.connections)
            assert (await store.read("/a/")).entries == {}
            assert not owed.done()
        await owed


async def test_a_store_that_is_closed_leaves_nothing_of_requests_that_are_late(server: EtcdServer) -> None:
    wire = Wire(server.url)
    async with wire.running() as url:
        with wire.held_up():
            async with opened(url, timeout_s=LATE_S) as store:
                with pytest.raises(CoordinationUnavailable):
                    await store.read("/a/")
                assert store.under_way == 1
            assert store.under_way == 0


async def test_a_request_whose_caller_is_cancelled_ends_with_it(server: EtcdServer) -> None:
    wire = Wire(server.url)
    async with wire.running() as url, opened(url) as store:
        with wire.held_up():
            asking = asyncio.ensure_future(store.read("/a/"))
            await until(lambda: wire.connections)
            asking.cancel()
            await asyncio.wait([asking])
            assert asking.cancelled()
            await until(lambda: not store.under_way)


@pytest.fixture(scope="module")
def far_away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EtcdServer, ssl.SSLContext]]:
    """By TLS."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "own.pem")
    known = ssl.create_default_context()
    authority.configure_trust(known)
    files = [f"--cert-file={folder / 'own.pem'}", f"--key-file={folder / 'own.pem'}"]
    with etcd(*files, scheme="https") as server:
        yield server, known


async def test_a_store_is_reached_whose_connection_takes_longer_than_a_request_may(
    far_away: tuple[EtcdServer, ssl.SSLContext],
) -> None:
    """A handshake of TLS and a request are two ways there and back, each of which fits into the time of one."""
    server, known = far_away
    wire = Wire(server.url, way_s=WAY_S)
    async with wire.running() as url, opened(url.replace("http:", "https:"), tls=known, timeout_s=3.5 * WAY_S) as store:
        await until_read(store)
        assert store.answers_in_s is not None
        assert store.answers_in_s >= 2 * WAY_S
        with pytest.raises(CoordinationUnavailable, match="does not answer within"):
            # As above, but its connection ends with each request.
            async with opened(url.replace("http:", "https:"), tls=known, timeout_s=3.5 * WAY_S) as other:
                await other.read("/a/")


async def until_read(store: EtcdStore) -> None:
    while True:
        with suppress(CoordinationUnavailable):
            await store.read("/a/")
            return


# Their clocks


@asynccontextmanager
async def member_at(date: str) -> AsyncIterator[str]:
    """Of which only its clock answers."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        listening.close()


RIGHT, WRONG = formatdate(usegmt=True), formatdate(0, usegmt=True)


@pytest.mark.parametrize(
    ("dates", "is_known", "apart"),
    [
        ([RIGHT, RIGHT, RIGHT], True, []),
        ([WRONG, RIGHT, RIGHT], True, [0]),
        ([RIGHT, RIGHT, WRONG], True, [2]),
        ([WRONG, RIGHT], False, [0, 1]),
        ([RIGHT, "none"], True, []),
    ],
)
async def test_this_machines_clock_is_compared_with_that_of_most_members(
    dates: list[str], is_known: bool, apart: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(member_at(date)) for date in dates]
        store = await stack.enter_async_context(opened(*urls))
        await store.look_around()
        # However long ago this module was imported.
        assert (store.ahead_s is not None and abs(store.ahead_s) < DAY_S) is is_known
        await until(lambda: not store.under_way)
        await store.look_around()
        await until(lambda: not store.under_way)
        lines = [record.getMessage() for record in caplog.records if "etcd.clocks_differ" in record.getMessage()]
        names = ",".join(sorted(urls[number] for number in apart))
        assert [line.split()[1] for line in lines] == ([f"members={names}"] if apart else [])


async def test_members_that_do_not_answer_are_left_out(server: EtcdServer) -> None:
    with ports.reserved() as port:
        async with opened(f"http://127.0.0.1:{port}", server.url) as store:
            await store.look_around()
            assert store.ahead_s is not None
            assert abs(store.ahead_s) < BOUND_S


async def test_a_look_around_waits_for_no_member_that_is_not_needed(server: EtcdServer) -> None:
    wire = Wire(server.url)
    async with wire.running() as url, opened(url, server.url, f"{server.url}/") as store:
        with wire.held_up():
            await store.look_around()
            assert store.ahead_s is not None
        await until(lambda: not store.under_way)


async def test_a_look_around_leaves_a_connection_to_each_member(server: EtcdServer) -> None:
    wires = [Wire(server.url) for _ in range(3)]
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(wire.running()) for wire in wires]
        store = await stack.enter_async_context(opened(*urls, late_s=0.0))
        await store.look_around()
        await until(lambda: not store.under_way)
        with wires[0].held_up():
            owed = asyncio.ensure_future(store.read("/a/"))
            await until(lambda: store.requests["kv/range"])
            await store.read("/a/")
        await owed
        assert [wire.connections for wire in wires] == [1, 1, 1]
