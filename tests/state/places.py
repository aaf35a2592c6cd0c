"""Where the stores under test keep their state, and the same state for each of them."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from onelane.state.memory_store import MemoryStore
from onelane.state.postgres_store import PostgresStore
from onelane.state.sqlite_store import SqliteStore
from onelane.state.store import KeyWrite, RememberedAnswer, Row, Store, StoredReminder, StoreOptions

from tests.postgres import PostgresServer

_NUMBERS = itertools.count()
STORES: dict[str, Callable[[StoreOptions], Store]] = {
    "memory": MemoryStore,
    "sqlite": SqliteStore,
    "postgresql": PostgresStore,
}
AT = 1_000_000.0


@dataclass
class StorePlace:
    """A folder or database of one kind of store."""

    kind: str
    folder: Path
    dsn: str = ""
    stores: list[Store] = field(default_factory=list)

    def open(self, *, life: int = 1, shard: str = "lobby-0", app: str = "lobby", patience_s: float = 60.0) -> Store:
        """A store of one life, open."""
        store = STORES[self.kind](StoreOptions(app, shard, life, self.folder, self.dsn, patience_s))
        self.stores.append(store)
        store.open()
        return store

    def close(self) -> None:
        for store in self.stores:
            store.close()


@contextmanager
def at_place(request: pytest.FixtureRequest, folder: Path, kind: str) -> Iterator[StorePlace]:
    """An empty place of one kind."""
    dsn = _new_database(request.getfixturevalue("postgres_server")) if kind == "postgresql" else ""
    place = StorePlace(kind, folder, dsn)
    try:
        yield place
    finally:
        place.close()


def _new_database(server: PostgresServer) -> str:
    """Tables of its own, in a schema of its own: far cheaper than a new database."""
    name = f"test_{next(_NUMBERS)}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{server.dsn}&options=-csearch_path%3D{name}"


def cart(value: bytes) -> Row:
    return Row("carts", value, b"s", "msgspec", 1)


def write(key: str, value: bytes, epoch: int = 1) -> KeyWrite:
    return KeyWrite(key, epoch, rows=(cart(value),))


def full(key: str, epoch: int = 1) -> KeyWrite:
    """A write of everything that a key can have."""
    rows = (Row("carts", b"\x00\xff", b"i", "msgspec", 3), Row("links", b"", b"b\x00", "protobuf", 0))
    answers = (RememberedAnswer("a-1", b"d1", b"first", 10.0), RememberedAnswer("a-2", b"d2", b"\x00", 11.5))
    reminders = (StoredReminder("r-1", 20.0, b"now"), StoredReminder("r-2", 30.25, b"later"))
    return KeyWrite(key, epoch, rows, answers, reminders)
