"""What a SQLite file has of some keys."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from onelane.state.store import DueReminder, KeyState, RememberedAnswer, Row, Stamp, StoredReminder

AMONG = "key IN (SELECT value FROM json_each(?))"


class Stamps(NamedTuple):
    """Of one key in one file."""

    claim: Stamp
    written: Stamp


def among(keys: Iterable[str]) -> tuple[str]:
    """The argument for `AMONG`."""
    return (json.dumps(list(keys)),)


def read_stamps(database: sqlite3.Connection, keys: Iterable[str]) -> dict[str, Stamps]:
    """The stamps of those keys that the file knows."""
    selected = database.execute(
        f"SELECT key, epoch, life, written_epoch, written_life FROM keys WHERE {AMONG}", among(keys)
    )
    return {key: Stamps(Stamp(epoch, life), Stamp(*written)) for key, epoch, life, *written in selected}


def read_reminders(
    database: sqlite3.Connection, *, before: float, after: tuple[float, str, str], limit: int
) -> list[tuple[DueReminder, Stamp]]:
    """A page of the reminders in the file, as `Store.reminders` lists them, each with the last write of its key."""
    query = (
        "SELECT due, key, id, data, written_epoch, written_life FROM reminders JOIN keys USING (key) "
        "WHERE due < ? AND (due, key, id) > (?, ?, ?) ORDER BY due, key, id LIMIT ?"
    )
    return [
        (DueReminder(due, key, StoredReminder(id, due, data)), Stamp(*written))
        for due, key, id, data, *written in database.execute(query, (before, *after, limit))
    ]


def read_states(database: sqlite3.Connection, keys: Sequence[str]) -> dict[str, KeyState]:
    """All of those keys that the file knows. Inside a transaction, so that all of it is of the same moment."""
    names = among(keys)

    def by_key(columns: str, table: str, order: str) -> dict[str, list[Any]]:
        query = f"SELECT key, {columns} FROM {table} WHERE {AMONG} ORDER BY key, {order}"
        groups = groupby(database.execute(query, names), itemgetter(0))
        return {key: [values[1:] for values in group] for key, group in groups}

    rows = by_key("dict, value, spelled, codec, version", "rows", "dict")
    answers = by_key("id, digest, answer, at", "answers", "at, id")
    reminders = by_key("id, due, data", "reminders", "due, id")
    written = database.execute(f"SELECT key, written_epoch, written_life FROM keys WHERE {AMONG}", names)
    return {
        key: KeyState(
            key,
            Stamp(epoch, life),
            tuple(Row(*values) for values in rows.get(key, ())),
            tuple(RememberedAnswer(*values) for values in answers.get(key, ())),
            tuple(StoredReminder(*values) for values in reminders.get(key, ())),
        )
        for key, epoch, life in written
    }
