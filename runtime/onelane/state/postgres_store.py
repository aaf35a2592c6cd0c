"""A store in PostgreSQL, over machines: one table for each kind of what is kept, the app in their keys.

All shards of an app share the tables, so a key that moves keeps its rows; a stamp in `onelane_keys` says who may write
it. Every transaction updates the rows of `onelane_keys` first, in the order of the keys: so two of them wait for each
other, and do not deadlock. A commit takes two round trips, whatever its size.

A connection that is lost while a commit is under way leaves open whether it succeeded. Then the server is asked, by the
number of the transaction, as soon as it answers again within `patience_s`.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, LiteralString

import psycopg

from onelane.errors import Fenced, StoreRefused, StoreUnavailable
from onelane.state import postgres_connection
from onelane.state.postgres_connection import PatientConnection, as_store_errors
from onelane.state.store import (
    NEVER_WRITTEN,
    PAGE,
    DueReminder,
    KeyState,
    KeyWrite,
    RememberedAnswer,
    Row,
    Stamp,
    StoreCounts,
    StoredReminder,
    StoreOptions,
    check_distinct,
)

_RETRY_S = 0.05
_MAY_STAMP: LiteralString = "(excluded.epoch, excluded.life) >= (k.epoch, k.life)"
_CLAIM: LiteralString = f"""
INSERT INTO onelane_keys AS k SELECT %s, key, epoch, %s, 0, 0, %s FROM unnest(%b::text[], %b::int8[]) AS c (key, epoch)
ORDER BY key
ON CONFLICT (app, key) DO UPDATE SET epoch = excluded.epoch, life = excluded.life, touched = excluded.touched
WHERE {_MAY_STAMP} RETURNING key, pg_current_xact_id()::text
"""
_STAMP: LiteralString = f"""
INSERT INTO onelane_keys AS k SELECT %s, key, epoch, life, epoch, life, %s FROM (
    SELECT key, epoch, %s::int8 AS life FROM unnest(%b::text[], %b::int8[]) AS c (key, epoch)
) AS stamps ORDER BY key
ON CONFLICT (app, key) DO UPDATE SET epoch = excluded.epoch, life = excluded.life,
    written_epoch = excluded.epoch, written_life = excluded.life, touched = excluded.touched
WHERE {_MAY_STAMP} RETURNING key, pg_current_xact_id()::text
"""
_PROBE: LiteralString = "INSERT INTO onelane_keys VALUES (%s, %s, 0, 0, 0, 0, 0)"
_PUT_ROWS: LiteralString = """
INSERT INTO onelane_rows SELECT %s, * FROM unnest(
    %b::text[], %b::text[], %b::bytea[], %b::bytea[], %b::text[], %b::int8[]
) ON CONFLICT (app, key, dict) DO UPDATE
SET spelled = excluded.spelled, value = excluded.value, codec = excluded.codec, version = excluded.version
"""
_PUT_ANSWERS: LiteralString = """
INSERT INTO onelane_answers SELECT %s, * FROM unnest(%b::text[], %b::text[], %b::bytea[], %b::bytea[], %b::float8[])
ON CONFLICT (app, key, id) DO UPDATE SET digest = excluded.digest, answer = excluded.answer, at = excluded.at
"""
_PUT_REMINDERS: LiteralString = """
INSERT INTO onelane_reminders SELECT %s, * FROM unnest(%b::text[], %b::text[], %b::float8[], %b::bytea[])
ON CONFLICT (app, key, id) DO UPDATE SET due = excluded.due, data = excluded.data
"""
_FORGET_ANSWERS: LiteralString = """
DELETE FROM onelane_answers WHERE app = %s AND (key, id) IN (
    SELECT key, id FROM onelane_answers WHERE app = %s AND at < %s ORDER BY at LIMIT %s FOR UPDATE SKIP LOCKED
)
"""
_FORGET_CLAIMS: LiteralString = """
DELETE FROM onelane_keys WHERE app = %s AND key IN (
    SELECT key FROM onelane_keys AS k WHERE app = %s AND touched < %s
    AND NOT EXISTS (SELECT 1 FROM onelane_rows AS r WHERE (r.app, r.key) = (k.app, k.key))
    AND NOT EXISTS (SELECT 1 FROM onelane_answers AS a WHERE (a.app, a.key) = (k.app, k.key))
    AND NOT EXISTS (SELECT 1 FROM onelane_reminders AS m WHERE (m.app, m.key) = (k.app, k.key))
    LIMIT %s FOR UPDATE SKIP LOCKED
)
"""
# A server that has crashed gives the numbers of transactions of which its log has nothing to others.
_OUTCOME: LiteralString = """
SELECT pg_xact_status(%s::xid8), EXISTS (
    SELECT FROM onelane_keys WHERE (app, key, written_life, touched) = (%s, %s, %s, %s::float8)
)
"""
_COUNTS: LiteralString = """
SELECT (SELECT count(*) FROM onelane_keys WHERE app = %(app)s),
    (SELECT count(*) FROM onelane_answers WHERE app = %(app)s),
    (SELECT count(*) FROM onelane_reminders WHERE app = %(app)s),
    (SELECT coalesce(sum(length(value)), 0)::int8 FROM onelane_rows WHERE app = %(app)s)
