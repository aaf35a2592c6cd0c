"""Before a cold start: each key into the file of its owner by the placement, and one copy of it.

A key is in the wrong file after a start with another number of shards, other pins or other addresses, or because its
owner died before it could hand it over. It is in two files where a process died in the middle of a move. The copy that
was written with the higher stamp counts, also one without any row: its key was deleted since.

Crash-safe: a page of keys is on disk in its owner's file before it is dropped here; a second run goes on. No shard of
the app may run meanwhile.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from onelane.core.placement import Placement
from onelane.errors import StoreRefused
from onelane.state.sqlite_siblings import SiblingFiles
from onelane.state.sqlite_store import SqliteStore, path_of, shards_in
from onelane.state.store import PAGE, Stamp, StoreOptions

PATIENCE_S = 5.0
Progress = Callable[[int, int], None]
"""Called with the number of keys that were looked at, and of all."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What `settle` did."""

    keys: int
    """Looked at."""
    moved: int
    """Put into another file, or dropped as older copies."""
    newest: Stamp
    """The highest stamp in all files: the next placement's epoch must be higher, or its lives would be fenced."""


def moves_from(shard: str, keys: Iterable[str], placement: Placement) -> dict[str, list[str]]:
    """The keys in the file of `shard` that are not its own, by their owner."""
    moves: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        if (owner := placement.owner_of(key).name) != shard:
            moves[owner].append(key)
    return dict(moves)


def settle(
    folder: Path,
    app: str,
    placement: Placement,
    *,
    at: float,
    progress: Progress | None = None,
    accepts_missing: bool = False,
    limit: int = PAGE,
) -> Settled:
    """Move all keys in the files of an app to those of their owners; remove the files of shards that are no more.

    at: Unix time. accepts_missing: go on without files that the last start had. limit: keys in a page.

    Raises:
        StoreRefused: a file of the last start is missing, or a file is not this app's. Nothing was moved.
        StoreUnavailable: the disk is full, or another process has a file. Call it again.
    """
    members = {member.name for member in placement.members}
    check_complete(folder, app, accepts_missing=accepts_missing)
    with ExitStack() as stack:
        stores: dict[str, SqliteStore] = {}
        for shard in sorted(shards_in(folder, app) | members):
            stores[shard] = stack.enter_context(closing(SqliteStore(StoreOptions(app, shard, 0, folder))))
            stores[shard].open()
        keys, moved = _move_all(stores, placement, at, progress or _ignore, limit)
        newest = max(store.newest() for store in stores.values())
        _write_members(stores, members)
    return Settled(keys, moved, newest)


def check_complete(folder: Path, app: str, *, accepts_missing: bool = False) -> None:
    """Check that no file is missing that the shards of an app have had: its keys would seem to have no state.

    accepts_missing: have the others forget it.

    Raises:
        StoreRefused: one is missing, or not this app's.
    """
    with closing(SiblingFiles(path_of(folder, app, ""), app, patience_s=PATIENCE_S)) as files:
        lost = files.lost()
        if lost and not accepts_missing:
            names = ", ".join(sorted(lost))
            raise StoreRefused(str(folder / app), seen=f"no state of {names}", expected="all files of the last start")
        files.accept(lost)


def _write_members(stores: Mapping[str, SqliteStore], members: set[str]) -> None:
    """Let every file know all others. Cut off at any step, no file may name one that is empty or removed."""
    for shard, store in stores.items():
        store.set_members({shard})
    for member in members:
        stores[member].set_members(members)
    for shard in stores.keys() - members:
        stores[shard].remove()


def _move_all(
    stores: Mapping[str, SqliteStore], placement: Placement, at: float, progress: Progress, limit: int
) -> tuple[int, int]:
    """The numbers of keys that were looked at, and moved."""
    total = sum(store.counts().keys for store in stores.values())
    looked_at = moved = 0
    for shard, store in stores.items():
        after = ""
        while keys := store.keys(after=after, limit=limit):
            after, looked_at = keys[-1], looked_at + len(keys)
            for owner, leaving in moves_from(shard, keys, placement).items():
                moved += _move(store, stores[owner], leaving, at)
            # Keys that came into a file not looked at yet are seen twice.
            progress(min(looked_at, total), total)
    return total, moved


def _ignore(looked_at: int, total: int) -> None:
    pass


def _move(source: SqliteStore, target: SqliteStore, keys: list[str], at: float) -> int:
    states = list(source.read(keys).values())
    target.adopt(states, source.claims(keys), at=at)
    source.drop(states)
    return len(states)
