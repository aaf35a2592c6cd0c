"""What this machine tells people of its cluster.

`cluster/overview` has what the store tells. This adds what one machine alone knows: its own fence, since when it has
seen the others in their state, and machines that were given up, of which the store has nothing any more.

Promises: it asks the store for nothing, so a look costs no request; what it remembers is bounded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onelane.cluster.machines import ClusterView
from onelane.cluster.overview import (
    AppOverview,
    ClusterOverview,
    MachineOverview,
    MachineState,
    overview_of,
    overview_row,
)
from onelane.core.clock import boottime_s
from onelane.core.lease import LeaseTerms
from onelane.supervisor.cluster_metrics import ClusterMetrics
from onelane.supervisor.machine import Machine
from onelane.telemetry.stats import Point

GONE_LISTED_S = 3600.0
"""How long a machine that was given up is listed."""
MAX_GONE = 32
"""The newest of these are listed."""


@dataclass(frozen=True, slots=True)
class OwnLease:
    """What this machine knows of its own lease."""

    left_s: float
    """Until its fence closes; 0 where it serves no key."""
    renewed_s_ago: float | None
    """Since the last renewal that etcd has answered was sent; None without a lease."""
    fault: str
    """Why it has no lease, or why the last renewal has failed."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A machine as a view has it, and since when it has been in its state."""

    machine: MachineOverview
    since: float

    @property
    def has_keys(self) -> bool:
        return any(row.is_placed for rows in self.machine.lives.values() for row in rows)

    def followed_by(self, machine: MachineOverview, now: float) -> "_Seen":
        """The same machine in the next view."""
        if machine.state is not MachineState.JOINED:
            # Its record, which had these, may be gone.
            old = self.machine
            machine = replace(machine, advertise=old.advertise, admin=old.admin, release=old.release)
        return _Seen(machine, self.since if machine.state is self.machine.state else now)


_Shape = Sequence[tuple[str, int]]


def _shape_of(view: ClusterView) -> _Shape:
    """The same for two views in which the same machines are there under the same leases, and the entries of apps, with
    the changes under way, are the same."""
    machines, apps, marks = view.keys.machines, view.keys.app(""), view.keys.forgotten_leases
    return [
        (key, entry.lease_id if key.startswith(machines) else entry.changed)
        for key, entry in view.snapshot.entries.items()
        if key.startswith((machines, apps, marks))
    ]


