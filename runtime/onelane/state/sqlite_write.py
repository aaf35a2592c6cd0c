"""What a SQLite file is told to keep and to drop of some keys, in as few statements as there can be.

Python's sqlite3 gives up the GIL for each row that a statement is run for, and wins it back from a lane that is busy:
under load that takes longer than the write itself. So a statement has many rows, and one without rows is left out.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from onelane.state.store import KeyState, KeyWrite

MOST_ROWS = 64
"""Of one statement. A power of two, as all numbers of rows are, so that the connection remembers few statements."""
_NEWER = "WHERE (excluded.epoch, excluded.life) >= (keys.epoch, keys.life)"
CLAIM = f"""
INSERT INTO keys VALUES (?, ?, ?, 0, 0, ?) ON CONFLICT (key) DO UPDATE
SET epoch = excluded.epoch, life = excluded.life, touched = excluded.touched {_NEWER}
"""
STAMP = f"""
INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE
SET epoch = excluded.epoch, life = excluded.life, written_epoch = excluded.written_epoch,
    written_life = excluded.written_life, touched = excluded.touched {_NEWER}
"""
ADOPT = """
INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE
SET written_epoch = excluded.written_epoch, written_life = excluded.written_life, touched = excluded.touched,
    (epoch, life) = (SELECT max(epoch, excluded.epoch), CASE
        WHEN epoch = excluded.epoch THEN max(life, excluded.life)
        WHEN epoch < excluded.epoch THEN excluded.life ELSE life END)
WHERE (excluded.written_epoch, excluded.written_life) > (keys.written_epoch, keys.written_life)
"""
# Not by REPLACE, which gives the row another place, and so writes two pages more.
_PUT_ROW = """
INSERT INTO rows (key, dict, spelled, value, codec, version) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key, dict) DO UPDATE
SET spelled = excluded.spelled, value = excluded.value, codec = excluded.codec, version = excluded.version
"""
_PUT_ANSWER = "INSERT OR REPLACE INTO answers (key, id, digest, answer, at) VALUES (?, ?, ?, ?, ?)"
_PUT_REMINDER = "INSERT OR REPLACE INTO reminders (key, id, due, data) VALUES (?, ?, ?, ?)"


def write_rows(database: sqlite3.Connection, statement: str, rows: Sequence[Sequence[Any]]) -> int:
    """Run a statement with VALUES (?, …) for all of these rows; returns how many it has changed."""
    changed = begin = 0
    while begin < len(rows):
        number = min(MOST_ROWS, 1 << (len(rows) - begin).bit_length() - 1)
        values = chain.from_iterable(rows[begin : begin + number])
        changed += database.execute(_with_rows(statement, number), tuple(values)).rowcount
        begin += number
    return changed


@lru_cache
def _with_rows(statement: str, number: int) -> str:
    """The statement with the one row of its VALUES so many times."""
    head, _, rest = statement.partition("VALUES (")
    row, _, tail = rest.partition(")")
    return f"{head}VALUES {', '.join([f'({row})'] * number)}{tail}"


def drop(database: sqlite3.Connection, writes: Sequence[KeyWrite]) -> None:
    """Remove what these writes drop."""
    if rows := [(write.key, name) for write in writes for name in write.dropped_rows]:
        database.executemany("DELETE FROM rows WHERE key = ? AND dict = ?", rows)
    if answers := [(write.key, id) for write in writes for id in write.dropped_answers]:
        database.executemany("DELETE FROM answers WHERE key = ? AND id = ?", answers)
    if reminders := [(write.key, id) for write in writes for id in write.dropped_reminders]:
        database.executemany("DELETE FROM reminders WHERE key = ? AND id = ?", reminders)


def drop_whole(database: sqlite3.Connection, keys: Iterable[str]) -> None:
    """Remove all that is stored of these keys, but for their stamps."""
    values = [(key,) for key in keys]
    for table in ("rows", "answers", "reminders"):
        database.executemany(f"DELETE FROM {table} WHERE key = ?", values)


def put(database: sqlite3.Connection, states: Sequence[KeyWrite | KeyState]) -> None:
    """Write the rows, answers and reminders of these keys."""
    rows = [(s.key, r.dict_name, r.spelled, r.value, r.codec, r.version) for s in states for r in s.rows]
    answers = [(s.key, a.id, a.digest, a.answer, a.at) for s in states for a in s.answers]
    reminders = [(s.key, r.id, r.due, r.data) for s in states for r in s.reminders]
    write_rows(database, _PUT_ROW, rows)
    write_rows(database, _PUT_ANSWER, answers)
    write_rows(database, _PUT_REMINDER, reminders)
