"""The placement of each app of a cluster, as the store has it: one entry for each app, which the coordinator alone
writes. Values; pure.

    /onelane/CLUSTER/apps/APP   the placement in force, and the one that a change under way leads to

A write is made on two conditions: that its machine still is the coordinator, and that the entry is of the revision on
which the write was decided. So a coordinator that was paused, and wakes up beside the next one, changes nothing; it
reads again. Epochs only grow: an entry is followed by the begin of its next epoch, or by the end of the change to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from onelane.cluster.coordination import Condition, Created, Put, StoredEntry, Unchanged, Write
from onelane.cluster.machines import ClusterView, MachineRecord
from onelane.core.placement import Member, Placement
from onelane.errors import Invalid

ENTRY_VERSION = 1
"""Of the entries that this release writes, and the newest that it reads."""


class PlacementRefused(Invalid):
    """The entry of an app cannot be understood, or the write of one would break the order of epochs."""


@dataclass(frozen=True, slots=True)
class AppEntry:
    """What all machines know of the owners of an app's keys."""

    placement: Placement
    """In force. Of a change under way: with the lives as of the decision."""
    following: Placement | None = None
    """In force once the change under way is over; None between changes."""

    def begun(self, following: Placement) -> "AppEntry":
        """A change begins.

        Raises:
            PlacementRefused: another one is under way, or it is not the next epoch.
        """
        epoch = self.placement.epoch
        if self.following is not None:
            raise PlacementRefused(f"the change to epoch {self.following.epoch} is under way")
        if following.epoch != epoch + 1:
            raise PlacementRefused(f"epoch {following.epoch} does not follow {epoch}")
        return replace(self, following=following)

    def ended(self, placement: Placement) -> "AppEntry":
        """The change under way is over. placement: with the lives of now.

        Raises:
            PlacementRefused: it is not the placement of that change.
        """
        if self.following is None or _places(placement) != _places(self.following):
            raise PlacementRefused(f"no change to this placement of epoch {placement.epoch} is under way")
        return AppEntry(placement)

    def dead(self, alive: Iterable[int]) -> frozenset[int]:
        """Of a coordinator that takes over: the lives with a part in the change that have died meanwhile. alive: those
        that the records of machines name; a life of the change is in one until it is dead by proof."""
        placements = [self.placement] if self.following is None else [self.placement, self.following]
        return frozenset(member.life for placement in placements for member in placement.members) - {*alive}


def members_of(machines: Iterable[MachineRecord], app: str) -> tuple[Member, ...]:
    """The lives of an app on all machines, by their names.

    Raises:
        PlacementRefused: two machines name their shards alike.
    """
    members = sorted((m for machine in machines for m in machine.apps.get(app, ())), key=lambda member: member.name)
    names = [member.name for member in members]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PlacementRefused(f"app {app!r}: two lives are called {', '.join(twice)}")
    return tuple(members)


def wanted(placement: Placement, members: tuple[Member, ...]) -> Placement | None:
    """The placement that is to follow, where other shards run now; None where the same do, or none at all: keys without
    an owner wait for one."""
    if not members or {(m.name, m.address) for m in members} == {(m.name, m.address) for m in placement.members}:
        return None
    names = {member.name for member in members}
    pins = {key: name for key, name in placement.pins.items() if name in names}
    return replace(placement, epoch=placement.epoch + 1, members=members, pins=pins)


@dataclass(frozen=True, slots=True)
class CoordinatorTerm:
    """What a machine may write that coordinates by this view."""

    view: ClusterView
    candidate: StoredEntry

    @classmethod
    def of(cls, view: ClusterView, lease_id: int) -> "CoordinatorTerm | None":
        """None where another machine coordinates. lease_id: of this machine."""
        candidate = view.coordinator()
        if candidate is None or candidate.key != view.keys.candidate(lease_id):
            return None
        return cls(view, candidate)

    def put(self, app: str, entry: AppEntry) -> tuple[list[Condition], list[Write]]:
        """The transaction that writes the entry of an app, on what this view has of it.

        Raises:
            PlacementRefused: it does not follow that entry.
        """
        stored = self.view.snapshot.entries.get(self.view.keys.app(app))
        if stored is not None:
            _check_order(entry_of(stored.value, app), entry)
        key = self.view.keys.app(app)
        is_unchanged: Condition = Created(key, 0) if stored is None else Unchanged(key, stored.changed)
        leads = Created(self.candidate.key, self.candidate.created)
        return [leads, is_unchanged], [Put(key, entry_bytes(entry))]


def entry_bytes(entry: AppEntry) -> bytes:
    return msgspec.json.encode({"version": ENTRY_VERSION, "app": entry})


def entry_of(value: bytes, app: str) -> AppEntry:
    """Raises:
    PlacementRefused: it is of a newer release, or no entry of an app.
    """
    try:
        row: Mapping[str, Any] = msgspec.json.decode(value, type=dict[str, Any])
        if int(row["version"]) > ENTRY_VERSION:
            raise PlacementRefused(f"the placement of app {app!r} was written by a newer release: upgrade this machine")
        return msgspec.convert(row["app"], AppEntry)
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise PlacementRefused(f"the entry of app {app!r} is no placement ({error})") from None


def _check_order(last: AppEntry, entry: AppEntry) -> None:
    """Raises:
    PlacementRefused: the entry neither begins nor ends a change of the last one.
    """
    expected = last.ended(entry.placement) if entry.following is None else last.begun(entry.following)
    if _places(entry.placement) != _places(expected.placement):
        raise PlacementRefused(f"the placement of epoch {entry.placement.epoch} has other shards by the store")


def _places(placement: Placement) -> tuple[object, ...]:
    """Without the lives: the next life of a shard has its place."""
    places = tuple(sorted((member.name, member.address) for member in placement.members))
    return placement.epoch, places, placement.points, dict(placement.pins)
