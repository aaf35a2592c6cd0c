"""An operator has a machine forgotten: its lease is revoked, so its keys are served elsewhere.

Promises: the lease is marked before it is revoked, so whoever coordinates waits until the fences of its lives have
closed by their own clocks (decision 0031); a machine that has joined anew meanwhile is left alone.
"""

from dataclasses import dataclass

from onelane.cluster.coordination import Condition, ConditionFailed, CoordinationStore, Created, Put
from onelane.cluster.machines import LONGEST_LEASE_S, ClusterKeys, ClusterView
from onelane.cluster.overview import MachineOverview, overview_of
from onelane.errors import Invalid, NotThere, Transient

ALIVE = 0.5
"""A machine renews its lease every third of it; with more than this share left, no renewal is overdue."""


class StillAlive(Invalid):
    """The machine renews its lease."""


class JoinedAnew(Transient):
    """The machine has joined with another lease since it was looked at."""


@dataclass(frozen=True, slots=True)
class ForgottenMachine:
    """A machine whose lease has been revoked."""

    name: str
    lease_id: int
    waits_s: float
    """How long its keys wait at most, until no life of it can serve them any more."""
    was_alive: bool


async def forget(store: CoordinationStore, keys: ClusterKeys, name: str, *, is_forced: bool) -> ForgottenMachine:
    """is_forced: also a machine that renews its lease.

    Raises:
        NotThere: the cluster has no lease of a machine of this name.
        StillAlive: it renews its lease.
        JoinedAnew: nothing was changed.
        CoordinationUnavailable: its lease may be marked, and still stand.
        CoordinationRefused: by the store.
    """
    view = ClusterView(keys, await store.read(keys.prefix))
    machine = _machine_in(view, name)
    left_s = await store.remaining(machine.lease)
    if left_s <= 0:
        raise NotThere(f"the lease of machine {name!r} has ended already: whoever coordinates gives its keys to others")
    is_alive = machine.lease_s is None or left_s > machine.lease_s * ALIVE
    if is_alive and not is_forced:
        ago = "" if machine.lease_s is None else f" {max(0.0, machine.lease_s - left_s):.0f} s ago"
        raise StillAlive(
            f"machine {name!r} is alive, it has renewed its lease{ago}: stop `onelane up` there, which hands its keys "
            "over first; where it cannot be reached, --force gives its keys to others, without what it has in memory"
        )
    lease_s = LONGEST_LEASE_S if machine.lease_s is None else machine.lease_s
    await _mark(store, view, machine, lease_s)
    await store.revoke(machine.lease)
    return ForgottenMachine(name, machine.lease, lease_s, is_alive)


def _machine_in(view: ClusterView, name: str) -> MachineOverview:
    """The row of a machine that has a lease; of two, the one whose record stands."""
    machines = overview_of(view).machines
    rows = [row for row in machines if row.name == name]
    entry = view.entry(name)
    if entry is not None and not entry.lease_id:
        raise NotThere(f"the record of {name!r} is under no lease, so no machine's: remove {entry.key} in etcd")
    if not rows:
        known = ", ".join(sorted({row.name for row in machines if row.name})) or "none"
        raise NotThere(f"no machine {name!r} in cluster {view.keys.cluster!r}; expected one of: {known}")
    return next((row for row in rows if entry is not None and row.lease == entry.lease_id), rows[0])


async def _mark(store: CoordinationStore, view: ClusterView, machine: MachineOverview, lease_s: float) -> None:
    entry = view.entry(machine.name)
    as_seen: Condition = Created(view.keys.machine(machine.name), 0 if entry is None else entry.created)
    try:
        await store.commit([as_seen], [Put(view.keys.forgotten(machine.lease), f"{lease_s:g}".encode())])
    except ConditionFailed:
        raise JoinedAnew(
            f"machine {machine.name!r} has joined, or left, since it was looked at: nothing was changed; look at "
            "`onelane cluster status`, and forget it again where it is still to be"
        ) from None