"""
_READ: tuple[LiteralString, ...] = (
    "SELECT key, written_epoch, written_life FROM onelane_keys WHERE app = %s AND key = ANY(%s)",
    "SELECT key, dict, value, spelled, codec, version FROM onelane_rows WHERE app = %s AND key = ANY(%s) ORDER BY dict",
    "SELECT key, id, digest, answer, at FROM onelane_answers WHERE app = %s AND key = ANY(%s) ORDER BY at, id",
    "SELECT key, id, due, data FROM onelane_reminders WHERE app = %s AND key = ANY(%s) ORDER BY due, id",
)


class PostgresStore:
    """See `Store`."""

    holds_all = True

    def __init__(self, options: StoreOptions) -> None:
        self._app, self._life = options.app, options.life
        self._dsn, self._patience_s = options.dsn, options.patience_s
        self._place = postgres_connection.place_of(options.dsn)
        self._connection: PatientConnection | None = None

    def open(self) -> None:
        with self._ready():
            pass

    def load(self, keys: Sequence[str], *, epoch: int, at: float) -> dict[str, KeyState]:
        check_distinct(keys)
        if not keys:
            return {}
        with self._ready() as connection, connection.pipeline():
            connection.execute("BEGIN")
            claims = connection.execute(_CLAIM, (self._app, self._life, at, list(keys), [epoch] * len(keys)))
            states = self._read(connection, keys)
            self._check(connection, keys, claims.fetchall())
            connection.execute("COMMIT")
            return states

    def read(self, keys: Sequence[str]) -> dict[str, KeyState]:
        with self._ready() as connection, connection.pipeline():
            # Several statements that see the same moment.
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            states = self._read(connection, keys)
            connection.execute("COMMIT")
            return states

    def commit(self, writes: Sequence[KeyWrite], *, at: float) -> None:
        keys = [write.key for write in writes]
        check_distinct(keys)
        if not writes:
            return
        transaction = None
        try:
            with self._ready() as connection, connection.pipeline():
                connection.execute("BEGIN")
                stamp = (self._app, at, self._life, keys, [write.epoch for write in writes])
                stamped = connection.execute(_STAMP, stamp).fetchall()
                self._check(connection, keys, stamped)
                transaction = stamped[0][1]
                _drop(connection, self._app, writes)
                _put(connection, self._app, writes)
                connection.execute("COMMIT")
        except StoreUnavailable:
            # Where the connection is still usable, the server has refused the commit itself.
            if transaction is None or self._connection is not None or not self._has_committed(transaction, keys[0], at):
                raise

    def newest(self) -> Stamp:
        query: LiteralString = (
            "SELECT epoch, life FROM onelane_keys WHERE app = %s ORDER BY epoch DESC, life DESC LIMIT 1"
        )
        return max((Stamp(*values) for values in self._rows(query, self._app)), default=NEVER_WRITTEN)

    def probe(self) -> None:
        with self._ready() as connection, connection.pipeline():
            connection.execute("BEGIN")
            # The key is nobody's: a key has no space, and a life is one process.
            connection.execute(_PROBE, (self._app, f"probe {self._life}"))
            connection.execute("ROLLBACK")

    def keys(self, *, after: str = "", limit: int = PAGE) -> list[str]:
        query: LiteralString = "SELECT key FROM onelane_keys WHERE app = %s AND key > %s ORDER BY key LIMIT %s"
        return [key for (key,) in self._rows(query, self._app, after, limit)]

    def idle_keys(self, dict_name: str, *, before: float, after: str = "", limit: int = PAGE) -> list[str]:
        query: LiteralString = (
            "SELECT key FROM onelane_keys JOIN onelane_rows USING (app, key)"
            " WHERE app = %s AND key > %s AND touched < %s AND dict = %s ORDER BY key LIMIT %s"
        )
        return [key for (key,) in self._rows(query, self._app, after, before, dict_name, limit)]

    def reminders(
        self, *, before: float, after: tuple[float, str, str] | None = None, limit: int = PAGE
    ) -> list[DueReminder]:
        query: LiteralString = (
            "SELECT key, id, due, data FROM onelane_reminders WHERE app = %s AND due < %s"
            " AND (due, key, id) > (%s, %s, %s) ORDER BY due, key, id LIMIT %s"
        )
        selected = self._rows(query, self._app, before, *(after or (float("-inf"), "", "")), limit)
        return [DueReminder(due, key, StoredReminder(id, due, data)) for key, id, due, data in selected]

    def forget(self, *, answers_before: float, claims_before: float, limit: int = PAGE) -> int:
        with self._ready() as connection:
            answers = connection.execute(_FORGET_ANSWERS, (self._app, self._app, answers_before, limit)).rowcount
            return answers + connection.execute(_FORGET_CLAIMS, (self._app, self._app, claims_before, limit)).rowcount

    def counts(self) -> StoreCounts:
        rows = dict(self._rows("SELECT dict, count(*) FROM onelane_rows WHERE app = %s GROUP BY dict", self._app))
        with self._ready() as connection:
            keys, answers, reminders, value_bytes = connection.execute(_COUNTS, {"app": self._app}).fetchall()[0]
        return StoreCounts(keys, rows, answers, reminders, value_bytes)

    def backup(self, path: Path) -> None:
        raise StoreRefused(self._place, seen="a database", expected="pg_dump or pg_basebackup, its own tools")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def _ready(self) -> Iterator[PatientConnection]:
        """A usable connection; one that has failed is closed, so that the next operation makes a new one."""
        connection = self._connection
        if connection is None:
            connection = postgres_connection.connect(self._dsn, self._place, patience_s=self._patience_s)
            self._connection = connection
        # Longer than the server's statement_timeout, which leaves the connection usable.
        connection.deadline = time.monotonic() + 2 * self._patience_s
        try:
            with as_store_errors(self._place):
                yield connection
        except BaseException as error:
            self._leave_transaction(connection, error)
            raise

    def _leave_transaction(self, connection: PatientConnection, error: BaseException) -> None:
        """After an error of the server roll back; after any other, which may have cut an answer in two, close."""
        cause = error.__cause__
        refused = isinstance(error, Fenced) or (isinstance(cause, psycopg.Error) and cause.sqlstate is not None)
        try:
            if not refused or connection.closed:
                self.close()
            else:
                connection.rollback()
        except psycopg.Error:
            self.close()

    def _has_committed(self, transaction: str, key: str, at: float) -> bool:
        """Ask for the outcome of a transaction whose connection was lost, and which wrote `key`. False where it failed,
        nobody answers, or another life has claimed the key since."""
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline:
            with contextlib.suppress(StoreUnavailable):
                ((status, is_ours),) = self._rows(_OUTCOME, transaction, self._app, key, self._life, at)
                # "in progress": the server has not noticed yet that we are gone.
                if status != "in progress":
                    return bool(status == "committed" and is_ours)
            time.sleep(_RETRY_S)
        return False

    def _check(self, connection: PatientConnection, keys: Sequence[str], stamped: list[tuple[str, str]]) -> None:
        """Raises Fenced if not every key was stamped; those that were not have a higher stamp."""
        if fenced := set(keys) - {key for key, _ in stamped}:
            connection.execute("ROLLBACK")
            raise Fenced(fenced)

    def _rows(self, query: LiteralString, *values: Any) -> list[tuple[Any, ...]]:
        with self._ready() as connection:
            return connection.execute(query, values, binary=True).fetchall()

    def _read(self, connection: PatientConnection, keys: Sequence[str]) -> dict[str, KeyState]:
        cursors = [connection.execute(query, (self._app, list(keys)), binary=True) for query in _READ]
        written, rows, answers, reminders = (cursor.fetchall() for cursor in cursors)
        rows_of, answers_of, reminders_of = _by_key(rows), _by_key(answers), _by_key(reminders)
        return {
            key: KeyState(
                key,
                Stamp(epoch, life),
                tuple(Row(*values) for values in rows_of[key]),
                tuple(RememberedAnswer(*values) for values in answers_of[key]),
                tuple(StoredReminder(*values) for values in reminders_of[key]),
            )
            for key, epoch, life in written
        }


def _by_key(selected: list[tuple[Any, ...]]) -> defaultdict[str, list[tuple[Any, ...]]]:
    groups = defaultdict(list)
    for key, *values in selected:
        groups[key].append(tuple(values))
    return groups


def _drop(connection: PatientConnection, app: str, writes: Sequence[KeyWrite]) -> None:
    dropped: list[tuple[LiteralString, LiteralString, list[tuple[str, str]]]] = [
        ("onelane_rows", "dict", [(write.key, name) for write in writes for name in write.dropped_rows]),
        ("onelane_answers", "id", [(write.key, id) for write in writes for id in write.dropped_answers]),
        ("onelane_reminders", "id", [(write.key, id) for write in writes for id in write.dropped_reminders]),
    ]
    for table, column, pairs in dropped:
        _for_all(
            connection,
            f"DELETE FROM {table} WHERE app = %s AND (key, {column}) IN (SELECT * FROM unnest(%b::text[], %b::text[]))",
            app,
            pairs,
        )


def _put(connection: PatientConnection, app: str, writes: Sequence[KeyWrite]) -> None:
    rows = [(w.key, r.dict_name, r.spelled, r.value, r.codec, r.version) for w in writes for r in w.rows]
    answers = [(w.key, a.id, a.digest, a.answer, a.at) for w in writes for a in w.answers]
    reminders = [(w.key, r.id, r.due, r.data) for w in writes for r in w.reminders]
    _for_all(connection, _PUT_ROWS, app, rows)
    _for_all(connection, _PUT_ANSWERS, app, answers)
    _for_all(connection, _PUT_REMINDERS, app, reminders)


def _for_all(connection: PatientConnection, query: LiteralString, app: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Run a statement that unnests one array for each column."""
    if rows:
        connection.execute(query, (app, *map(list, zip(*rows, strict=True))))
