"""The connection of the store `postgresql`: opened, bounded in time, checked; and PostgreSQL's errors as ours."""

import contextlib
import time
from collections.abc import Generator, Iterator
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from onelane.errors import StoreRefused, StoreUnavailable

SCHEMA = 1
"""Version of the tables."""
_LOCK = 0x6F6E_6C6E
"""Advisory lock of whoever creates the tables: CREATE TABLE IF NOT EXISTS fails where two do so at once."""
_TRANSIENT = ("08", "25006", "40", "53", "55P03", "57", "58")
"""Beginnings of SQLSTATE: connection, read-only standby, deadlock, resources, lock timeout, shutdown, I/O."""

_FLUSH = "SELECT set_config(name, 'on', false) FROM pg_settings WHERE name = 'synchronous_commit' AND setting = 'off'"
_TABLES = """
CREATE TABLE onelane_meta (name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE onelane_keys (
    app text NOT NULL, key text COLLATE "C" NOT NULL, epoch int8 NOT NULL, life int8 NOT NULL,
    written_epoch int8 NOT NULL, written_life int8 NOT NULL, touched float8 NOT NULL, PRIMARY KEY (app, key)
);
CREATE TABLE onelane_rows (
    app text NOT NULL, key text COLLATE "C" NOT NULL, dict text COLLATE "C" NOT NULL, spelled bytea NOT NULL,
    value bytea NOT NULL, codec text NOT NULL, version int8 NOT NULL, PRIMARY KEY (app, key, dict)
);
CREATE TABLE onelane_answers (
    app text NOT NULL, key text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL, digest bytea NOT NULL,
    answer bytea NOT NULL, at float8 NOT NULL, PRIMARY KEY (app, key, id)
);
CREATE TABLE onelane_reminders (
    app text NOT NULL, key text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL, due float8 NOT NULL,
    data bytea NOT NULL, PRIMARY KEY (app, key, id)
);
CREATE INDEX onelane_answers_by_age ON onelane_answers (app, at);
CREATE INDEX onelane_reminders_by_due ON onelane_reminders (app, due, key, id);
"""


class PatientConnection(psycopg.Connection[Any]):
    """Ends a wait for the server that takes too long: libpq waits without a bound for a host that has stopped."""

    deadline = float("inf")
    """Monotonic seconds."""

    def wait(self, gen: Generator[Any, Any, Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        return super().wait(self._bounded(gen), interval)

    def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """The generator, which psycopg sends "not ready" to once in every interval."""
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > self.deadline:
                    raise psycopg.OperationalError("the server does not answer")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


def place_of(dsn: str) -> str:
    """Where a server is, without credentials.

    Raises:
        StoreRefused: that is no dsn. Its text is not shown: libpq's message would quote a part of it.
    """
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        raise StoreRefused("dsn", seen="no connection string of libpq", expected="postgresql://…") from None
    host, port = parts.get("host", "localhost"), parts.get("port", 5432)
    return f"postgresql {host}:{port}/{parts.get('dbname', '')}"


def connect(dsn: str, place: str, *, patience_s: float) -> PatientConnection:
    """A connection to a database with our tables, which are created where they do not exist."""
    with as_store_errors(place):
        connection: PatientConnection = PatientConnection.connect(
            dsn,
            autocommit=True,
            client_encoding="UTF8",
            connect_timeout=max(2, round(patience_s)),
            tcp_user_timeout=round(patience_s * 1000),
        )
        try:
            connection.deadline = time.monotonic() + 2 * patience_s
            settings = {"statement_timeout": patience_s, "idle_in_transaction_session_timeout": 2 * patience_s}
            for name, seconds in settings.items():
                connection.execute("SELECT set_config(%s, %s, false)", (name, f"{round(seconds * 1000)}"))
            # A commit that is reported must be on disk; a stricter setting, such as remote_apply, stays.
            connection.execute(_FLUSH)
            _check_or_create_tables(connection, place)
        except BaseException:
            connection.close()
            raise
        return connection


def _check_or_create_tables(connection: PatientConnection, place: str) -> None:
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        if connection.execute("SELECT to_regclass('onelane_meta')").fetchone() == (None,):
            connection.execute(_TABLES)
            connection.execute("INSERT INTO onelane_meta VALUES ('schema', %s)", (str(SCHEMA),))
            return
        (version,) = connection.execute("SELECT value FROM onelane_meta WHERE name = 'schema'").fetchone() or ("none",)
        if version != str(SCHEMA):
            raise StoreRefused(place, seen=f"tables of schema version {version}", expected=f"version {SCHEMA}")


@contextlib.contextmanager
def as_store_errors(place: str) -> Iterator[None]:
    """Turn errors of psycopg into StoreUnavailable and StoreRefused."""
    try:
        yield
    except psycopg.Error as error:
        text = " ".join(str(error).split())
        # Without a SQLSTATE the error is libpq's: there is no connection.
        if error.sqlstate is None or error.sqlstate.startswith(_TRANSIENT):
            raise StoreUnavailable(place, text) from error
        raise StoreRefused(place, seen=f"PostgreSQL says: {text}", expected="onelane's tables") from error
