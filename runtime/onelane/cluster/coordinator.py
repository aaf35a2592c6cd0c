"""What the coordinator writes next of one app: from its entry, and from what the records of the machines say. Pure.

    no entry ──a life is ready──▶ PLACED ──other shards are wanted──▶ CHANGING ──all departed and arrived──▶ PLACED
                                  │    ▲                              │      ▲
                                  └────┘ a shard has its next life    └──────┘ a life has died, or follows one that has

Each step is one write on condition that the entry is as it was read, so it does not matter which coordinator makes it,
how old the records are that it has seen, or whether it dies before, in the midst, or after: what a record tells only
grows more true (a process that has ended stays so, a report stays reported).

A life is *dead* by proof alone: its lease has ended, or the record under that lease does not name it any more. Where
neither is known (somebody has removed a record, the lease goes on) nothing begins.

Leaves out: how the coordinator learns that a lease has ended, and that the lives of one that an operator has had
revoked count as alive until their fences have closed (`core.lease.gone_at`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from onelane.cluster.machines import AppPart, MachineRecord
from onelane.cluster.placements import AppEntry, Death, PlacementRefused
from onelane.core.placement import POINTS, Member, Placement
from onelane.core.placement_change import Phase, PlacementChange

NO_PART = AppPart()


@dataclass(frozen=True, slots=True)
class AppLives:
    """The lives of one app on all machines, as a coordinator has seen them."""

    app: str
    records: Mapping[int, MachineRecord]
    """By the lease that each is under."""
    ended_leases: Collection[int] = ()
    """Of those of which the entry names lives."""

    def running(self) -> dict[int, int]:
        """Life → lease."""
        return {member.life: lease for lease, record in self._alive() for member in record.apps.get(self.app, ())}

    def placed(self) -> dict[str, Member]:
        """Name of a shard → the life that is to own its keys.

        Raises:
            PlacementRefused: two machines name their shards alike.
        """
        members = [member for _, record in self._alive() for member in self._part(record).placed]
        names = [member.name for member in members]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise PlacementRefused(f"app {self.app!r}: two lives are called {', '.join(twice)}")
        return {member.name: member for member in members}

    def followers(self) -> dict[tuple[str, str], Member]:
        """Name and address of a shard → the life that may follow a dead one of it; its own machine's first."""
        parts = [self._part(record) for _, record in self._alive()]
        members = [member for part in parts for member in part.stand_ins] + [*self.placed().values()]
        running = self.running()
        return {(member.name, member.address): member for member in members if member.life in running}

    def is_dead(self, life: int, lease_id: int) -> bool:
        """By proof. lease_id: under which it was started."""
        if lease_id in self.ended_leases:
            return True
        record = self.records.get(lease_id)
        return record is not None and all(member.life != life for member in record.apps.get(self.app, ()))

    def reports(self, epoch: int) -> tuple[set[int], set[int]]:
        """The lives that have departed, and those that have arrived, in the change to an epoch."""
        parts = [part for _, record in self._alive() if (part := self._part(record)).epoch == epoch]
        departed = {life for part in parts for life in part.departed}
        return departed, {life for part in parts for life in part.arrived}

    def traceparent(self) -> str:
        """Of a change that a machine wants: the first one's, where several want theirs at once."""
        traceparents = [self._part(record).traceparent for _, record in self._alive()]
        return next(filter(None, traceparents), "")

    def machines(self) -> list[str]:
        """Those that could start a life of the app."""
        return sorted(record.name for _, record in self._alive() if self.app in record.apps)

    def _alive(self) -> list[tuple[int, MachineRecord]]:
        return [(lease, record) for lease, record in self.records.items() if lease not in self.ended_leases]

    def _part(self, record: MachineRecord) -> AppPart:
        return record.parts.get(self.app, NO_PART)


def next_entry(
    entry: AppEntry | None,
    lives: AppLives,
    *,
    pins: Mapping[str, str] | None = None,
    points: int = POINTS,
    first_epoch: int = 1,
) -> AppEntry | None:
    """What is to be written now; None where nothing is.

    pins: key → shard, as people want it; one whose shard is not there waits. points, first_epoch: of the first entry.

    Raises:
        PlacementRefused: two machines name their shards alike.
    """
    if entry is None:
        first = Placement(first_epoch, tuple(_running_of(lives.placed(), lives)), points)
        first = replace(first, pins=_possible(pins or {}, first.members))
        return _with_leases(AppEntry(first), lives) if first.members else None
    if entry.following is None:
        return _renumbered(entry, lives) or _begun(entry, lives, pins or {})
    return _with_deaths(entry, lives) or _ended(entry, lives) or _with_stand_ins(entry, lives)


def waited_for(entry: AppEntry, lives: AppLives) -> frozenset[int]:
    """The lives that have not departed or arrived yet in the change under way."""
    return frozenset() if entry.following is None else _reported(entry, lives).waits_for()


