"""The coordinator's part in one change of placement: whom to tell what, and when the change is over. Pure.

    JOINING ──the last new life joined──▶ MOVING ──all departed and arrived──▶ OVER

In JOINING no life knows of the change, and the coordinator may still drop it. `before` names the lives as MOVING
begins. A life that dies later ends the change early for its own part and for no other: the others are told `Gone`, and
`Reborn` as its next life starts, which begins in the middle of the change.

Each event may be repeated. A coordinator that takes over builds the same change again, names the dead, and begins: a
life that has been prepared for this epoch answers with its `Handoff.standing`.
"""

from dataclasses import dataclass, replace
from enum import Enum, auto

from onelane.core.placement import Member, Placement


class Phase(Enum):
    """See the module."""

    JOINING = auto()
    MOVING = auto()
    OVER = auto()


@dataclass(frozen=True, slots=True)
class Prepare:
    """Begin with a `Handoff` of these values. A life that starts in the middle of the change gets it with its setup."""

    before: Placement
    after: Placement
    dead: frozenset[int]


@dataclass(frozen=True, slots=True)
class Gone:
    """This life is dead: the event `Handoff.gone`."""

    life: int


@dataclass(frozen=True, slots=True)
class Reborn:
    """The next life of a member of `after`: the event `Handoff.reborn`."""

    member: Member


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a life a message; the messages to one life arrive in order."""

    life: int
    message: Prepare | Gone | Reborn


@dataclass(frozen=True, slots=True)
class Over:
    """The change is over: tell every life `placement`, and end `leaving`, the lives that have no part in it.

    They end in the order of their changes: one that left earlier may still send calls on to one that leaves now.
    """

    placement: Placement
    leaving: tuple[Member, ...]


Order = Tell | Over


class PlacementChange:
    """The change from `before` to `after`. Each event is a method that returns the orders to carry out."""

    def __init__(self, before: Placement, after: Placement) -> None:
        self.before = before
        self.after = after
        """With the lives of now."""
        self.phase = Phase.JOINING
        self._dead: set[int] = set()
        self._joined = _lives(before)
        self._departed: set[int] = set()
        self._arrived: set[int] = set()

    def begin(self) -> list[Order]:
        """Where no life has to join first, the change moves on at once."""
        return self._move_on()

    def joined(self, life: int) -> list[Order]:
        """A life that is only in `after` is ready."""
        self._joined.add(life)
        return self._move_on()

    def departed(self, life: int) -> list[Order]:
        """The life reports that every key that leaves it has been acknowledged."""
        self._departed.add(life)
        return self._end()

    def arrived(self, life: int) -> list[Order]:
        """The life reports that every key that arrives is there."""
        self._arrived.add(life)
        return self._end()

    def died(self, life: int) -> list[Order]:
        """The process of this life has ended, by proof. Its next life is `reborn`, once it is started."""
        if life in self._dead or life not in _lives(self.before) | _lives(self.after):
            return []
        return [*self._buried(life), *self._end()]

    def reborn(self, dead_life: int, member: Member) -> list[Order]:
        """`member`, with the same name, address and socket, follows a life that has died; which the others are told
        first, where that was not reported.

        A life that is only in `before` needs no next life once the change moves. One that starts when the change is
        over has no part in it, and begins with `after`.
        """
        if self.phase is Phase.JOINING:
            return self._replace_unseen(dead_life, member)
        if dead_life not in _lives(self.after):
            return []
        death = self._buried(dead_life) if dead_life != member.life else []
        self.after = _with_next_life(self.after, dead_life, member)
        if self.phase is Phase.OVER:
            return []
        return [*death, Tell(member.life, self._prepare()), *self._tell_others(member.life, Reborn(member))]

    def waits_for(self) -> frozenset[int]:
        """The lives whose word the change waits for."""
        if self.phase is Phase.JOINING:
            return frozenset(_lives(self.after) - self._joined)
        departing = _lives(self.before) - self._departed
        arriving = _lives(self.after) - self._arrived
        return frozenset((departing | arriving) - self._dead)

    def _buried(self, life: int) -> list[Order]:
        if life in self._dead:
            return []
        self._dead.add(life)
        return self._tell_others(life, Gone(life))

    def _replace_unseen(self, dead_life: int, member: Member) -> list[Order]:
        if dead_life in self._joined and dead_life in _lives(self.before):
            self._joined.add(member.life)
        self.before = _with_next_life(self.before, dead_life, member)
        self.after = _with_next_life(self.after, dead_life, member)
        return []

    def _move_on(self) -> list[Order]:
        if self.phase is not Phase.JOINING or self.waits_for():
            return []
        self.phase = Phase.MOVING
        return [Tell(life, self._prepare()) for life in self._alive()] + self._end()

    def _prepare(self) -> Prepare:
        return Prepare(self.before, self.after, frozenset(self._dead))

    def _tell_others(self, life: int, message: Gone | Reborn) -> list[Order]:
        if self.phase is not Phase.MOVING:
            return []
        return [Tell(other, message) for other in self._alive() if other != life]

    def _alive(self) -> list[int]:
        return sorted((_lives(self.before) | _lives(self.after)) - self._dead)

    def _end(self) -> list[Order]:
        if self.phase is not Phase.MOVING or self.waits_for():
            return []
        self.phase = Phase.OVER
        leaving = _lives(self.before) - _lives(self.after) - self._dead
        return [Over(self.after, tuple(member for member in self.before.members if member.life in leaving))]


def _lives(placement: Placement) -> set[int]:
    return {member.life for member in placement.members}


def _with_next_life(placement: Placement, dead_life: int, member: Member) -> Placement:
    members = tuple(member if other.life == dead_life else other for other in placement.members)
    return replace(placement, members=members)
