"""A store of coordination in memory, on a clock of the test's own: the fake that keeps the contract of etcd's."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from onelane.cluster.coordination import (
    Condition,
    ConditionFailed,
    CoordinationUnavailable,
    Created,
    EntryChanges,
    Granted,
    HistoryLost,
    LeaseEnded,
    Put,
    Remove,
    Snapshot,
    StoredEntry,
    Write,
)


class MemoryCoordination:
    """See `onelane.cluster.coordination.CoordinationStore`. Several clients may share one."""

    def __init__(self) -> None:
        self.now = 0.0
        self.is_down = False
        self.requests = 0
        self.ahead_s: float | None = None
        self.answers_in_s: float | None = None
        self.looks = 0
        self.revision = 1
        self._entries: dict[str, StoredEntry] = {}
        self._history: list[EntryChanges] = []
        self._oldest = 0
        """EntryChanges up to this revision are compacted."""
        self._leases: dict[int, tuple[float, float]] = {}
        """Its seconds, and when it runs out."""
        self._last_lease = 0
        self._changed = asyncio.Event()

    # What a test does to it.

    def advance(self, seconds: float) -> None:
        """Let time pass, and leases run out."""
        self.now += seconds
        for lease_id in [lease_id for lease_id, (_, end) in self._leases.items() if end <= self.now]:
            self._end(lease_id)

    def compact(self) -> None:
        self._oldest = self.revision

    # The seam.

    async def look_around(self) -> None:
        self.looks += 1

    async def grant(self, ttl_s: float) -> Granted:
        self._check_up()
        self._last_lease += 1
        self._leases[self._last_lease] = (ttl_s, self.now + ttl_s)
        return Granted(self._last_lease, ttl_s)

    async def renew(self, lease_id: int) -> float:
        self._check_up()
        if lease_id not in self._leases:
            return 0.0
        ttl_s, _ = self._leases[lease_id]
        self._leases[lease_id] = (ttl_s, self.now + ttl_s)
        return ttl_s

    async def remaining(self, lease_id: int) -> float:
        self._check_up()
        return self._leases[lease_id][1] - self.now if lease_id in self._leases else 0.0

    async def revoke(self, lease_id: int) -> None:
        self._check_up()
        self._end(lease_id)

    async def read(self, prefix: str) -> Snapshot:
        self._check_up()
        return Snapshot(self.revision, {key: e for key, e in self._entries.items() if key.startswith(prefix)})

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        self._check_up()
        if not all(map(self._holds, conditions)):
            raise ConditionFailed(f"not as expected: {', '.join(map(str, conditions))}")
        for write in writes:
            if isinstance(write, Put) and write.lease_id and write.lease_id not in self._leases:
                raise LeaseEnded(f"lease {write.lease_id}")
        self._write(writes)
        return self.revision

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[EntryChanges]:
        while True:
            changed = self._changed
            if after < self._oldest:
                raise HistoryLost(f"revision {after + 1} was compacted")
            for changes in [changes for changes in self._history if changes.revision > after and not self.is_down]:
                after = changes.revision
                below = tuple((key, entry) for key, entry in changes.entries if key.startswith(prefix))
                if below:
                    yield EntryChanges(after, below)
            if changed is self._changed:
                await changed.wait()

    async def close(self) -> None:
        pass

    def _check_up(self) -> None:
        self.requests += 1
        if self.is_down:
            raise CoordinationUnavailable("it is down")

    def _holds(self, condition: Condition) -> bool:
        entry = self._entries.get(condition.key)
        if entry is None:
            return condition.revision == 0
        return condition.revision == (entry.created if isinstance(condition, Created) else entry.changed)

    def _write(self, writes: Sequence[Write]) -> None:
        """As etcd: what removes nothing is no revision."""
        writes = [write for write in writes if isinstance(write, Put) or write.key in self._entries]
        if not writes:
            return
        self.revision += 1
        changes = EntryChanges(self.revision, tuple(self._write_one(write) for write in writes))
        self._history.append(changes)
        self._changed.set()
        self._changed = asyncio.Event()

    def _write_one(self, write: Write) -> tuple[str, StoredEntry | None]:
        if isinstance(write, Remove):
            del self._entries[write.key]
            return write.key, None
        old = self._entries.get(write.key)
        created = old.created if old else self.revision
        self._entries[write.key] = StoredEntry(write.key, write.value, created, self.revision, write.lease_id)
        return write.key, self._entries[write.key]

    def _end(self, lease_id: int) -> None:
        if self._leases.pop(lease_id, None) is not None:
            self._write([Remove(key) for key, entry in self._entries.items() if entry.lease_id == lease_id])
