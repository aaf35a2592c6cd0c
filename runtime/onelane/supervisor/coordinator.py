"""Writes the placements of all apps, as long as this machine coordinates.

`cluster/coordinator` decides; this asks which leases have ended, and writes. It keeps nothing that the next coordinator
would need: each step is one transaction on what was read, so this one may end, be paused, or be another machine at any
step.

Promises: nothing is asked of the store while no app has anything to be written and no machine is missing.
"""

import logging
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
    Remove,
)
from onelane.cluster.coordinator import AppLives, next_entry
from onelane.cluster.machines import ClusterView
from onelane.cluster.placements import AppEntry, CoordinatorTerm, PlacementRefused, entry_of, pins_of
from onelane.core.clock import boottime_s
from onelane.core.lease import gone_at
from onelane.core.placement import POINTS
from onelane.supervisor.machine import Machine

log = logging.getLogger("onelane.supervisor")
LOOK_AGAIN_S = 0.5
"""From one look at a machine that is missing, or a write that has failed, to the next one."""


@dataclass(frozen=True, slots=True)
class FirstPlacement:
    """Of an app that has no entry yet."""

    epoch: int
    """Above all that its store has of it."""
    points: int = POINTS


class Coordinator:
    """See the module. One for each machine."""

    def __init__(
        self,
        store: CoordinationStore,
        machine: Machine,
        first: Callable[[str], FirstPlacement],
        *,
        now: Callable[[], float] = boottime_s,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """first: of an app, by its name."""
        self._store = store
        self._machine = machine
        self._first = first
        self._now = now
        self._sleep = sleep
        self._gone_at: dict[int, float] = {}
        """Lease that has ended → when its lives count as dead."""
        self.refusals: dict[str, str] = {}
        """App → why nothing is written of it, as it was logged."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            changed = self._machine.changed
            is_settled = await self.look()
            await self._wait(changed, is_settled=is_settled)

    async def _wait(self, changed: anyio.Event, *, is_settled: bool) -> None:
        if is_settled:
            await changed.wait()
            return
        async with anyio.create_task_group() as tasks:

            async def look_again() -> None:
                await self._sleep(LOOK_AGAIN_S)
                tasks.cancel_scope.cancel()

            tasks.start_soon(look_again)
            await changed.wait()
            tasks.cancel_scope.cancel()

    async def look(self) -> bool:
        """Make the next step of each app; False where another look is due without a change."""
        view, lease = self._machine.view, self._machine.lease
        term = None if view is None or lease is None or lease.is_lost else CoordinatorTerm.of(view, lease.lease_id)
        if term is None:
            return True
        try:
            settled = [await self._look_at(app, term) for app in _apps(term.view)]
            settled.append(await self._remove_marks(term))
        except PlacementRefused:
            # Logged by its app. A mark is removed when all entries can be read.
            return True
        except (CoordinationUnavailable, CoordinationRefused) as error:
            log.warning("coordinator.waits machine=%s reason=%s", self._machine.name, error)
            return False
        return all(settled)

    async def _look_at(self, app: str, term: CoordinatorTerm) -> bool:
        try:
            entry = _stored(app, term.view)
            leases = {lease for _, lease in entry.leases} if entry is not None else set()
            missing = leases - term.view.by_lease().keys()
            ended = {lease for lease in missing if await self._has_ended(lease, term.view)}
            # Only what has no entry needs to be known here.
            first = FirstPlacement(entry.placement.epoch, entry.placement.points) if entry else self._first(app)
            following = next_entry(
                entry,
                AppLives(app, term.view.by_lease(), ended),
                pins=pins_of(term.view, app),
                points=first.points,
                first_epoch=first.epoch,
            )
            self.refusals.pop(app, None)
        except PlacementRefused as error:
            if self.refusals.get(app) != str(error):
                self.refusals[app] = str(error)
                log.error("coordinator.refuses app=%s reason=%s", app, error)
            return True
        return await self._write(app, following, term) and ended == missing

    async def _write(self, app: str, entry: AppEntry | None, term: CoordinatorTerm) -> bool:
        if entry is None:
            return True
        try:
            await self._store.commit(*term.put(app, entry))
        except (ConditionFailed, LeaseEnded) as error:
            # Another coordinator, or an entry that this view has not shown yet.
            log.info("coordinator.overtaken app=%s reason=%s", app, error)
            return False
        epoch = (entry.following or entry.placement).epoch
        log.info("coordinator.wrote app=%s epoch=%d changing=%s", app, epoch, entry.following is not None)
        return True

    async def _has_ended(self, lease_id: int, view: ClusterView) -> bool:
        if lease_id not in self._gone_at:
            if await self._store.remaining(lease_id) > 0:
                return False
            # The mark is put before the lease is revoked, and the watch may show it later than this answer.
            marks = ClusterView(view.keys, await self._store.read(view.keys.forgotten(lease_id)))
            lease_s = marks.forgotten_lease_s(lease_id)
            self._gone_at[lease_id] = gone_at(self._now(), lease_s=lease_s or 0.0, was_forgotten=lease_s is not None)
        return self._now() >= self._gone_at[lease_id]

    async def _remove_marks(self, term: CoordinatorTerm) -> bool:
        """Of machines that were forgotten, and of which no entry names a life any more. False where a mark is to be
        looked at again without a change."""
        view, folder = term.view, term.view.keys.forgotten_leases
        marks = {key for key in view.snapshot.entries if key.startswith(folder)}
        if not marks:
            return True
        waiting = {lease for lease, at in self._gone_at.items() if self._now() < at}
        leases = view.by_lease().keys() | waiting
        for app in _apps(view):
            entry = _stored(app, view)
            leases |= {lease for _, lease in entry.leases} if entry is not None else set()
        for key in marks - {view.keys.forgotten(lease) for lease in leases}:
            try:
                await self._store.commit([Created(term.candidate.key, term.candidate.created)], [Remove(key)])
            except ConditionFailed:
                return False
        return marks.isdisjoint(map(view.keys.forgotten, waiting))


def _apps(view: ClusterView) -> list[str]:
    folder = view.keys.app("")
    stored = {key.removeprefix(folder) for key in view.snapshot.entries if key.startswith(folder)}
    return sorted(stored.union(*(record.apps for record in view.by_lease().values())))


def _stored(app: str, view: ClusterView) -> AppEntry | None:
    stored = view.snapshot.entries.get(view.keys.app(app))
    return None if stored is None else entry_of(stored.value, app)
