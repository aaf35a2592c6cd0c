"""The arena's leaderboard, the example for services whose shards share one SQLite file."""

import multiprocessing
import os
import sqlite3
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from services.arena import leaderboard

pytestmark = pytest.mark.slow
FILES = 200
"""Without the retry, one of the two processes fails to open one file in ten or twenty."""
PATIENCE_S = 30.0


def open_each_together(folder: Path, together: Barrier) -> None:
    """Open one new file after the other, each at the same moment as the other process does."""
    try:
        for number in range(FILES):
            os.environ[leaderboard.DATABASE] = str(folder / f"{number}.db")
            together.wait(PATIENCE_S)
            connection = leaderboard.open_database()
            leaderboard.report(connection, "b", f"player-{os.getpid()}", 1200)
            connection.close()
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
    monkeypatch.setenv(leaderboard.DATABASE, str(tmp_path / "text"))
    (tmp_path / "text").write_text("this is no database, and never will be one" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        leaderboard.open_database()


def test_a_database_that_stays_locked_fails_after_the_busy_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(leaderboard.DATABASE, str(tmp_path / "held"))
    monkeypatch.setattr(leaderboard, "BUSY_S", 0.1)
    holder = sqlite3.connect(tmp_path / "held")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="database is locked"):
        leaderboard.open_database()
    holder.close()
