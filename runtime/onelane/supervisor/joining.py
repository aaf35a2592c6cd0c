"""How this machine joins its cluster, and how it leaves; between the two it stays: see `machine`.

    LOOKS ──nobody objects, no namesake──▶ GRANTED ──record put, nobody before it objects──▶ JOINED
      ▲                                       │
      └─────────its lease is revoked──────────┘  the store does not answer, or another machine objects

Promises: where it has not joined, its record goes with its lease, which is revoked, or runs out where the store does
not answer. The first time an objection or a refusal ends it; a machine that had joined before waits, as for an answer.
"""

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

from onelane.cluster.coordination import (
    ConditionFailed,
    CoordinationRefused,
    CoordinationStore,
    CoordinationUnavailable,
    Created,
    LeaseEnded,
)
from onelane.cluster.machines import (
    LONGEST_LEASE_S,
    ClusterKeys,
    ClusterView,
    JoinRefused,
    MachineRecord,
    objections,
    record_of,
)
from onelane.cluster.own_entries import OwnEntries
from onelane.core.lease import LeaseTerms, MachineLease
from onelane.supervisor.own_report import OwnReport

log = logging.getLogger("onelane.supervisor")
NAMESAKE_LEASES = 2
"""How many times its lease, by its record, a machine of the same name is waited for: it may be our own last start."""
LEAVE_S = 2.0
"""The longest that leaving may take; without it the lease runs out."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What a machine that has joined begins to stay with."""

    lease: MachineLease
    entries: OwnEntries
    """Under that lease."""
    view: ClusterView
    """With its own record, and nobody before it who objects."""


class Joining:
    """See the module. Owned by `Machine`."""

    def __init__(
        self,
        store: CoordinationStore,
        keys: ClusterKeys,
        report: OwnReport,
        *,
        now: Callable[[], float],
        sleep_until: Callable[[float], Awaitable[None]],
    ) -> None:
        self._store = store
        self._keys = keys
        self._report = report
        self._now = now
        self._sleep_until = sleep_until
        self._name = report.record.name
        self._terms = LeaseTerms(report.record.lease_s)
        self._has_joined = False

    async def join(self) -> Joined:
        """Join, however long it takes. Why it waits is the trouble of its report.

        Raises:
            JoinRefused: the first time, where another machine stands against it.
            CoordinationRefused: the first time, by the store.
        """
        while True:
            began_at = self._now()
            try:
                joined = await self._join()
            except (CoordinationUnavailable, ConditionFailed, LeaseEnded) as error:
                distance = self._terms.distance_fault(self._store.answers_in_s)
                self._report.trouble = "; ".join(filter(None, (str(error), distance)))
                log.warning("machine.waits name=%s reason=%s", self._name, self._report.trouble)
            except (CoordinationRefused, JoinRefused) as error:
                if not self._has_joined:
                    raise
                log.error("machine.waits name=%s reason=%s", self._name, error)
                self._report.trouble = str(error)
            else:
                self._has_joined, self._report.trouble = True, ""
                return joined
            await self._sleep_until(began_at + self._terms.renew_every_s)

    async def leave(self, lease_id: int) -> None:
        """Revoke its lease, so that the others need not wait for the end of that."""
        with anyio.move_on_after(LEAVE_S):
            try:
                await self._store.revoke(lease_id)
            except (CoordinationUnavailable, CoordinationRefused) as error:
                log.info("machine.left_to_its_lease name=%s reason=%s", self._name, error)

    async def _join(self) -> Joined:
        await self._wait_for_the_namesake()
        sent_at = self._now()
        granted = await self._store.grant(self._terms.lease_s)
        lease = MachineLease.granted(self._terms, granted.lease_id, sent_at, granted.ttl_s)
        try:
            return await self._join_under(lease)
        except BaseException:
            # Also where it is not known whether the record was put.
            with anyio.CancelScope(shield=True):
                await self.leave(lease.lease_id)
            raise

    async def _join_under(self, lease: MachineLease) -> Joined:
        entries = OwnEntries(self._keys, lease.lease_id)
        await self._store.commit([Created(self._keys.machine(self._name), 0)], entries.wanted(self._report.record))
        view = await self._look()
        if (own := view.entry(self._name)) is None or own.lease_id != lease.lease_id:
            # Without it, who came first could not be told.
            raise ConditionFailed(f"somebody has removed the record of {self._name}")
        self._check(view)
        return Joined(lease, entries, view)

    async def _wait_for_the_namesake(self) -> None:
        """A machine of our name: our own last start, whose lease has not run out yet; or another machine.

        Raises:
            JoinRefused: it renews its lease; or others stand against us.
        """
        began_at = self._now()
        while True:
            view = await self._look()
            await self._store.look_around()
            self._report.look_at_clock(self._store.ahead_s)
            self._check(view, but=self._name)
            namesake = view.entry(self._name)
            if namesake is None:
                return
            record = record_of(namesake.value, self._name)
            lease_s = record.lease_s if isinstance(record, MachineRecord) else self._terms.lease_s
            if self._now() >= began_at + NAMESAKE_LEASES * min(lease_s, LONGEST_LEASE_S):
                self._check(view)
            await self._sleep_until(self._now() + min(lease_s / 3, self._terms.renew_every_s))

    async def _look(self) -> ClusterView:
        return ClusterView(self._keys, await self._store.read(self._keys.prefix))

    def _check(self, view: ClusterView, but: str = "") -> None:
        """Raises:
        JoinRefused: a machine that was there before us stands against us. So of two that join at once, one stays.
        """
        own = view.entry(self._name)
        before = view.machines(joined_by=math.inf if own is None else own.created)
        if faults := objections(self._report.record, (machine for machine in before if machine.name != but)):
            raise JoinRefused(f"cannot join the cluster {self._keys.cluster!r}: {'; '.join(faults)}")
