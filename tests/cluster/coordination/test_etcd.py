"""etcd's failures, and what people do wrong with it. What it promises besides: test_seam.py."""

import asyncio
import json
import shutil
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trustme
from onelane.cluster.coordination import (
    CoordinationRefused,
    CoordinationUnavailable,
    Created,
    EntryChanges,
    HistoryLost,
    Put,
    StoredEntry,
)
from onelane.cluster.coordination.etcd import EtcdStore
from onelane.cluster.coordination.etcd_json import changes_of, error_of

from tests import ports
from tests.cluster.coordination.wires import Wire, opened
from tests.etcd import BOUND_S, EtcdServer, etcd

QUIET_S = 0.2


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    with etcd() as server:
        yield server


async def seen(store: EtcdStore, after: int, count: int, prefix: str = "/a/") -> list[bytes]:
    """The values of the next changes."""
    values: list[bytes] = []
    async with aclosing(store.watch(prefix, after)) as news:
        while len(values) < count:
            values += [entry.value for _, entry in (await anext(news)).entries if entry]
    return values


async def until_answered(store: EtcdStore, prefix: str = "/a/") -> None:
    """A connection that etcd has closed fails one request more, which might have been carried out."""
    while True:
        with suppress(CoordinationUnavailable):
            await store.read(prefix)
            return


# Nobody answers


async def test_its_clock_is_compared_with_this_machines(server: EtcdServer) -> None:
    async with opened(server.url) as store:
        assert store.ahead_s is None
        await store.look_around()
        assert store.ahead_s is not None
        assert abs(store.ahead_s) < BOUND_S


async def test_no_etcd_is_told_with_its_address() -> None:
    with ports.reserved() as port:
        async with opened(f"http://127.0.0.1:{port}") as store:
            with pytest.raises(CoordinationUnavailable, match=rf"etcd at http://127.0.0.1:{port} does not answer"):
                await store.read("/a/")


async def test_a_member_that_is_down_is_passed_over(server: EtcdServer) -> None:
    with ports.reserved() as port:
        async with opened(f"http://127.0.0.1:{port}", server.url) as store:
            assert (await store.read("/a/")).entries == {}


async def test_a_member_that_hangs_up_fails_one_request_and_the_next_one_goes_to_another(server: EtcdServer) -> None:
    hung_up = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        hung_up.append(writer)
        writer.close()

    listening = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening, opened(f"http://127.0.0.1:{port}", server.url) as store:
        with pytest.raises(CoordinationUnavailable, match="does not answer"):
            await store.commit([], [Put("/a/1", b"1")])
        assert (await store.read("/a/")).entries == {}
    assert len(hung_up) == 1


