"""The store `postgresql`: a server that stops, hangs, dies with a commit under way, or is not ours."""

import os
import signal
import time
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import psycopg
import pytest
from onelane.errors import Fenced, StoreRefused, StoreUnavailable
from onelane.state.postgres_connection import PatientConnection, place_of
from onelane.state.postgres_store import PostgresStore
from onelane.state.store import Store, StoreOptions, scan

from tests.postgres import PostgresServer
from tests.state.places import AT, StorePlace, at_place, cart, write

pytestmark = pytest.mark.slow


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorePlace]:
    with at_place(request, tmp_path, "postgresql") as place:
        yield place


def impatient(place: StorePlace) -> Store:
    """One that waits for half a second, where the tables are made already: a busy machine may take longer for that."""
    place.open(shard="lobby-1")
    return place.open(patience_s=0.5)


def value_of(store: Store, key: str) -> bytes:
    return store.read([key])[key].rows[0].value


def test_a_server_that_crashed_and_was_down_is_back_by_itself_with_all_that_was_reported(
    place: StorePlace, postgres_server: PostgresServer
) -> None:
    store = impatient(place)
    store.commit([write("k", b"1")], at=AT)
    postgres_server.stop(signal.SIGQUIT)
    try:
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=f"^postgresql {postgres_server.folder}:5432/postgres: "):
                store.commit([write("k", b"2")], at=AT)
        with pytest.raises(StoreUnavailable):
            place.open(life=2)
    finally:
        postgres_server.start()
    assert value_of(store, "k") == b"1"
    store.commit([write("k", b"3")], at=AT)
    assert value_of(place.open(), "k") == b"3"


def backend_of(store: Store) -> int:
    assert isinstance(store, PostgresStore)
    assert store._connection is not None
    return store._connection.info.backend_pid


def test_a_server_that_hangs_is_unavailable_after_a_bounded_time(place: StorePlace) -> None:
    store, took_s = impatient(place), inf
    # A busy machine adds to it, and is asked again; a wait of the store's own would be as long each time.
    while took_s > 5:
        backend = backend_of(store)
        os.kill(backend, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match="the server does not answer"):
                store.commit([write("k", b"1")], at=AT)
            took_s = time.monotonic() - began
        finally:
            os.kill(backend, signal.SIGCONT)
        store.commit([write("k", b"2")], at=AT)
    assert value_of(store, "k") == b"2"


def test_a_key_that_another_transaction_holds_is_unavailable_after_the_patience(place: StorePlace) -> None:
    store = impatient(place)
    store.commit([write("k", b"1")], at=AT)
    backend = backend_of(store)
    with psycopg.connect(place.dsn) as other:
        other.execute("SELECT * FROM onelane_keys FOR UPDATE")
        with pytest.raises(StoreUnavailable, match="statement timeout"):
            store.commit([write("l", b"2"), write("k", b"2")], at=AT)
    assert [state.rows for state in scan(store)] == [(cart(b"1"),)]
    assert backend_of(store) == backend


class LosesItsConnection(PatientConnection):
    """Loses its connection at COMMIT: before the server has it, or just after."""

    reaches_server = True

    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        if query != "COMMIT":
            return super().execute(query, *arguments, **options)
        if self.reaches_server:
            with self.pipeline():
                super().execute(query)
        self.close()
        raise psycopg.OperationalError("lost")


@pytest.mark.parametrize("reaches_server", [True, False])
def test_the_outcome_of_a_commit_whose_connection_is_lost_is_asked_for(
    place: StorePlace, reaches_server: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = place.open()
    assert isinstance(store, PostgresStore)
    assert store._connection is not None
    monkeypatch.setattr(LosesItsConnection, "reaches_server", reaches_server)
    store._connection.__class__ = LosesItsConnection
    if reaches_server:
        store.commit([write("k", b"1")], at=AT)
        assert value_of(store, "k") == b"1"
    else:
        with pytest.raises(StoreUnavailable, match="lost"):
            store.commit([write("k", b"1")], at=AT)
        assert store.read(["k"]) == {}


def test_a_commit_that_a_crash_has_lost_is_not_taken_for_the_next_transaction_with_its_number(
    place: StorePlace, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a transaction that has not reached its disk a server that crashed knows nothing: its number is given again."""
    store = place.open(patience_s=5.0)
    assert isinstance(store, PostgresStore)
    assert store._connection is not None

    def crash(connection: PatientConnection, query: Any, *arguments: Any, **options: Any) -> Any:
        if query != "COMMIT":
            return PatientConnection.execute(connection, query, *arguments, **options)
        ((number,),) = PatientConnection.execute(connection, "SELECT pg_current_xact_id()::text::int8").fetchall()
        postgres_server.stop(signal.SIGQUIT)
        postgres_server.start()
        with psycopg.connect(place.dsn, autocommit=True) as other:
            while other.execute("SELECT pg_current_xact_id()::text::int8").fetchall() < [(number,)]:
                pass
        connection.close()
        raise psycopg.OperationalError("lost")

    monkeypatch.setattr(LosesItsConnection, "execute", crash)
    store._connection.__class__ = LosesItsConnection
    with pytest.raises(StoreUnavailable, match="lost"):
        store.commit([write("k", b"1")], at=AT)
    assert store.read(["k"]) == {}


def test_a_fenced_commit_keeps_its_connection(place: StorePlace) -> None:
    store = place.open()
    place.open(life=2).load(["k"], epoch=2, at=AT)
    backend = backend_of(store)
    with pytest.raises(Fenced):
        store.commit([write("k", b"1")], at=AT)
    store.commit([write("l", b"1")], at=AT)
    assert backend_of(store) == backend


def test_apps_share_a_database_and_see_nothing_of_each_other(place: StorePlace) -> None:
    lobby, shop = place.open(app="lobby"), place.open(app="shop", life=9)
    shop.commit([write("k", b"shop", epoch=9)], at=AT)
    lobby.commit([write("k", b"lobby", epoch=1)], at=AT)
    assert (value_of(lobby, "k"), value_of(shop, "k")) == (b"lobby", b"shop")
    assert lobby.counts().keys == 1


def test_a_session_that_does_not_flush_is_made_to(place: StorePlace) -> None:
    place.dsn += "%20-csynchronous_commit%3Doff"
    store = place.open()
    assert isinstance(store, PostgresStore)
    assert store._rows("SHOW synchronous_commit") == [("on",)]


def test_the_tables_of_another_release_are_refused_and_named(place: StorePlace) -> None:
    place.open()
    with psycopg.connect(place.dsn) as connection:
        connection.execute("UPDATE onelane_meta SET value = '7'")
    with pytest.raises(StoreRefused, match="tables of schema version 7, expected version 1"):
        place.open()


def test_no_error_shows_a_password() -> None:
    dsn = "postgresql://user:hunter2@db.example:6432/state"
    assert place_of(dsn) == "postgresql db.example:6432/state"
    with pytest.raises(StoreRefused) as refused:
        PostgresStore(StoreOptions("lobby", "lobby-0", 1, dsn="password=hunter2 hunter3"))
    assert "hunter" not in str(refused.value)
    assert "hunter2" not in repr(StoreOptions("lobby", "lobby-0", 1, dsn=dsn))


def test_a_backup_names_the_tools_of_the_database(place: StorePlace, tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="pg_dump"):
        place.open().backup(tmp_path / "copy")
