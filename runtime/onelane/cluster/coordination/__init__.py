"""The store on which the machines of a cluster agree: leases, entries under them, transactions, and what has changed.

Imports: nothing. Main type: `CoordinationStore`, the seam; `etcd.EtcdStore` is it by etcd.

Names are etcd's, and so is what they promise: each change of any entry is a revision of the whole store, and
revisions only grow.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from onelane.errors import Invalid, Transient


class CoordinationUnavailable(Transient):
    """The store did not answer. What was asked of it may have been done, or not, or may be done later."""


class CoordinationRefused(Invalid):
    """The store answers, but not to us: a wrong password or certificate, no permission, or it is another store."""


class ConditionFailed(Transient):
    """A transaction found the entries other than it expected; it has changed nothing."""


class LeaseEnded(Transient):
    """The lease ran out, or was revoked: nothing can be put under it any more."""


class HistoryLost(Transient):
    """The changes after a revision cannot be told any more: read a snapshot."""


@dataclass(frozen=True, slots=True)
class Granted:
    """A new lease."""

    lease_id: int
    ttl_s: float
    """What the store has granted, which may be more than was asked for."""


@dataclass(frozen=True, slots=True)
class StoredEntry:
    key: str
    value: bytes
    created: int
    """The revision in which the key came to be."""
    changed: int
    """The revision of this value."""
    lease_id: int = 0
    """The entry is removed in the moment in which this lease ends. 0: it stays."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All entries below a prefix, as of one revision."""

    revision: int
    entries: Mapping[str, StoredEntry]


@dataclass(frozen=True, slots=True)
class EntryChanges:
    """What one or more revisions have changed, in their order."""

    revision: int
    """The last of them."""
    entries: tuple[tuple[str, StoredEntry | None], ...]
    """Key → its entry; None where it was removed."""


@dataclass(frozen=True, slots=True)
class Created:
    """Condition: the entry came to be in this revision. 0: there is no such entry."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Condition: the value of the entry is of this revision."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Remove:
    key: str


Condition = Created | Unchanged
Write = Put | Remove


class CoordinationStore(Protocol):
    """See the module.

    Every method may raise `CoordinationUnavailable` and `CoordinationRefused`, and ends within the bound that the store
    was opened with. A read or a transaction sees every change that was acknowledged to anybody before it was begun.
    Not promised: that a request which has failed is not carried out later. So whatever must not happen twice, or late,
    is a transaction with a condition.
    """

    @property
    def ahead_s(self) -> float | None:
        """How far the wall clock of this machine is ahead of that of most members of the store, as of the last look
        around and to a second or two; None where they have not told it, or do not agree."""

    @property
    def answers_in_s(self) -> float | None:
        """How long the store takes to answer, by the quickest of its last answers, also of those that came too late for
        their callers; None where it has not answered."""

    async def look_around(self) -> None:
        """Ask every member of the store for its time: see `ahead_s`. A connection to each of them is there then, for
        requests that another member does not answer. Raises nothing."""

    async def grant(self, ttl_s: float) -> Granted:
        """A new lease, of at least `ttl_s` from some moment between call and return."""

    async def renew(self, lease_id: int) -> float:
        """The seconds that the lease lasts from some moment between call and return; 0: it has ended."""

    async def remaining(self, lease_id: int) -> float:
        """The seconds that the lease has left, without a renewal; 0: it has ended."""

    async def revoke(self, lease_id: int) -> None:
        """End a lease, and remove all that is under it; nothing where it has ended."""

    async def read(self, prefix: str) -> Snapshot:
        """All entries whose key begins with `prefix`."""

    async def commit(self, conditions: Sequence[Condition], writes: Sequence[Write]) -> int:
        """Carry out all writes, in one revision, if every condition holds; returns the revision.

        Raises:
            ConditionFailed: one does not hold.
            LeaseEnded: a lease that is named has ended.
        """

    def watch(self, prefix: str, after: int) -> AsyncGenerator[EntryChanges]:
        """All changes below `prefix` after a revision, each once and in order; goes on over lost connections.

        Close it (`contextlib.aclosing`), or its connection stays.

        Raises:
            HistoryLost: some of them are not known any more.
        """

    async def close(self) -> None:
        """End all that is under way."""
