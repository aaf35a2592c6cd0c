"""The lives of one app on this machine, in the placements of its cluster: told by the entry of the app in the store,
reported in the record of the machine.

The other end is the coordinator, on whichever machine it runs: the two know each other by the store alone.

Promises: a process gets its setup once the record names its life, and by an entry that was read after that; each life
is told in the order of the entry; a life that no placement has any more, and that is not wanted, is told to leave once.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import anyio

from onelane.cluster.coordinator import AppLives, waited_for
from onelane.cluster.following import Beginning, Known, Message, beginning
from onelane.cluster.machines import AppPart, ClusterView, MachineRecord
from onelane.cluster.placements import AppEntry, PlacementRefused, entry_of
from onelane.core.placement import Member

log = logging.getLogger("onelane.supervisor")


REPORTS_WITHIN_S = 0.1
"""Reports of a machine's lives are written together once the last of them has come, or after this time: people want to
know for which of them a change waits."""


class AnnounceRecord(Protocol):
    """Has the record of the machine say what `PlacedLives.lives` and `part` say now."""

    def __call__(self, *, within_s: float = 0.0) -> None:
        """within_s: what is announced until then may be written with it."""


class LifeLine(Protocol):
    """The way to the process of one life."""

    async def begin(self, beginning: Beginning) -> None:
        """Send the setup."""

    async def tell(self, message: Message) -> None:
        """After the setup. Dropped where the process has ended."""

    async def leave(self) -> None:
        """Finish the calls, and end: no key is its own any more."""


@dataclass(slots=True)
class _Life:
    member: Member
    line: LifeLine
    follows: bool
    is_stand_in: bool
    known: Known | None = None
    """None until it has its setup."""
    is_placed: bool = False
    was_placed: bool = False
    departed: int = 0
    arrived: int = 0
    leaves: bool = False


class PlacedLives:
    """See the module. Its methods but `run` are events, which the app reports."""

    def __init__(self, app: str, machine: str, announce: AnnounceRecord) -> None:
        self._app = app
        self._machine = machine
        self._announce = announce
        self._lives: dict[int, _Life] = {}
        self._lost: dict[str, Member] = {}
        """Shards that are to own keys, whose life has ended and whose next one is not launched."""
        self._entry: AppEntry | None = None
        self._waits_for: frozenset[int] = frozenset()
        self._fault = ""
        self._traceparent = ""

    # What the record says

    @property
    def lives(self) -> tuple[Member, ...]:
        return tuple(life.member for life in self._lives.values())

    @property
    def entry(self) -> AppEntry | None:
        """Of the app, as of the last view that was followed."""
        return self._entry

    @property
    def waits_for(self) -> frozenset[int]:
        """The lives, on whichever machine, that have not departed or arrived yet in the change under way."""
        return self._waits_for

    @property
    def part(self) -> AppPart:
        rows = self._lives.values()
        # Reports of the last change stay until there are those of the next: they say nothing of any other epoch.
        epoch = max((max(life.departed, life.arrived) for life in rows), default=0)
        return AppPart(
            placed=(*(life.member for life in rows if life.is_placed), *self._lost.values()),
            stand_ins=tuple(life.member for life in rows if life.is_stand_in),
            epoch=epoch,
            departed=tuple(life.member.life for life in rows if epoch and life.departed == epoch),
            arrived=tuple(life.member.life for life in rows if epoch and life.arrived == epoch),
            traceparent=self._traceparent,
        )

    @property
    def asked_stand_ins(self) -> tuple[Member, ...]:
        """Shards of other machines in whose place a life is to be launched here; `member.life` is the dead one."""
        entry = self._entry
        if entry is None or entry.following is None:
            return ()
        names = {name for name, machine in entry.stand_ins.items() if machine == self._machine}
        names -= {life.member.name for life in self._lives.values()}
        return tuple(member for member in entry.following.members if member.name in names)

    # Events

    def launched(self, member: Member, line: LifeLine, *, follows: bool, is_stand_in: bool = False) -> None:
        """A process was launched, and waits for its setup. member.life: above every life of the app that the store
        names. follows: it is the next life of a shard that keys may belong to."""
        self._lost.pop(member.name, None)
        is_placed = follows and not is_stand_in
        self._lives[member.life] = _Life(member, line, follows, is_stand_in, is_placed=is_placed)
        self._announce()

    def ready(self, life: int) -> None:
        """A life that joins is ready; it takes over from an earlier one of its shard, if there is one."""
        joining = self._lives.get(life)
        if joining is None or joining.is_stand_in:
            return
        for other in self._lives.values():
            if other.member.name == joining.member.name:
                other.is_placed = False
        self._lost.pop(joining.member.name, None)
        joining.is_placed = joining.was_placed = True
        self._announce()

    def ended(self, life: int) -> None:
        """The process has ended, by proof. Its shard keeps its place, and waits for its next life."""
        ended = self._lives.pop(life, None)
        if ended is not None and ended.is_placed:
            self._lost[ended.member.name] = ended.member
        self._announce()

    def unplaced(self, name: str) -> None:
        """A shard is to own no keys any more; its life is told to leave once all have moved."""
        self._lost.pop(name, None)
        for life in self._lives.values():
            if life.member.name == name:
                life.is_placed = False
        self._announce()

    def departed(self, life: int, epoch: int) -> None:
        """The life has reported so."""
        if life in self._lives:
            self._lives[life].departed = epoch
            self._announce_report()

    def arrived(self, life: int, epoch: int) -> None:
        """The life has reported so."""
        if life in self._lives:
            self._lives[life].arrived = epoch
            self._announce_report()

    def _announce_report(self) -> None:
        self._announce(within_s=REPORTS_WITHIN_S if self._waits_for_our_own() else 0.0)

    def _waits_for_our_own(self) -> bool:
        """Whether lives of this machine have yet to report in the change under way."""
        if self._entry is None or self._entry.following is None:
            return False
        epoch, (change, _) = self._entry.following.epoch, self._entry.change()
        for number, life in self._lives.items():
            if life.departed == epoch:
                change.departed(number)
            if life.arrived == epoch:
                change.arrived(number)
        return not change.waits_for().isdisjoint(self._lives)

    def traced(self, traceparent: str) -> None:
        """A change is wanted from now on, in this span; "" once it is over. Told with what is wanted, not by itself."""
        self._traceparent = traceparent

    # Following

    async def follow(self, view: ClusterView) -> None:
        """Tell the lives what is new by this view; views come in their order."""
        try:
            stored = view.snapshot.entries.get(view.keys.app(self._app))
            entry = None if stored is None else entry_of(stored.value, self._app)
        except PlacementRefused as error:
            if str(error) != self._fault:
                self._fault = str(error)
                log.error("placement.not_followed app=%s reason=%s", self._app, error)
            return
        was_traced = "" if self._entry is None else self._entry.traceparent
        if was_traced == self._traceparent and (entry is None or entry.following is None):
            # Now: the record must not have it when the next change begins.
            self._traceparent = ""
        self._entry = entry
        self._waits_for = frozenset() if entry is None else waited_for(entry, AppLives(self._app, view.by_lease()))
        recorded = _recorded(view, self._machine, self._app)
        for life in list(self._lives.values()):
            if life.known is None and life.member in recorded:
                await self._begin(life, entry)
            if life.known is not None:
                # Also one that has just begun: there may be no other view that tells of those that have died.
                await self._tell(life, life.known, entry)
            if entry is not None and _is_over_for(life, entry):
                life.leaves = True
                await life.line.leave()
        self._announce()

    async def _begin(self, life: _Life, entry: AppEntry | None) -> None:
        begins = beginning(entry, life.member.life, follows=life.follows)
        if begins is not None:
            life.known = begins.known
            await life.line.begin(begins)

    async def _tell(self, life: _Life, known: Known, entry: AppEntry | None) -> None:
        # First: whatever is told in between comes after it.
        life.known, messages = known.news(entry)
        for message in messages:
            await life.line.tell(message)


async def follow_machine(
    placed: PlacedLives,
    view: Callable[[], ClusterView | None],
    changed: Callable[[], anyio.Event],
    asked: Callable[[Member], Awaitable[None]],
) -> None:
    """Follow each view of a machine, until cancelled. asked: launches a stand-in; it is asked again until it has."""
    while True:
        event, current = changed(), view()
        if current is not None:
            await placed.follow(current)
        for member in placed.asked_stand_ins:
            await asked(member)
        await event.wait()


def _is_over_for(life: _Life, entry: AppEntry) -> bool:
    """No placement has the life any more; one that is still to join never had."""
    is_joining = not life.follows and not life.was_placed
    if entry.following is not None or life.is_placed or life.leaves or is_joining:
        return False
    return all(member.life != life.member.life for member in entry.placement.members)


def _recorded(view: ClusterView, machine: str, app: str) -> tuple[Member, ...]:
    """The lives of this machine that its record in the store names."""
    records = [record for record in view.machines() if isinstance(record, MachineRecord) and record.name == machine]
    return tuple(member for record in records for member in record.apps.get(app, ()))
