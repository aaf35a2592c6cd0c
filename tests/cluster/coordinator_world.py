"""Machines, their lives, the store and a coordinator as one value, and every step that any of them can make.

The lives are the real `Handoff`s, the steps of the coordinator are the real `next_entry`, and the supervisors tell by
the real `beginning` and `Known`. A coordinator decides by records that it has seen at some time before, so it may be
paused at each step, or another one may go on: it has nothing else.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import NamedTuple

from onelane.cluster import coordinator, following
from onelane.cluster.coordinator import AppLives
from onelane.cluster.following import Known
from onelane.cluster.machines import AppPart, MachineRecord
from onelane.cluster.placements import AppEntry, check_order, entry_bytes, entry_of
from onelane.core.handoff import SERVE, Arrived, Departed, Forget, Handoff, Install, Refuse, Send, SendDone
from onelane.core.placement import Member, Placement
from onelane.core.placement_change import Gone, Prepare, Reborn

from tests.core.handoff_machines import Machines, Shared

APP = "lobby"
KEYS = ("k0", "k5")
"""One that moves as b joins, and one that moves as c does."""
HANDOFFS = Machines()
IN_FLIGHT = 2
"""Writes of coordinators at once."""


class CoordinationViolated(AssertionError):
    """A state in which a promise does not hold."""


@dataclass(frozen=True)
class Rules:
    """What decides; a test plants faults here."""

    next_entry: Callable[..., AppEntry | None] = coordinator.next_entry
    beginning: Callable[..., following.Beginning | None] = following.beginning
    news: Callable[[Known, AppEntry | None], tuple[Known, list[following.Message]]] = Known.news
    late_writes: bool = False
    """The condition on a write is left out."""


class Life(NamedTuple):
    member: Member
    machine: str
    follows: bool = False
    known: Known | None = None
    """None until its process has its setup."""
    placement: Shared | None = None
    handoff: Shared | None = None
    state: frozenset[str] = frozenset()
    """The keys of which it has the state."""
    outbox: tuple[Send | SendDone, ...] = ()
    departed: int = 0
    arrived: int = 0

    @property
    def number(self) -> int:
        return self.member.life


class Machine(NamedTuple):
    name: str
    lease: int
    wants: tuple[int, ...] = ()
    """Lives that are to own keys."""
    lost: tuple[Member, ...] = ()
    """Members of it whose process has died, and that have no next one yet."""
    record: bytes = b""


class World(NamedTuple):
    machines: tuple[Machine, ...]
    lives: tuple[Life, ...] = ()
    entry: bytes = b""
    decided: frozenset[tuple[bytes, bytes]] = frozenset()
    """Writes on their way, of one coordinator or of two: on condition of this entry, this one."""
    ended: frozenset[int] = frozenset()
    """Leases."""
    last_life: int = 0
    created: frozenset[str] = frozenset()
    """Keys that have had state; none of them may be lost without a death."""
    crashes: int = 0
    given_up: int = 0
    comes_back: int = 0
    plan: tuple[str, ...] = ()
    """What operators do, in this order: `join NAME`, `roll NAME`, `leave NAME`."""
    has_died: bool = False

    # Reading

    def machine(self, name: str) -> Machine:
        return next(machine for machine in self.machines if machine.name == name)

    def life(self, number: int) -> Life | None:
        return next((life for life in self.lives if life.number == number), None)

    def with_life(self, life: Life) -> "World":
        return self._replace(lives=tuple(life if other.number == life.number else other for other in self.lives))

    def without(self, number: int) -> "World":
        return self._replace(lives=tuple(life for life in self.lives if life.number != number))

    def with_machine(self, machine: Machine) -> "World":
        rows = tuple(machine if other.name == machine.name else other for other in self.machines)
        return self._replace(machines=rows)


@cache
def entry_from(value: bytes) -> AppEntry | None:
    return entry_of(value, APP) if value else None


RECORDS: dict[bytes, MachineRecord] = {}


def record_of(world: World, machine: Machine) -> bytes:
    """What the record of a machine is to say now."""
    entry = entry_from(world.entry)
    epoch = entry.following.epoch if entry is not None and entry.following is not None else 0
    lives = tuple(
        (life.member, life.follows, life.departed == epoch > 0, life.arrived == epoch > 0)
        for life in world.lives
        if life.machine == machine.name
    )
    return recorded(machine.name, machine.wants, machine.lost, lives, epoch)


@cache
def recorded(
    name: str,
    wants: tuple[int, ...],
    lost: tuple[Member, ...],
    lives: tuple[tuple[Member, bool, bool, bool], ...],
    epoch: int,
) -> bytes:
    part = AppPart(
        placed=tuple(member for member, *_ in lives if member.life in wants) + lost,
        stand_ins=tuple(member for member, follows, _, _ in lives if member.life not in wants and follows),
        epoch=epoch,
        departed=tuple(member.life for member, _, has_departed, _ in lives if has_departed),
        arrived=tuple(member.life for member, _, _, has_arrived in lives if has_arrived),
    )
    apps = {APP: tuple(member for member, *_ in lives)}
    record = MachineRecord(name=name, advertise="h", release="0", lease_s=5.0, start="s", apps=apps, parts={APP: part})
    value = repr(record).encode()
    RECORDS.setdefault(value, record)
    return value


def address_of(machine: str) -> str:
    return f"10.0.0.{ord(machine)}:1"


def with_calls(world: World) -> World:
    """Each key has state as soon as somebody serves it."""
    for life in world.lives:
        fresh = served_keys(life) - world.created
        if fresh:
            world = world.with_life(life._replace(state=life.state | fresh))._replace(created=world.created | fresh)
    return world


def moves(world: World, rules: Rules) -> Iterator[World]:
    """What follows by itself."""
    yield from coordinator_moves(world, rules)
    for machine in world.machines:
        if machine.lease not in world.ended:
            yield from machine_moves(world, machine, rules)
        else:
            yield from comes_back(world, machine)
    for life in world.lives:
        yield from life_moves(world, life, rules)


def misfortunes(world: World) -> Iterator[World]:
    for life in world.lives if world.crashes else ():
        yield crashed(world._replace(crashes=world.crashes - 1), life)
    alive = [machine for machine in world.machines if machine.lease not in world.ended and machine.record]
    for machine in alive if world.given_up and len(alive) > 1 else ():
        lives = tuple(life for life in world.lives if life.machine != machine.name)
        yield world.with_machine(machine._replace(wants=(), lost=(), record=b""))._replace(
            lives=lives,
            ended=world.ended | {machine.lease},
            given_up=world.given_up - 1,
            has_died=True,
        )


def comes_back(world: World, machine: Machine) -> Iterator[World]:
    """Under another lease; its shard starts again, in its place if an entry names it."""
    entry = entry_from(world.entry)
    if not world.comes_back or entry is None:
        return
    placements = (entry.placement, entry.following or entry.placement)
    members = {
        m.name: m for placement in placements for m in placement.members if m.address == address_of(machine.name)
    }
    lease = machine.lease + len(world.machines)
    lost = tuple(members.values())
    yield world.with_machine(Machine(machine.name, lease, lost=lost))._replace(comes_back=world.comes_back - 1)


def crashed(world: World, life: Life) -> World:
    machine = world.machine(life.machine)
    wants = tuple(number for number in machine.wants if number != life.number)
    lost = (*machine.lost, life.member) if life.number in machine.wants else machine.lost
    return world.without(life.number)._replace(has_died=True).with_machine(machine._replace(wants=wants, lost=lost))


def coordinator_moves(world: World, rules: Rules) -> Iterator[World]:
    for expected, written in world.decided:
        rest = world.decided - {(expected, written)}
        if not rules.late_writes:
            # The others find another entry than they expect, and change nothing.
            rest = frozenset(other for other in rest if other[0] == written)
        yield world._replace(decided=rest, entry=written)
    records = tuple((machine.lease, machine.record) for machine in world.machines if machine.record)
    value = decision(world.entry, records, world.ended, rules)
    if value is not None and len(world.decided) < IN_FLIGHT and (world.entry, value) not in world.decided:
        yield world._replace(decided=world.decided | {(world.entry, value)})


@cache
def decision(value: bytes, records: tuple[tuple[int, bytes], ...], ended: frozenset[int], rules: Rules) -> bytes | None:
    entry = entry_from(value)
    lives = AppLives(APP, {lease: RECORDS[record] for lease, record in records}, ended)
    next_one = rules.next_entry(entry, lives, points=2)
    if next_one is None:
        return None
    if entry is not None and not rules.late_writes:
        check_order(entry, next_one)
    return entry_bytes(next_one)


@cache
def informed(life: Life, value: bytes, rules: Rules) -> Life | None:
    """A life that has been told what this entry says; None if that is no news to it."""
    assert life.known is not None
    known, messages = rules.news(life.known, entry_from(value))
    return reduce(tell, messages, life._replace(known=known)) if messages else None


def machine_moves(world: World, machine: Machine, rules: Rules) -> Iterator[World]:
    entry = entry_from(world.entry)
    if (record := record_of(world, machine)) != machine.record:
        yield world.with_machine(machine._replace(record=record))
    for member in machine.lost:
        others = tuple(other for other in machine.lost if other != member)
        yield launched(world.with_machine(machine._replace(lost=others)), machine.name, member, follows=True)
    asked = {} if entry is None or entry.following is None else entry.stand_ins
    mine = [life for life in world.lives if life.machine == machine.name]
    for name, asked_machine in asked.items():
        if asked_machine == machine.name and all(life.member.name != name for life in mine):
            assert entry is not None
            assert entry.following is not None
            member = next(member for member in entry.following.members if member.name == name)
            yield launched(world, machine.name, member, follows=True, wanted=False)
    if machine.record and world.plan and world.plan[0].endswith(f" {machine.name}"):
        yield from planned(world, machine)


def planned(world: World, machine: Machine) -> Iterator[World]:
    """What an operator does."""
    what, rest = world.plan[0].split()[0], world._replace(plan=world.plan[1:])
    if what == "leave":
        yield rest.with_machine(machine._replace(wants=(), lost=()))
    elif what == "join" or (machine.wants and not machine.lost):
        member = Member(f"lobby-{machine.name}", address_of(machine.name), "", 0)
        yield launched(rest, machine.name, member, follows=False)


def launched(world: World, machine: str, member: Member, *, follows: bool, wanted: bool = True) -> World:
    """A process of a shard, which has no setup yet."""
    number = world.last_life + 1
    life = Life(replace(member, life=number, socket=f"s{number}"), machine, follows)
    world = world._replace(last_life=number, lives=(*world.lives, life))
    if not (follows and wanted):
        return world
    row = world.machine(machine)
    return world.with_machine(row._replace(wants=(*row.wants, number)))


def life_moves(world: World, life: Life, rules: Rules) -> Iterator[World]:
    entry, machine = entry_from(world.entry), world.machine(life.machine)
    if life.known is None:
        is_recorded = machine.record and life.member in RECORDS[machine.record].apps[APP]
        if is_recorded and (begins := rules.beginning(entry, life.number, follows=life.follows)):
            yield has_begun(world, life, begins)
    else:
        if informed_life := informed(life, world.entry, rules):
            yield world.with_life(informed_life)
        for item in life.outbox:
            yield from delivered(world, life, item)
    is_wanted = life.number in machine.wants or (life.known is None and not life.follows)
    is_free = entry is not None and entry.following is None and not is_wanted
    if entry is not None and is_free and life.number not in {member.life for member in entry.placement.members}:
        yield world.without(life.number)


def has_begun(world: World, life: Life, begins: following.Beginning) -> World:
    placement = None if begins.placement is None else HANDOFFS.share(begins.placement)
    begun = life._replace(known=begins.known, placement=placement)
    if begins.prepare is not None:
        begun = tell(begun, begins.prepare)
    if life.follows:
        return world.with_life(begun)
    machine = world.machine(life.machine)
    old = [other.number for other in world.lives if other.member.name == life.member.name and other is not life]
    wants = (*(number for number in machine.wants if number not in old), life.number)
    return world.with_life(begun).with_machine(machine._replace(wants=wants, lost=()))


# A life


def served_keys(life: Life) -> frozenset[str]:
    """The keys of which it serves the calls, if it gets any."""
    return _served_keys(life.number, life.handoff, life.placement)


@cache
def _served_keys(number: int, handoff: Shared | None, placement: Shared | None) -> frozenset[str]:
    if handoff is not None:
        return frozenset(key for key in KEYS if handoff.value.where(key, 0) is SERVE)
    if placement is not None:
        return frozenset(key for key in KEYS if placement.value.owner_of(key).life == number)
    return frozenset()


def tell(life: Life, message: following.Message) -> Life:
    match message:
        case Placement():
            return life._replace(placement=HANDOFFS.share(message), handoff=None, outbox=())
        case Prepare():
            handoff = HANDOFFS.share(Handoff(life.member, message.before, message.after, message.dead))
            life = step(life._replace(handoff=handoff), "begin", ())
            life = step(life, "scanned", tuple(sorted(life.state)))
            return step(life, "scan_done")
        case Gone(number):
            outbox = tuple(item for item in life.outbox if item.to.life != number)
            return step(life._replace(outbox=outbox), "gone", number)
        case Reborn(member):
            return step(life, "reborn", member)


def step(life: Life, event: str, *details: object) -> Life:
    """An event of the life's `Handoff`."""
    assert life.handoff is not None, f"{event} before a change"
    handoff, actions = HANDOFFS.step(life.handoff, event, *details)
    life, epoch = life._replace(handoff=handoff), handoff.value.after.epoch
    for action in actions:
        match action:
            case Send() | SendDone():
                life = life._replace(outbox=(*life.outbox, action))
            case Forget(keys):
                life = life._replace(state=life.state - set(keys))
            case Departed():
                life = life._replace(departed=epoch)
            case Arrived():
                life = life._replace(arrived=epoch)
    return life


def delivered(world: World, life: Life, item: Send | SendDone) -> Iterator[World]:
    """A batch comes, is installed and acknowledged; or the word that no other one comes."""
    to = world.life(item.to.life)
    if to is None or to.handoff is None or life.handoff is None:
        return
    if to.handoff.value.after.epoch != life.handoff.value.after.epoch:
        return
    sent = life._replace(outbox=tuple(other for other in life.outbox if other is not item))
    if isinstance(item, SendDone):
        to = step(to, "done", life.number, to.number)
    else:
        assert to.handoff is not None
        _, actions = HANDOFFS.step(to.handoff, "moved", life.number, to.number, item.keys)
        if any(isinstance(action, Refuse) for action in actions):
            return
        (install,) = [action for action in actions if isinstance(action, Install)]
        to = step(step(to, "moved", life.number, to.number, item.keys), "installed", install.keys)
        to = to._replace(state=to.state | set(install.keys))
        sent = step(sent, "sent_acknowledged", to.number, item.keys)
    yield world.with_life(to).with_life(sent)
