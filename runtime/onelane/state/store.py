"""The seam of the stores: what is kept of each key, and who may write it.

The unit is the key. A store keeps for it one row per dict, the remembered answers of its calls, and its reminders; all
of them are loaded, written and moved together.

Fencing: a `Stamp` (epoch, life) says who writes. To load a key is to claim it: the loader's stamp becomes the key's in
the same transaction, also of a key of which nothing is stored yet. From then on a write or a load with a lower stamp
changes nothing and raises `Fenced`. Lives are unique in an app and grow, so the next life after a crash has the higher
stamp in the same epoch.

A key that moves to another shard is loaded there, whichever shard has stored it: `load` finds what was written with
the highest stamp, wherever it is. A key whose rows were all deleted stays known by its stamp, so that an older copy of
it in another shard's file does not come back; `forget` removes it, and such copies, when it was untouched for long.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

PAGE = 256
"""Default number of keys that one call lists."""


class Stamp(NamedTuple):
    """Who wrote or claimed a key. The higher one wins."""

    epoch: int
    """Of the placement by which the life owned the key."""
    life: int


NEVER_WRITTEN = Stamp(0, 0)
"""Of a key that has been claimed, and of which nothing was ever stored."""


class Row(NamedTuple):
    """The entry of one dict under one key. A tuple: each turn that changes its key constructs and compares them."""

    dict_name: str
    value: bytes
    spelled: bytes = b""
    """The key as the service spells it (`state/keyed` writes and reads this; a store only keeps it)."""
    codec: str = ""
    version: int = 0
    """Of the value's schema."""


@dataclass(frozen=True, slots=True)
class RememberedAnswer:
    """The answer to a call with an idempotency key."""

    id: str
    digest: bytes
    """Of the request, so that another request with the same id is noticed."""
    answer: bytes
    at: float
    """Unix time."""


@dataclass(frozen=True, slots=True)
class StoredReminder:
    """A call that is to come, as data."""

    id: str
    due: float
    """Unix time."""
    data: bytes


@dataclass(frozen=True, slots=True)
class KeyState:
    """All that is stored of one key."""

    key: str
    """Canonical text."""
    written: Stamp = NEVER_WRITTEN
    """Of the last write; a claim leaves it as it is."""
    rows: tuple[Row, ...] = ()
    answers: tuple[RememberedAnswer, ...] = ()
    """The oldest first."""
    reminders: tuple[StoredReminder, ...] = ()
    """The one that is due first, first."""


@dataclass(frozen=True, slots=True)
class KeyWrite:
    """What one commit changes of one key: first what is dropped, then what is written."""

    key: str
    epoch: int
    """Of the placement by which this life owns the key."""
    rows: tuple[Row, ...] = ()
    answers: tuple[RememberedAnswer, ...] = ()
    reminders: tuple[StoredReminder, ...] = ()
    dropped_rows: tuple[str, ...] = ()
    """Names of dicts."""
    dropped_answers: tuple[str, ...] = ()
    dropped_reminders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DueReminder:
    """A reminder and its key."""

    due: float
    key: str
    reminder: StoredReminder

    @property
    def place(self) -> tuple[float, str, str]:
        """In the order of all reminders: for `after`."""
        return self.due, self.key, self.reminder.id


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """How much is stored."""

    keys: int
    """With those that are only claimed."""
    rows: Mapping[str, int]
    """Name of a dict → its entries."""
    answers: int
    reminders: int
    value_bytes: int
    """Of the values of all rows."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What a store is opened with."""

    app: str
    shard: str
    """Name of the member, `lobby-0`: it stays over the lives of the shard."""
    life: int
    folder: Path = Path()
    """Of the files, for a store that has files."""
    dsn: str = field(default="", repr=False)
    """Address and credentials, for a store that is a server."""
    patience_s: float = 5.0
    """For how long one operation waits for a lock, a connection, or an answer."""


class Store(Protocol):
    """Keeps the state of the keys of one shard. Made by `StoreOptions`; entry point group `onelane.stores`.

    Promises: each operation is one transaction. `commit` returns when the write has reached the disk. A store that was
    unavailable works again as soon as its file or its server does; nobody needs to open it again.
    Does not promise: to be called by two threads at once. All methods block.

    Every method raises:
        StoreUnavailable: locked, full, unreachable: the operation changed nothing, and may succeed later.
        StoreRefused: the file or database is another app's, of a newer release, or damaged.
    """

    @property
    def holds_all(self) -> bool:
        """Whether all methods are of the whole app. If not, `load` and `forget` alone are; the others are of what this
        shard has stored, also of keys that have moved to other shards since."""

    def open(self) -> None:
        """Connect; create what does not exist yet; check that it is this app's, and of a schema that we can read."""

    def load(self, keys: Sequence[str], *, epoch: int, at: float) -> dict[str, KeyState]:
        """Read all that is stored of these keys, by whichever shard of the app, and claim them. A key of which nothing
        is stored has an empty state.

        The last owner of the key must have ended its commits of it, or be dead. epoch: of the placement by which this
        life owns the keys. at: Unix time.

        Raises:
            Fenced: another life has claimed some of these keys with a higher stamp. No key is claimed.
        """

    def read(self, keys: Sequence[str]) -> dict[str, KeyState]:
        """Read all that is stored of these keys, without a claim. An unknown key has no entry."""

    def commit(self, writes: Sequence[KeyWrite], *, at: float) -> None:
        """Write to several keys, durably. No key may occur twice. at: Unix time.

        Raises:
            Fenced: another life has claimed some of these keys with a higher stamp. Nothing is written: commit the
                other keys again without them.
        """

    def newest(self) -> Stamp:
        """The highest stamp of all claims and writes. The epochs and lives of a new start must be above it."""

    def probe(self) -> None:
        """Write something of no key, which leaves nothing behind that grows: raises what a commit would raise now, on a
        disk that is full or a server that can only be read. A store of a plugin may lack it; then it is not asked."""

    def keys(self, *, after: str = "", limit: int = PAGE) -> list[str]:
        """The known keys that follow `after`, in the order of their bytes; those only claimed, too."""

    def idle_keys(self, dict_name: str, *, before: float, after: str = "", limit: int = PAGE) -> list[str]:
        """The keys with an entry in a dict that were last loaded or written before `before` (Unix time), in order."""

    def reminders(
        self, *, before: float, after: tuple[float, str, str] | None = None, limit: int = PAGE
    ) -> list[DueReminder]:
        """The reminders of all keys that are due before `before`, the first due first, from the one after `after`."""

    def forget(self, *, answers_before: float, claims_before: float, limit: int = PAGE) -> int:
        """Remove answers older than `answers_before`, and keys with nothing stored, untouched since `claims_before`.

        limit: of each of both, so that one call is short. Returns how many were removed.
        """

    def counts(self) -> StoreCounts:
        """Reads everything: for people, not for every second."""

    def backup(self, path: Path) -> None:
        """Write a consistent copy to a new file, while others write. Raises StoreRefused where other tools do that."""

    def close(self) -> None:
        """Release the file or connection. A closed store is not used again."""


def scan(store: Store, *, limit: int = PAGE) -> Iterator[KeyState]:
    """All that is stored, key by key in order, a page of keys at a time; writes between two pages may be seen."""
    after = ""
    while keys := store.keys(after=after, limit=limit):
        states = store.read(keys)
        yield from (states[key] for key in keys if key in states)
        after = keys[-1]


def check_distinct(keys: Iterable[str]) -> None:
    """Raises ValueError if a key occurs twice: which of two writes is the later one, a batch does not say."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"the key {key!r} occurs twice in one batch")
        seen.add(key)