@asynccontextmanager
async def member_that_says(status: str, words: str) -> AsyncIterator[tuple[str, list[str]]]:
    """Its url, and the paths that it was asked for, all of which it answers by this error, or with "", by nothing."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split()[1].decode())
        error = {"error": words, "message": words, "code": 14}
        body = json.dumps({"error": error} if status == "200 OK" else error).encode() + b"\n" if words else b""
        writer.write(f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", asked


async def test_a_member_that_is_cut_off_from_the_others_is_passed_over_at_once(server: EtcdServer) -> None:
    """It has carried out nothing, so the same request goes to the next one: a lease has no time to lose."""
    async with member_that_says("503 Service Unavailable", "etcdserver: no leader") as (url, asked):
        async with opened(url, server.url) as store:
            revision = await store.commit([], [Put("/a/1", b"1")])
        async with opened(url, server.url) as store:
            assert await seen(store, revision - 1, 1) == [b"1"]
    assert asked == ["/v3/kv/txn", "/v3/watch"]


@pytest.mark.parametrize("status", ["503 Service Unavailable", "200 OK"])
async def test_a_member_that_fails_is_not_asked_next(server: EtcdServer, status: str) -> None:
    """What it was asked may have been carried out, and is not sent again."""
    failing = member_that_says(status, "etcdserver: request timed out")
    async with failing as (url, asked), opened(url, server.url) as store:
        with pytest.raises(CoordinationUnavailable, match=f"{url}.*: etcdserver: request timed out"):
            await store.commit([], [Put("/a/1", b"1")])
        assert (await store.read("/a/")).entries == {}
    assert asked == ["/v3/kv/txn"]


@pytest.mark.parametrize("words", ["etcdserver: no leader", ""])
async def test_a_watch_that_its_member_ends_goes_on_at_another(server: EtcdServer, words: str) -> None:
    async with member_that_says("200 OK", words) as (url, asked):
        async with opened(server.url) as store:
            revision = await store.commit([], [Put("/a/1", b"1")])
        async with opened(url, server.url) as store:
            assert await seen(store, revision - 1, 1) == [b"1"]
    assert asked == ["/v3/watch"]


async def test_requests_that_fail_together_pass_over_one_member(server: EtcdServer) -> None:
    """Not the next one, too, which none of them has asked."""
    failing = member_that_says("503 Service Unavailable", "etcdserver: request timed out")
    async with failing as (url, asked), opened(url, server.url) as store:
        failed = await asyncio.gather(store.read("/a/"), store.read("/a/"), return_exceptions=True)
        assert [f"{url}: etcdserver" in str(error) for error in failed] == [True, True]
        assert (await store.read("/a/")).entries == {}
    assert len(asked) == 2


async def test_a_request_that_is_not_answered_ends_and_the_next_one_goes_on(server: EtcdServer) -> None:
    async with opened(server.url, timeout_s=0.3) as store:
        await until_answered(store)
        with server.frozen(), pytest.raises(CoordinationUnavailable):
            await store.commit([Created("/a/1", 0)], [Put("/a/1", b"")])
        await until_answered(store)


# etcd comes back


async def test_a_lease_and_a_watch_outlive_a_restart_of_etcd(server: EtcdServer) -> None:
    async with opened(server.url) as store, opened(server.url) as other:
        lease = (await store.grant(30)).lease_id
        start = await store.commit([], [Put("/a/1", b"1", lease)])
        watching = asyncio.ensure_future(seen(store, start, 2))
        await other.commit([], [Put("/a/1", b"2", lease)])
        server.stop()
        server.start()
        await until_answered(other)
        await other.commit([], [Put("/a/1", b"3", lease)])
        assert await watching == [b"2", b"3"]
        await until_answered(store)
        assert await store.renew(lease) >= 30


async def test_an_etcd_that_has_lost_its_data_is_no_history(server: EtcdServer) -> None:
    async with opened(server.url) as store:
        for _ in range(3):
            start = await store.commit([], [Put("/a/1", b"1")])
        server.stop()
        shutil.rmtree(server.folder / "data")
        server.start()
        with pytest.raises(HistoryLost):
            await seen(store, start, 1)
        assert (await store.read("/a/")).entries == {}


async def test_another_etcd_at_the_same_address_is_refused() -> None:
    with etcd("--initial-cluster-token=first") as server:
        async with opened(server.url) as store:
            await store.read("/a/")
            server.stop()
            shutil.rmtree(server.folder / "data")
            server.options = ["--initial-cluster-token=second"]
            server.start()
            with pytest.raises(CoordinationRefused, match="another etcd answers"):
                await until_answered(store)


# The network


async def test_a_watch_goes_on_after_its_connection_was_cut(server: EtcdServer) -> None:
    wire = Wire(server.url)
    async with wire.running() as url, opened(url) as store, opened(server.url) as direct:
        start = await direct.commit([], [Put("/a/1", b"1")])
        async with aclosing(store.watch("/a/", start)) as news:
            following = asyncio.ensure_future(anext(news))
            await direct.commit([], [Put("/a/1", b"2")])
            await following
            wire.cut()
            await direct.commit([], [Put("/a/1", b"3")])
            assert [entry.value for _, entry in (await anext(news)).entries if entry] == [b"3"]


async def test_a_watch_whose_connection_died_without_a_word_is_opened_anew(server: EtcdServer) -> None:
    wire = Wire(server.url)
    async with wire.running() as url, opened(url, quiet_s=QUIET_S) as store, opened(server.url) as direct:
        start = await direct.commit([], [Put("/a/1", b"1")])
        async with aclosing(store.watch("/a/", start)) as news:
            following = asyncio.ensure_future(anext(news))
            await direct.commit([], [Put("/a/1", b"2")])
            await following
            wire.silence()
            await direct.commit([], [Put("/a/1", b"3")])
            assert [entry.value for _, entry in (await anext(news)).entries if entry] == [b"3"]


async def test_a_silent_watch_that_is_opened_anew_misses_nothing_and_repeats_nothing(server: EtcdServer) -> None:
    async with opened(server.url, quiet_s=QUIET_S / 4) as store, opened(server.url) as direct:
        start = (await direct.read("/a/")).revision
        watching = asyncio.ensure_future(seen(store, start, 12))
        for number in range(12):
            await direct.commit([], [Put("/a/1", b"%d" % number)])
            await asyncio.sleep(QUIET_S / 12)
        assert await watching == [b"%d" % number for number in range(12)]


# Who we are


@pytest.fixture(scope="module")
def guarded() -> Iterator[EtcdServer]:
    """With a password: the user `onelane` may use what is below /onelane/."""
    with etcd("--bcrypt-cost=4") as server:
        server.ask("auth/user/add", '{"name": "root", "password": "r"}')
        server.ask("auth/user/grant", '{"user": "root", "role": "root"}')
        server.ask("auth/user/add", '{"name": "onelane", "password": "right"}')
        server.ask("auth/role/add", '{"name": "cluster"}')
        # /onelane/ up to /onelane0
        permission = '{"permType": 2, "key": "L29uZWxhbmUv", "range_end": "L29uZWxhbmUw"}'
        server.ask("auth/role/grant", f'{{"name": "cluster", "perm": {permission}}}')
        server.ask("auth/user/grant", '{"user": "onelane", "role": "cluster"}')
        # Another cluster's: what is below /onelane-of-others/.
        server.ask("auth/user/add", '{"name": "stranger", "password": "right"}')
        server.ask("auth/role/add", '{"name": "others"}')
        permission = (
            '{"permType": 2, "key": "L29uZWxhbmUtb2Ytb3RoZXJzLw==", "range_end": "L29uZWxhbmUtb2Ytb3RoZXJzMA=="}'
        )
        server.ask("auth/role/grant", f'{{"name": "others", "perm": {permission}}}')
        server.ask("auth/user/grant", '{"user": "stranger", "role": "others"}')
        server.ask("auth/enable", "{}")
        yield server


@pytest.mark.parametrize(("user", "password"), [("onelane", "wrong"), ("nobody", "right"), ("", "")])
async def test_a_wrong_password_is_refused_at_once(guarded: EtcdServer, user: str, password: str) -> None:
    async with opened(guarded.url, user=user, password=password) as store:
        with pytest.raises(CoordinationRefused, match=r"authentication failed|user name is empty"):
            await store.read("/onelane/")


async def test_a_user_works_below_its_own_keys_and_nowhere_else(guarded: EtcdServer) -> None:
    async with opened(guarded.url, user="onelane", password="right") as store:
        start = await store.commit([], [Put("/onelane/a", b"1", (await store.grant(30)).lease_id)])
        async with aclosing(store.watch("/onelane/", start - 1)) as news:
            assert (await anext(news)).revision == start
        with pytest.raises(CoordinationRefused, match="permission denied"):
            await store.read("/other/")


async def test_a_user_of_another_cluster_reads_and_writes_nothing_of_this_one_and_ends_no_lease(
    guarded: EtcdServer,
) -> None:
    async with (
        opened(guarded.url, user="onelane", password="right") as store,
        opened(guarded.url, user="stranger", password="right") as stranger,
    ):
        lease_id = (await store.grant(30)).lease_id
        await store.commit([], [Put("/onelane/machine", b"1", lease_id)])
        with pytest.raises(CoordinationRefused, match="permission denied"):
            await stranger.read("/onelane/")
        with pytest.raises(CoordinationRefused, match="permission denied"):
            await stranger.commit([], [Put("/onelane/machine", b"2")])
        with pytest.raises(CoordinationRefused, match="permission denied"):
            await stranger.revoke(lease_id)
        assert await store.remaining(lease_id) > 0
        assert (await store.read("/onelane/machine")).entries["/onelane/machine"].value == b"1"


async def test_a_user_for_an_etcd_without_passwords_is_told_so(server: EtcdServer) -> None:
    async with opened(server.url, user="onelane", password="right") as store:
        with pytest.raises(CoordinationRefused, match="authentication is not enabled"):
            await store.read("/a/")


async def test_a_store_whose_token_etcd_has_forgotten_says_again_who_it_is(guarded: EtcdServer) -> None:
    wire = Wire(guarded.url)
    async with wire.running() as url, opened(url, user="onelane", password="right") as store:
        start = await store.commit([], [Put("/onelane/a", b"1")])
        watching = asyncio.ensure_future(seen(store, start, 2, "/onelane/"))
        await store.commit([], [Put("/onelane/a", b"2")])
        root = guarded.ask("auth/authenticate", '{"name": "root", "password": "r"}')["token"]
        guarded.ask("auth/disable", "{}", root)
        guarded.ask("auth/enable", "{}")
        await store.commit([], [Put("/onelane/a", b"3")])
        wire.cut()
        assert await watching == [b"2", b"3"]


async def test_certificates_are_checked_on_both_sides(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    own = authority.issue_cert("127.0.0.1")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    files = ["--client-cert-auth", f"--trusted-ca-file={tmp_path}/ca.pem"]
    files += [f"--cert-file={tmp_path}/own.pem", f"--key-file={tmp_path}/own.pem"]
    known = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    with etcd(*files, scheme="https") as server:
        async with opened(server.url, tls=known) as store:
            with pytest.raises((CoordinationUnavailable, CoordinationRefused)):
                await store.read("/a/")
        async with opened(server.url) as store:
            with pytest.raises(CoordinationRefused, match="certificate verify failed"):
                await store.read("/a/")
        known.load_cert_chain(tmp_path / "own.pem")
        async with opened(server.url, tls=known) as store:
            await store.commit([], [Put("/a/1", b"1")])


# No etcd at all


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"kvs":[{}]}',
        b'HTTP/1.1 200 OK\r\nContent-Length: 34\r\n\r\n{"header":{"revision":"many"}}    ',
        b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"header":[]}',
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope",
        b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
        b"",
    ],
)
async def test_what_is_no_etcd_is_an_error_of_the_store_and_no_other(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, opened(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as store:
        with pytest.raises((CoordinationRefused, CoordinationUnavailable)):
            await store.read("/a/")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":"gone","message":"gone","code":5}', (5, "gone")),
        (b'{"code":16,"message":"who","details":[]}', (16, "who")),
        (b'{"error":{"grpc_code":14,"message":"closing"}}', (14, "closing")),
        (b"null", (2, "null")),
        (b"<html>", (2, "<html>")),
    ],
)
def test_an_error_of_every_release_of_the_gateway_is_understood(body: bytes, expected: tuple[int, str]) -> None:
    assert error_of(body) == expected


def test_what_a_watch_has_shown_ends_with_its_last_event_and_not_with_the_revision_of_the_store() -> None:
    events = [
        {"kv": {"key": "L2E=", "mod_revision": "5"}},
        {"type": "DELETE", "kv": {"key": "L2E=", "mod_revision": "6"}},
    ]
    changes = changes_of({"header": {"revision": "9"}, "events": events})
    assert changes == EntryChanges(6, (("/a", StoredEntry("/a", b"", 0, 5)), ("/a", None)))
