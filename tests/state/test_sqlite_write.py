"""A commit has few statements, however many keys it writes."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from onelane.state import sqlite_file
from onelane.state.sqlite_write import MOST_ROWS, STAMP, drop, put, write_rows
from onelane.state.store import KeyWrite

from tests.state.places import AT, cart, full, write


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    database = sqlite_file.connect(tmp_path / "a.sqlite", "lobby", patience_s=5.0)
    yield database
    database.close()


def statements_of(database: sqlite3.Connection, writes: list[KeyWrite]) -> int:
    """How many are run to write these keys."""
    statements: list[str] = []
    database.set_trace_callback(statements.append)
    drop(database, writes)
    put(database, writes)
    database.set_trace_callback(None)
    return len(statements)


@pytest.mark.parametrize("number", [1, 2, MOST_ROWS - 1, MOST_ROWS, 2 * MOST_ROWS + 7])
def test_every_row_is_written_whatever_their_number(database: sqlite3.Connection, number: int) -> None:
    put(database, [write(f"k{n}", b"%d" % n) for n in range(number)])
    rows = database.execute("SELECT key, value FROM rows")
    assert sorted(rows) == sorted((f"k{n}", b"%d" % n) for n in range(number))


def test_four_times_as_many_keys_are_not_four_times_as_many_statements(database: sqlite3.Connection) -> None:
    few, many = ([write(f"k{n}", b"1") for n in range(number)] for number in (MOST_ROWS // 4, MOST_ROWS))
    assert statements_of(database, few) == statements_of(database, many) == 1


def test_what_is_written_again_keeps_its_place_in_the_file(database: sqlite3.Connection) -> None:
    put(database, [full("a"), full("b")])
    before = database.execute("SELECT rowid FROM rows").fetchall()
    put(database, [KeyWrite("a", 1, rows=(cart(b"new"),))])
    assert database.execute("SELECT rowid FROM rows").fetchall() == before


def test_of_many_stamps_those_that_are_older_than_the_claim_are_not_counted(database: sqlite3.Connection) -> None:
    newer, older = ((2, 1) * 2, (1, 1) * 2)
    write_rows(database, STAMP, [(f"k{n}", *newer, AT) for n in range(3)])
    assert write_rows(database, STAMP, [(f"k{n}", *older, AT) for n in range(MOST_ROWS + 5)]) == MOST_ROWS + 5 - 3
