"""The states of a small app in which lives and coordinator go through changes of placement. See `handoff_step`."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from onelane.core.handoff import HOLD, SERVE
from onelane.core.placement import Member, Placement
from onelane.core.placement_change import Phase
from onelane.errors import NotHome

from tests.core.handoff_machines import Machines, Shared


class Violated(AssertionError):
    """A property does not hold in a state that can be reached."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


@dataclass(frozen=True)
class Scenario:
    """What happens, apart from the order of events, which is every possible one."""

    owners: tuple[dict[str, str], ...]
    """By epoch: key → name of its owner."""
    names: tuple[str, ...]
    """By epoch: the shards, one letter each; a capital letter is a shard that has a new life in this epoch."""
    calls: str
    """The key of each call, one letter each; they enter in this order, at any life, at any time."""
    crashes: int = 0
    repeats: int = 0
    """Messages between lives that are delivered twice."""
    give_ups: int = 0
    """Turns of keys that leave which may be given up, and may end later, or not."""
    hurries: bool = False
    """Who holds a call asks the old owner of its key, each time, to hand this over next."""
    slow_install: bool = False
    """Other events may come while a key is being installed."""
    reduced: bool = False
    """Of several orders of events that end in the same states one is explored: see `handoff_reduction`."""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.owners[0])


class Life(NamedTuple):
    """One process."""

    member: Member
    placement: Shared
    handoff: Shared | None = None
    memory: tuple[tuple[str, frozenset[int]], ...] = ()
    """Key → the calls that have changed its state."""
    running: tuple[tuple[str, int], ...] = ()
    """Key → the call whose turn it is."""
    stuck: tuple[str, ...] = ()
    """Keys whose turn was given up, and has not ended."""
    waiting: tuple[tuple[int, int, int], ...] = ()
    """Calls that are held or wait for a turn: (call, epoch, hops)."""
    unscanned: tuple[str, ...] = ()
    installing: tuple[tuple[int, tuple[str, ...], tuple[tuple[str, frozenset[int]], ...]], ...] = ()
    """(sender, keys to acknowledge, state to install)."""
    is_leaving: bool = False


class World(NamedTuple):
    """A state of everything."""

    placement: Shared
    """The last one that is complete."""
    next_life: int
    lives: tuple[Life, ...]
    crashes: int
    repeats: int
    give_ups: int = 0
    epoch: int = 1
    change: Shared | None = None
    dead: tuple[Member, ...] = ()
    """Lives whose death the coordinator knows, without a next life."""
    channels: tuple[tuple[tuple[Any, ...], tuple[Any, ...]], ...] = ()
    """Kind and ends of a channel → the messages in it, of this change or a later one."""
    calls: tuple[tuple[int, str, int, int], ...] = ()
    """In flight between lives: (call, socket, epoch, hops)."""
    entered: int = 0
    answered: frozenset[int] = frozenset()
    failed: frozenset[int] = frozenset()
    may_be_lost: frozenset[int] = frozenset()
    """Calls whose change was in the memory of a life that died, and nowhere else."""

    def must_be_there(self, scenario: Scenario, key: str) -> frozenset[int]:
        """The calls for a key that were answered OK, and whose change no death excuses."""
        calls = self.answered - self.may_be_lost
        return frozenset(call for call in calls if scenario.calls[call] == key)


def where(machines: Machines, life: Life, key: str, epoch: int) -> Any:
    """`SERVE`, `HOLD` or a member, by the handoff under way or by the placement alone."""
    question = (life.member.life, life.handoff or life.placement, key, epoch)
    if question not in machines.places:
        machines.places[question] = _ask(life, key, epoch)
    return machines.places[question]


def _ask(life: Life, key: str, epoch: int) -> Any:
    if epoch > life.placement.value.epoch:
        return HOLD
    if life.handoff:
        return life.handoff.value.where(key, epoch)
    owner = life.placement.value.owner_of(key)
    if owner.life == life.member.life:
        return SERVE
    if epoch >= life.placement.value.epoch:
        raise NotHome(epoch=epoch)
    return owner


def may_serve(machines: Machines, life: Life, key: str) -> bool:
    return key in dict(life.running) or where(machines, life, key, 0) is SERVE


def member_of(name: str, life: int) -> Member:
    return Member(name, f"{name}:1", f"{name}-{life}.sock", life)


def placement_of(epoch: int, members: list[Member], scenario: Scenario) -> Placement:
    return Placement(epoch, tuple(members), points=1, pins=scenario.owners[epoch - 1])


def is_changing(world: World) -> bool:
    return world.change is not None and world.change.value.phase is Phase.MOVING
