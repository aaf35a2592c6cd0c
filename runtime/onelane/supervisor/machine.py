"""This machine in its cluster: its lease, its record under that, its fences, and the view of all machines. How it joins
and leaves is in `joining`; here it stays.

    JOINING ──record put──▶ HELD ──lease lost──▶ its lives end ──▶ JOINING, with another lease
                             └──cancelled──▶ its lives end, then the lease is revoked: the others need not wait for it

`core/lease` decides; this carries it out. What the store refuses, or does not answer, ends nothing: the lives go on
until their fences close, and go on again when it answers in time. A renewal that is late is waited for while the next
one is sent, and the record is written beside both: a store that is far away answers all of them.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Protocol

import anyio

from onelane.cluster.coordination import (
    Condition,
    ConditionFailed,
    CoordinationRefused,
    CoordinationStore,
    CoordinationUnavailable,
    Created,
    HistoryLost,
    LeaseEnded,
    Unchanged,
)
from onelane.cluster.machines import AppPart, ClusterKeys, ClusterView, MachineRecord
from onelane.cluster.own_entries import OwnEntries
from onelane.core.clock import boottime_s
from onelane.core.lease import FencedTime, LeaseTerms, MachineLease
from onelane.core.placement import Member
from onelane.supervisor.joining import Joining
from onelane.supervisor.own_report import OwnReport

log = logging.getLogger("onelane.supervisor")
LEASES_BETWEEN_LOOKS = 4
"""Between two looks at all members of the store: a connection of which nothing is heard may end on its way."""


class MachineLives(Protocol):
    """The lives of this machine, whose end and fences its lease decides."""

    async def start(self, lease_id: int, until: float) -> None:
        """Start lives, which may serve until then; cancelled where the lease is lost meanwhile."""

    def extend(self, lease_id: int, until: float) -> None:
        """Move the fences of the lives that were started under this lease."""

    async def end(self, lease_id: int) -> None:
        """End the lives of this lease, also those that are being started."""


async def _sleep_until(at: float) -> None:
    await anyio.sleep(max(0.0, at - boottime_s()))


class Machine:
    """See the module."""

    def __init__(
        self,
        store: CoordinationStore,
        keys: ClusterKeys,
        record: MachineRecord,
        lives: MachineLives,
        *,
        now: Callable[[], float] = boottime_s,
        sleep_until: Callable[[float], Awaitable[None]] = _sleep_until,
    ) -> None:
        self._store = store
        self._keys = keys
        self._report = OwnReport(record)
        self._joining = Joining(store, keys, self._report, now=now, sleep_until=sleep_until)
        self._lives = lives
        self._now = now
        self._sleep_until = sleep_until
        self._terms = LeaseTerms(record.lease_s)
        self._woken = anyio.Event()
        """Set where something may be due earlier than it was."""
        self._put_at = math.inf
        """When the record is to be put."""
        self._is_writing = False
        self._entries = OwnEntries(keys, lease_id=0)
        """Under the present lease."""
        self._lease: MachineLease | None = None
        self._fenced = FencedTime(0.0, now())
        self._view: ClusterView | None = None
        self.changed = anyio.Event()
        """Set when there is another view; another event follows it."""
        self.renewals_failed = 0

    @property
    def lease(self) -> MachineLease | None:
        """None while it joins."""
        return self._lease

    @lease.setter
    def lease(self, lease: MachineLease | None) -> None:
        self._lease = lease
        serve_until = -math.inf if lease is None or lease.is_lost else lease.serve_until
        self._fenced = self._fenced.moved(self._now(), serve_until)

    @property
    def fenced_s(self) -> float:
        """Time so far in which it served no key for want of a lease."""
        return self._fenced.total_s(self._now())

    @property
    def view(self) -> ClusterView | None:
        """All machines, as of the last word from the store."""
        return self._view

    @view.setter
    def view(self, view: ClusterView) -> None:
        self._view = view
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    @property
    def record(self) -> MachineRecord:
        """What this machine says of itself."""
        return self._report.record

    @property
    def trouble(self) -> str:
        """Why this machine has no lease, or why the last renewal has failed."""
        return self._report.trouble

    @property
    def name(self) -> str:
        return self._report.record.name

    @property
    def cluster(self) -> str:
        return self._keys.cluster

    async def run(self) -> None:
        """Join and stay, until cancelled; join again after each loss.

        Raises:
            JoinRefused: the first time, where another machine stands against it.
            CoordinationRefused: the first time, by the store.
        """
        while True:
            joined = await self._joining.join()
            self.lease, self._entries, self.view = joined.lease, joined.entries, joined.view
            lease_id = joined.lease.lease_id
            log.info("machine.joined name=%s lease=%d", self.name, lease_id)
            if fault := self._terms.distance_fault(self._store.answers_in_s):
                log.warning("machine.far_from_etcd name=%s %s", self.name, fault)
            try:
                await self._hold()
            finally:
                with anyio.CancelScope(shield=True):
                    await self._lives.end(lease_id)
                    if not self.lease.is_lost:
                        await self._joining.leave(lease_id)
            self.lease = None
            log.warning("machine.lost name=%s lease=%d", self.name, lease_id)

    def announce(
        self,
        apps: Mapping[str, tuple[Member, ...]],
        parts: Mapping[str, AppPart] | None = None,
        *,
        within_s: float = 0.0,
    ) -> None:
        """Have the record name these lives, by their app, and their parts in placements. within_s: until then, what is
        announced meanwhile is written with it."""
        if self._report.announce(apps, parts):
            self._put_within(within_s)

    def _put_within(self, seconds: float) -> None:
        self._put_at = min(self._put_at, self._now() + seconds)
        self._woken.set()

    async def _hold(self) -> None:
        """Until the lease is lost."""
        assert self.lease is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._lives.start, self.lease.lease_id, self.lease.serve_until)
            tasks.start_soon(self._follow)
            tasks.start_soon(self._look_around)
            self._is_writing = False
            while not self.lease.is_lost:
                if self._now() >= self.lease.renew_at:
                    self.lease = self.lease.renewal_sent(self._now())
                    tasks.start_soon(self._renew, self._now())
                elif self._now() >= self._put_at and not self._is_writing:
                    self._put_at, self._is_writing = math.inf, True
                    tasks.start_soon(self._write)
                else:
                    await self._woken_before(min(self.lease.renew_at, math.inf if self._is_writing else self._put_at))
            tasks.cancel_scope.cancel()

    async def _woken_before(self, at: float) -> None:
        async with anyio.create_task_group() as tasks:

            async def sleep() -> None:
                await self._sleep_until(at)
                tasks.cancel_scope.cancel()

            tasks.start_soon(sleep)
            await self._woken.wait()
            tasks.cancel_scope.cancel()
        self._woken = anyio.Event()

    async def _write(self) -> None:
        """The record."""
        try:
            await self._put()
        except (CoordinationUnavailable, CoordinationRefused) as error:
            log.warning("machine.not_written name=%s left_s=%.1f reason=%s", *self._left(), error)
            # The others may wait for what it says, such as of a life that has ended.
            self._put_within(self._terms.retry_s)
        self._is_writing = False
        self._look_at_our_entries()
        self._woken.set()

    async def _renew(self, sent_at: float) -> None:
        assert self.lease is not None
        lease_id = self.lease.lease_id
        try:
            ttl_s = await self._store.renew(lease_id)
        except (CoordinationUnavailable, CoordinationRefused) as error:
            log.warning("machine.not_renewed name=%s left_s=%.1f reason=%s", *self._left(), error)
            self._report.trouble = str(error)
            self.renewals_failed += 1
            return
        # By the lease as it is now: another renewal may have been answered meanwhile.
        before, self.lease = self.lease, self.lease.renewed(sent_at, ttl_s)
        self._report.trouble = ""
        if self.lease.serve_until > before.serve_until:
            self._lives.extend(lease_id, self.lease.serve_until)
        self._report.look_at_clock(self._store.ahead_s)
        self._look_at_our_entries()
        self._woken.set()

    async def _look_around(self) -> None:
        """Keep a connection to each member of the store."""
        while True:
            await self._sleep_until(self._now() + LEASES_BETWEEN_LOOKS * self._terms.lease_s)
            await self._store.look_around()

    def _left(self) -> tuple[str, float]:
        assert self.lease is not None
        return self.name, self.lease.serve_until - self._now()

    def _has_its_entries(self) -> bool:
        assert self.view is not None
        return self._entries.agree_with(self._report.record, self.view)

    async def _put(self) -> None:
        """Our entries do not say what they are to say: our lives are others now, or somebody has changed them."""
        assert self.view is not None
        update = self._entries.update(self._report.record, self.view)
        if update is None:
            await self._put_again()
            return
        condition, put = update
        try:
            revision = await self._store.commit([condition], [put])
        except (ConditionFailed, LeaseEnded):
            await self._put_again()
            return
        self._entries = self._entries.updated(put, revision)

    async def _put_again(self) -> None:
        """Somebody has removed our entries or written them, and not our lease, so nobody was given up. The lease counts
        as lost where our name is taken."""
        snapshot = await self._store.read(self._keys.prefix)
        assert self.view is not None
        assert self.lease is not None
        if snapshot.revision > self.view.snapshot.revision:
            # Else what the watch has shown since would be gone for good: it shows nothing twice.
            self.view = ClusterView(self._keys, snapshot)
        view = self.view
        entry = view.entry(self.name)
        if self._has_its_entries():
            return
        if entry is not None and entry.lease_id != self.lease.lease_id:
            self.lease = self.lease.lost()
            return
        key = self._keys.machine(self.name)
        expected: Condition = Unchanged(key, entry.changed) if entry else Created(key, 0)
        try:
            await self._store.commit([expected], self._entries.wanted(self._report.record))
        except LeaseEnded:
            self.lease = self.lease.lost()
        except ConditionFailed:
            log.info("machine.changed_meanwhile name=%s", self.name)

    async def _follow(self) -> None:
        """Keep the view; renew at once where our own entries are not there."""
        while True:
            assert self.view is not None
            try:
                async with aclosing(self._store.watch(self._keys.prefix, self.view.snapshot.revision)) as news:
                    async for changes in news:
                        if changes.revision > self.view.snapshot.revision:
                            self.view = self.view.after(changes)
                        self._look_at_our_entries()
            except HistoryLost:
                await self._read_again()
            except CoordinationRefused as error:
                log.warning("machine.not_followed name=%s reason=%s", self.name, error)
                await self._sleep_until(self._now() + self._terms.renew_every_s)

    def _look_at_our_entries(self) -> None:
        assert self.lease is not None
        if self._put_at == math.inf and not self._is_writing and not self._has_its_entries():
            self._put_within(0.0)

    async def _read_again(self) -> None:
        try:
            snapshot = await self._store.read(self._keys.prefix)
        except (CoordinationUnavailable, CoordinationRefused):
            snapshot = None
        assert self.view is not None
        if snapshot is None or snapshot.revision <= self.view.snapshot.revision:
            # What others are told never goes back. A store that came back without its data has no lease of ours.
            await self._sleep_until(self._now() + self._terms.retry_s)
            return
        self.view = ClusterView(self._keys, snapshot)
        self._look_at_our_entries()
