"""What people are told of a cluster: its machines, who coordinates, each app's placement, the change under way. Pure.

By the store's view alone: every machine tells the same of the others, and a question costs the others nothing. What
only one machine knows of itself (whether its fence is closed) is added by `supervisor/cluster_watch`.

Leaves out: keys. Of pins it has their number.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from onelane.cluster.coordinator import AppLives
from onelane.cluster.machines import ClusterView, MachineRecord, UnreadableRecord, clock_fault
from onelane.cluster.placements import AppEntry, PlacementRefused, entry_of, pins_of
from onelane.core.machine_links import link_address_of
from onelane.core.placement import Member, Placement


class MachineState(StrEnum):
    """Of a machine, for people. The first four are told by the store, the others by a machine that was asked."""

    JOINED = "joined"
    """Its record stands under its lease."""
    UNREADABLE = "unreadable"
    """A newer release has written its record."""
    FORGOTTEN = "forgotten"
    """An operator has its lease revoked; its lives may serve until their fences have closed."""
    MISSING = "missing"
    """Keys belong to its lives, and its record is not there: it has died, or is cut off from etcd. Its keys wait."""
    GONE = "gone"
    """It was missing, and its keys have other owners now."""
    JOINING = "joining"
    """The machine that was asked: it has no lease, and serves no key."""
    CUT_OFF = "cut off"
    """The machine that was asked: its lease was not renewed in time, and it serves no key until it is."""


@dataclass(frozen=True, slots=True)
class LifeOverview:
    """One process of a shard."""

    shard: str
    life: int
    address: str
    is_placed: bool
    """It owns keys by the placement in force."""


@dataclass(frozen=True, slots=True)
class MachineOverview:
    name: str
    state: MachineState
    lease: int = 0
    """The number of its lease; `etcdctl` writes it as hexadecimal."""
    coordinates: bool = False
    advertise: str = ""
    admin: str = ""
    """The URL of its page, where others reach it."""
    release: str = ""
    lease_s: float | None = None
    lease_left_s: float | None = None
    """Until its lease, or for the machine that was asked its fence, ends; None where nobody has asked for it."""
    lives: Mapping[str, tuple[LifeOverview, ...]] = field(default_factory=dict)
    """By app."""
    fault: str = ""
    since_s: float | None = None
    """How long it has been in this state, as far as the machine that was asked has seen."""


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """A shard, and the machine that has it."""

    shard: str
    machine: str


@dataclass(frozen=True, slots=True)
class ChangeOverview:
    """A change of placement under way."""

    before: int
    """Its epochs."""
    after: int
    what: str
    waits_for: tuple[ShardPlace, ...]
    """The shards that still have keys to hand over or to receive."""
    dead: tuple[str, ...]
    """The shards of which a life has died meanwhile."""
    stand_ins: Mapping[str, str]
    """Shard that is owed keys and does not come back → the machine that receives them in its place."""
    since_s: float | None = None
    """Since the machine that was asked has seen its begin."""


@dataclass(frozen=True, slots=True)
class AppOverview:
    name: str
    epoch: int = 0
    """0: there is no placement yet."""
    shards: int = 0
    """That own keys."""
    unserved: tuple[ShardPlace, ...] = ()
    """Owners of keys that run on no machine now."""
    change: ChangeOverview | None = None
    pins: int = 0
    fault: str = ""
    """Why its placement stays as it is."""


@dataclass(frozen=True, slots=True)
class ClusterOverview:
    name: str
    revision: int
    """Of the store, as of which all this is."""
    coordinator: str
    """The machine that coordinates; "" while none does."""
    machines: tuple[MachineOverview, ...]
    apps: tuple[AppOverview, ...]


def overview_of(view: ClusterView, lease_left_s: Mapping[int, float] | None = None) -> ClusterOverview:
    """lease_left_s: by the number of a lease, of those that were asked for."""
    candidate = view.coordinator()
    leads = 0 if candidate is None else candidate.lease_id
    left = lease_left_s or {}
    records = view.by_lease()
    apps = tuple(_App(view, name, records) for name in _names(view, records))
    machines = [_machine(view, record, apps, leads, left) for record in view.machines()]
    machines += _missing(view, apps, left)
    return ClusterOverview(
        name=view.keys.cluster,
        revision=view.snapshot.revision,
        coordinator="" if candidate is None else candidate.value.decode(errors="replace"),
        machines=tuple(sorted(machines, key=lambda machine: (machine.name, machine.lease))),
        apps=tuple(app.overview() for app in apps),
    )


class _App:
    """What the view has of one app."""

    def __init__(self, view: ClusterView, name: str, records: Mapping[int, MachineRecord]) -> None:
        self.name = name
        self._lives = AppLives(name, records)
        self.entry: AppEntry | None = None
        self._fault = ""
        try:
            stored = view.snapshot.entries.get(view.keys.app(name))
            self.entry = None if stored is None else entry_of(stored.value, name)
            self._lives.placed()
            self._pins = len(pins_of(view, name))
        except PlacementRefused as error:
            self._fault, self._pins = str(error), 0
        running = self._lives.running()
        self._machines = {life: self._lives.records[lease].name for life, lease in running.items()}

    def named(self) -> list[Member]:
        """The lives that the entry names."""
        if self.entry is None:
            return []
        placements = [self.entry.placement, *([self.entry.following] if self.entry.following is not None else [])]
        followers = [death.follower for death in self.entry.deaths if death.follower is not None]
        return list(dict.fromkeys([*(m for placement in placements for m in placement.members), *followers]))

    def owners(self) -> set[int]:
        return set() if self.entry is None else {member.life for member in self.entry.placement.members}

    def place(self, member: Member) -> ShardPlace:
        machine = self._machines.get(member.life) or _machine_in(member)
        return ShardPlace(member.name, machine)

    def overview(self) -> AppOverview:
        if self.entry is None:
            return AppOverview(self.name, pins=self._pins, fault=self._fault)
        members = self.entry.placement.members
        unserved = tuple(self.place(member) for member in members if member.life not in self._machines)
        return AppOverview(
            name=self.name,
            epoch=self.entry.placement.epoch,
            shards=len(members),
            unserved=unserved,
            change=self._change(self.entry),
            pins=self._pins,
            fault=self._fault,
        )

    def _change(self, entry: AppEntry) -> ChangeOverview | None:
        if entry.following is None:
            return None
        members = {member.life: member for member in self.named()}
        waiting = _waits_for(entry, entry.following, self._lives)
        waits_for = sorted(waiting & members.keys(), key=lambda life: (members[life].name, life))
        return ChangeOverview(
            before=entry.placement.epoch,
            after=entry.following.epoch,
            what=what_changes(entry.placement, entry.following),
            waits_for=tuple(self.place(members[life]) for life in waits_for),
            dead=tuple(members[death.life].name for death in entry.deaths if death.life in members),
            stand_ins=dict(entry.stand_ins),
        )


def _waits_for(entry: AppEntry, following: Placement, lives: AppLives) -> set[int]:
    """As `PlacementChange.waits_for`, whose events each cost as much as all of this."""
    departed, arrived = lives.reports(following.epoch)
    dead = {death.life for death in entry.deaths}
    followers = {death.follower.life for death in entry.deaths if death.follower is not None}
    departing = {member.life for member in entry.placement.members} - departed
    arriving = ({member.life for member in following.members} | followers) - arrived
    return (departing | arriving) - dead


def _names(view: ClusterView, records: Mapping[int, MachineRecord]) -> list[str]:
    folder = view.keys.app("")
    stored = {key.removeprefix(folder) for key in view.snapshot.entries if key.startswith(folder)}
    return sorted(stored.union(*(record.apps for record in records.values())))


def _machine(
    view: ClusterView,
    record: MachineRecord | UnreadableRecord,
    apps: Iterable[_App],
    leads: int,
    left: Mapping[int, float],
) -> MachineOverview:
    entry = view.entry(record.name)
    lease = 0 if entry is None else entry.lease_id
    coordinates = lease != 0 and lease == leads
    if isinstance(record, UnreadableRecord):
        return MachineOverview(
            record.name, MachineState.UNREADABLE, lease, coordinates, lease_left_s=left.get(lease), fault=record.reason
        )
    is_forgotten = view.forgotten_lease_s(lease) is not None
    owners = {app.name: app.owners() for app in apps}
    leader = view.by_lease().get(leads)
    return MachineOverview(
        name=record.name,
        state=MachineState.FORGOTTEN if is_forgotten else MachineState.JOINED,
        lease=lease,
        coordinates=coordinates,
        advertise=record.advertise,
        admin=record.admin,
        release=record.release,
        lease_s=record.lease_s,
        lease_left_s=left.get(lease),
        lives={app: _rows(lives, owners.get(app, set())) for app, lives in sorted(record.apps.items())},
        fault="" if leader is None else clock_fault(record, leader),
    )


def _missing(view: ClusterView, apps: Iterable[_App], left: Mapping[int, float]) -> list[MachineOverview]:
    """Leases of which an entry names lives, and which no record is under."""
    members: dict[int, dict[str, list[LifeOverview]]] = defaultdict(dict)
    names: dict[int, str] = {}
    known = {entry.lease_id for machine in view.machines() if (entry := view.entry(machine.name)) is not None}
    for app in apps:
        for member in app.named():
            lease = 0 if app.entry is None else app.entry.lease_of(member.life)
            if lease and lease not in known:
                names[lease] = _machine_in(member)
                row = LifeOverview(member.name, member.life, member.address, member.life in app.owners())
                members[lease].setdefault(app.name, []).append(row)
    return [
        MachineOverview(
            name=names[lease],
            state=MachineState.MISSING if view.forgotten_lease_s(lease) is None else MachineState.FORGOTTEN,
            lease=lease,
            lease_left_s=left.get(lease),
            lives={app: tuple(rows) for app, rows in lives.items()},
        )
        for lease, lives in members.items()
    ]


def _rows(lives: Iterable[Member], owners: set[int]) -> tuple[LifeOverview, ...]:
    rows = sorted(lives, key=lambda member: (member.name, member.life))
    return tuple(LifeOverview(m.name, m.life, m.address, m.life in owners) for m in rows)


def _machine_in(member: Member) -> str:
    """Of a life that no record names; "" where neither its name nor its address tells."""
    machine, slash, _ = member.name.rpartition("/")
    if slash:
        return machine
    try:
        return link_address_of(member.socket).machine
    except ValueError:
        return ""


def what_changes(before: Placement, after: Placement) -> str:
    """In words."""
    old, new = ({member.name: member.life for member in placement.members} for placement in (before, after))
    parts = [f"{name} joins" for name in sorted(new.keys() - old.keys())]
    parts += [f"{name} leaves" for name in sorted(old.keys() - new.keys())]
    parts += [f"{name} gets its next process" for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
    pins = len(set(before.pins.items()) ^ set(after.pins.items()))
    return ", ".join([*parts, *([f"{pins} {'pins' if pins > 1 else 'pin'}"] if pins else [])])


# As JSON


def overview_row(overview: ClusterOverview) -> dict[str, Any]:
    """For `/status`, the page and `--json`: see TELEMETRY.md."""
    return {
        "name": overview.name,
        "revision": overview.revision,
        "coordinator": overview.coordinator or None,
        "machines": [machine_row(machine) for machine in overview.machines],
        "apps": {app.name: _app_row(app) for app in overview.apps},
    }


def machine_row(machine: MachineOverview) -> dict[str, Any]:
    apps = {
        app: [{"name": r.shard, "life": r.life, "address": r.address, "placed": r.is_placed} for r in rows]
        for app, rows in machine.lives.items()
    }
    return {
        "name": machine.name,
        "state": str(machine.state),
        "coordinates": machine.coordinates,
        "advertise": machine.advertise,
        "admin": machine.admin or None,
        "release": machine.release or None,
        "lease": f"{machine.lease:x}" if machine.lease else None,
        "lease_s": machine.lease_s,
        "lease_left_s": machine.lease_left_s,
        "apps": apps,
        "since_s": machine.since_s,
        "fault": machine.fault,
    }


def _app_row(app: AppOverview) -> dict[str, Any]:
    change = app.change
    return {
        "epoch": app.epoch,
        "shards": app.shards,
        "unserved": [_place_row(place) for place in app.unserved],
        "change": None
        if change is None
        else {
            "what": change.what,
            "from": change.before,
            "to": change.after,
            "since_s": change.since_s,
            "waits_for": [_place_row(place) for place in change.waits_for],
            "dead": list(change.dead),
            "stand_ins": dict(change.stand_ins),
        },
        "pins": app.pins,
        "fault": app.fault,
    }


def _place_row(place: ShardPlace) -> dict[str, Any]:
    return {"name": place.shard, "machine": place.machine or None}


def states_of(overview: ClusterOverview) -> dict[MachineState, int]:
    """The number of machines in each state."""
    return dict(Counter(machine.state for machine in overview.machines))
