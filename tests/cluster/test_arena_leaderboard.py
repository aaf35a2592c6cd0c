"""The arena's leaderboard, the example for services whose shards share one database: a SQLite file, or PostgreSQL."""

import multiprocessing
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import psycopg
import pytest

from services.arena import boards
from tests import postgres
from tests.bounds import BOUND_S

pytestmark = pytest.mark.slow
FILES = 200
"""Without the retry, one of the two processes fails to open one file in ten or twenty."""
OPENERS = 4


def open_each_together(folder: Path, together: Barrier) -> None:
    """Open one new file after the other, each at the same moment as the other process does."""
    try:
        for number in range(FILES):
            os.environ[boards.DATABASE] = str(folder / f"{number}.db")
            together.wait(BOUND_S)
            opened = boards.open_boards()
            opened.report("b", f"player-{os.getpid()}", 1200)
            opened.close()
    except BaseException:
        together.abort()
        raise


def test_two_processes_open_a_new_file_at_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(2)
    openers = [spawn.Process(target=open_each_together, args=(tmp_path, together)) for _ in range(2)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    assert [opener.exitcode for opener in openers] == [0, 0]
    for file in tmp_path.glob("*.db"):
        connection = sqlite3.connect(file)
        assert connection.execute("SELECT count(*) FROM line").fetchone() == (2,)
        connection.close()


def test_a_file_that_is_no_database_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(boards.DATABASE, str(tmp_path / "text"))
    (tmp_path / "text").write_text("this is no database, and never will be one" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        boards.open_boards()


def test_a_database_that_stays_locked_fails_after_the_busy_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(boards.DATABASE, str(tmp_path / "held"))
    monkeypatch.setattr(boards, "BUSY_S", 0.1)
    holder = sqlite3.connect(tmp_path / "held")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="database is locked"):
        boards.open_boards()
    holder.close()


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.PostgresServer]:
    with postgres.server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def open_boards(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], boards.Boards]:
    """Of a database without a line, as the leaderboard opens it."""
    if request.param == "sqlite":
        monkeypatch.setenv(boards.DATABASE, str(tmp_path / "arena.db"))
    else:
        dsn = request.getfixturevalue("server").dsn
        monkeypatch.setenv(boards.DATABASE, dsn)
        with psycopg.connect(dsn) as connection:
            connection.execute("DROP TABLE IF EXISTS line")
    return boards.open_boards


def test_what_one_shard_reports_another_one_reads(open_boards: Callable[[], boards.Boards]) -> None:
    first, second = open_boards(), open_boards()
    assert first.report("b", "ann", 1200.5) == 1
    assert first.report("b", "bob", 1300) == 1
    assert second.report("b", "ann", 1400.25) == 1
    assert second.report("another", "eve", 1) == 1
    assert first.report("b", "cid", 1350) == 2
    assert second.top("b", 2) == [("ann", 1400.25), ("cid", 1350.0)]
    first.close()
    second.close()


def test_shards_of_several_machines_create_the_tables_of_one_server_at_once(
    server: postgres.PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(boards.DATABASE, server.dsn)
    together, opened = threading.Barrier(OPENERS), list[boards.Boards]()

    def open_one() -> None:
        together.wait(BOUND_S)
        opened.append(boards.open_boards())

    for _ in range(10):
        with psycopg.connect(server.dsn) as connection:
            connection.execute("DROP TABLE IF EXISTS line")
        threads = [threading.Thread(target=open_one) for _ in range(OPENERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(opened) == OPENERS
        while opened:
            opened.pop().close()


def test_a_server_that_was_restarted_fails_one_use_of_each_connection(
    server: postgres.PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(boards.DATABASE, server.dsn)
    opened = boards.open_boards()
    opened.report("kept", "ann", 1200)
    server.stop(signal.SIGQUIT)
    server.start()
    with pytest.raises(psycopg.OperationalError):
        opened.top("kept", 1)
    assert opened.top("kept", 1) == [("ann", 1200.0)]
    opened.close()