# Between changes


def _renumbered(entry: AppEntry, lives: AppLives) -> AppEntry | None:
    """Shards whose life has died, and which have another one: no key has another shard."""
    followers = lives.followers()
    members = tuple(
        followers.get((m.name, m.address), m) if lives.is_dead(m.life, entry.lease_of(m.life)) else m
        for m in entry.placement.members
    )
    if members == entry.placement.members:
        return None
    return _with_leases(replace(entry, placement=replace(entry.placement, members=members)), lives)


def _begun(entry: AppEntry, lives: AppLives, pins: Mapping[str, str]) -> AppEntry | None:
    """A change to other shards, other lives of them (which take over from lives that run), or other pins."""
    before = entry.placement
    dead = [m.life for m in before.members if lives.is_dead(m.life, entry.lease_of(m.life))]
    running = lives.running()
    if any(member.life not in running and member.life not in dead for member in before.members):
        return None
    members = _wanted(before, lives, dead)
    after = replace(before, epoch=before.epoch + 1, members=members, pins=_possible(pins, members))
    is_same = set(after.members) == set(before.members) and dict(after.pins) == dict(before.pins)
    if is_same or not members or all(member.life in dead for member in members):
        # Keys without an owner wait for one.
        return None
    begun = replace(entry.begun(after), deaths=tuple(map(Death, dead)), traceparent=lives.traceparent())
    return _with_leases(begun, lives)


def _wanted(before: Placement, lives: AppLives, dead: Collection[int]) -> tuple[Member, ...]:
    """A shard whose process has died keeps its place as long as its machine wants it: its next life is on its way."""
    placed = lives.placed()
    waiting = {m.name: m for m in before.members if m.name in placed and m.life in dead}
    running = {member.name: member for member in _running_of(placed, lives)}
    wanted = waiting | running
    return tuple(wanted[name] for name in sorted(wanted))


def _running_of(placed: Mapping[str, Member], lives: AppLives) -> list[Member]:
    running = lives.running()
    return [placed[name] for name in sorted(placed) if placed[name].life in running]


def _possible(pins: Mapping[str, str], members: Collection[Member]) -> dict[str, str]:
    names = {member.name for member in members}
    return {key: name for key, name in pins.items() if name in names}


# In a change


def _with_deaths(entry: AppEntry, lives: AppLives) -> AppEntry | None:
    change, _ = entry.change()
    logged = {death.life for death in entry.deaths}
    parts = {member.life: member for placement in (change.before, change.after) for member in placement.members}
    dead = {life for life in parts if life in logged or lives.is_dead(life, entry.lease_of(life))}
    followers = lives.followers()
    followed = {
        member.life: follower
        for member in change.after.members
        if member.life in dead and (follower := followers.get((member.name, member.address))) is not None
        if follower.life not in parts
    }
    news = [Death(life, followed.get(life)) for life in sorted(dead - logged | followed.keys())]
    if not news:
        return None
    return _with_leases(replace(entry, deaths=(*entry.deaths, *news)), lives)


def _ended(entry: AppEntry, lives: AppLives) -> AppEntry | None:
    change = _reported(entry, lives)
    if change.phase is not Phase.OVER:
        return None
    return _with_leases(entry.ended(change.after), lives)


def _reported(entry: AppEntry, lives: AppLives) -> PlacementChange:
    """The change under way, as far as the lives have reported."""
    assert entry.following is not None
    change, _ = entry.change()
    departed, arrived = lives.reports(entry.following.epoch)
    for life in departed:
        change.departed(life)
    for life in arrived:
        change.arrived(life)
    return change


def _with_stand_ins(entry: AppEntry, lives: AppLives) -> AppEntry | None:
    """For shards that may be owed keys, and of which no next life comes: their machine was given up, or does not want
    them any more."""
    change, _ = entry.change()
    dead, placed, machines = {death.life for death in entry.deaths}, lives.placed(), lives.machines()
    stand_ins = dict(entry.stand_ins)
    for member in change.after.members:
        is_abandoned = member.life in dead and member.name not in placed
        if is_abandoned and machines and stand_ins.get(member.name) not in machines:
            stand_ins[member.name] = min(machines, key=lambda name: (list(stand_ins.values()).count(name), name))
    return replace(entry, stand_ins=stand_ins) if stand_ins != entry.stand_ins else None


def _with_leases(entry: AppEntry, lives: AppLives) -> AppEntry:
    """With the lease of each life that is named."""
    known = dict(entry.leases) | lives.running()
    placements = [entry.placement] if entry.following is None else [entry.placement, entry.following]
    named = {member.life for placement in placements for member in placement.members}
    named |= {death.follower.life for death in entry.deaths if death.follower is not None}
    return replace(entry, leases=tuple((life, known[life]) for life in sorted(named) if life in known))