class ClusterWatch:
    """See the module. Owned by the supervisor."""

    def __init__(
        self,
        machine: Machine,
        *,
        refusals: Callable[[], Mapping[str, str]] = dict,
        requests: Callable[[], Mapping[str, int]] = dict,
        now: Callable[[], float] = boottime_s,
    ) -> None:
        """refusals: of this machine's coordinator, by app. requests: sent to the store so far, by their operation."""
        self._machine = machine
        self._refusals = refusals
        self._now = now
        self._metrics = ClusterMetrics(requests)
        self._view: ClusterView | None = None
        """The last one that was looked at for people."""
        self._shape: _Shape = ()
        """Of the last one that was looked at."""
        self._overview = ClusterOverview(machine.cluster, 0, "", (), ())
        """By that view."""
        self._seen: dict[tuple[str, int], _Seen] = {}
        """By name and lease, of that view."""
        self._gone: dict[str, _Seen] = {}
        self._changes: dict[str, tuple[int, float]] = {}
        """App → the epoch to which it changes, and since when."""

    async def run(self) -> None:
        """Look at every view of the machine, until cancelled."""
        while True:
            changed, view = self._machine.changed, self._machine.view
            # Reports of lives are most of what changes, and begin and end nothing.
            if view is not None and _shape_of(view) != self._shape:
                self._look()
            await changed.wait()

    def take(self) -> list[Point]:
        """What is to be exported, since the last time."""
        return self._metrics.take(self.overview(), self._machine, self._now())

    def status(self) -> dict[str, Any]:
        """For `/status` and the page: see TELEMETRY.md."""
        own = self.own_lease()
        lease = {"left_s": own.left_s, "renewed_s_ago": own.renewed_s_ago, "fault": own.fault}
        return {"machine": self._machine.name, "lease": lease} | overview_row(self.overview())

    def own_lease(self) -> OwnLease:
        lease, now = self._machine.lease, self._now()
        if lease is None or lease.is_lost:
            return OwnLease(0.0, None, self._machine.trouble)
        terms: LeaseTerms = lease.terms
        renewed_at = lease.serve_until - terms.serve_until(0.0, terms.lease_s)
        return OwnLease(max(0.0, lease.serve_until - now), now - renewed_at, self._machine.trouble)

    def overview(self) -> ClusterOverview:
        """As of now."""
        self._look()
        own, now = self._own(), self._now()
        rows = {(seen.machine.name, seen.machine.lease): seen for seen in self._seen.values()}
        machines = [replace(seen.machine, since_s=now - seen.since) for seen in rows.values()]
        machines = [row for row in machines if (row.name, row.lease) != (own.name, own.lease)]
        machines += [own, *self._listed(now)]
        return replace(
            self._overview,
            machines=tuple(sorted(machines, key=lambda row: (row.name, row.lease))),
            apps=tuple(map(self._completed, self._overview.apps)),
        )

    def _own(self) -> MachineOverview:
        record, lease, now = self._machine.record, self._machine.lease, self._now()
        own = MachineOverview(
            name=record.name,
            state=MachineState.JOINING,
            advertise=record.advertise,
            admin=record.admin,
            release=record.release,
            lease_s=record.lease_s,
            lease_left_s=0.0,
            fault=self._machine.trouble,
        )
        if lease is None:
            return own
        seen = self._seen.get((record.name, lease.lease_id))
        row = replace(own, state=MachineState.JOINED, lease=lease.lease_id) if seen is None else seen.machine
        if lease.is_lost:
            # Its lives end, and then it joins again.
            return replace(row, state=MachineState.JOINING, lease_left_s=0.0, since_s=None, fault=own.fault)
        if lease.serve_until <= now:
            cut_off_s = now - lease.serve_until
            row = replace(row, state=MachineState.CUT_OFF, since_s=cut_off_s, fault=own.fault)
        elif seen is not None:
            row = replace(row, since_s=now - seen.since)
        return replace(row, lease_left_s=max(0.0, lease.serve_until - now))

    def _completed(self, app: AppOverview) -> AppOverview:
        """With what this machine alone knows of it."""
        fault = app.fault or self._refusals().get(app.name, "")
        if app.change is None or app.name not in self._changes:
            return replace(app, fault=fault)
        change = replace(app.change, since_s=self._now() - self._changes[app.name][1])
        return replace(app, fault=fault, change=change)

    # Views

    def _look(self) -> None:
        view = self._machine.view
        if view is None or view is self._view:
            return
        self._view, self._shape, self._overview = view, _shape_of(view), overview_of(view)
        self._follow_machines(self._overview, self._now())
        self._follow_changes(self._overview, self._now())

    def _follow_machines(self, overview: ClusterOverview, now: float) -> None:
        before = self._seen
        rows = {(row.name, row.lease): row for row in overview.machines}
        self._seen = {
            identity: before[identity].followed_by(row, now) if identity in before else _Seen(row, now)
            for identity, row in rows.items()
        }
        for name, lease in before.keys() - rows.keys():
            last = before[name, lease]
            if last.has_keys:
                row = replace(last.machine, state=MachineState.GONE, coordinates=False, lives={})
                self._gone.pop(name, None)
                self._gone[name] = _Seen(row, now)
        for row in overview.machines:
            # It is back, or it is not over yet.
            self._gone.pop(row.name, None)
        for name in list(self._gone)[: max(0, len(self._gone) - MAX_GONE)]:
            del self._gone[name]

    def _follow_changes(self, overview: ClusterOverview, now: float) -> None:
        changes: dict[str, tuple[int, float]] = {}
        for app in overview.apps:
            epoch, since = self._changes.get(app.name, (0, now))
            if app.change is not None:
                changes[app.name] = (app.change.after, since if app.change.after == epoch else now)
        over = {name: now - since for name, (_, since) in self._changes.items() if changes.get(name) != (_, since)}
        self._changes = changes
        if overview.coordinator == self._machine.name:
            self._metrics.changes_over(over)

    def _listed(self, now: float) -> list[MachineOverview]:
        return [
            replace(seen.machine, since_s=now - seen.since)
            for seen in self._gone.values()
            if now - seen.since < GONE_LISTED_S
        ]
