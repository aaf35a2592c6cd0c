"""The placement of each app of a cluster, as the store has it: one entry for each app, which the coordinator alone
writes. Values; pure.

    /onelane/CLUSTER/apps/APP   the placement in force, and the one that a change under way leads to

A write is made on two conditions: that its machine still is the coordinator, and that the entry is of the revision on
which the write was decided. So a coordinator that was paused, and wakes up beside the next one, changes nothing; it
reads again. Epochs only grow: an entry is followed by the begin of its next epoch, or by the end of the change to it.

The entry is also the way of the coordinator's orders: each supervisor reads in it what its lives are to be told
(`orders_for`), and says in its record how far they are. So a coordinator has nothing that is not in the store.

    /onelane/CLUSTER/pins/APP   JSON: canonical key → name of the shard that is to own it
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import msgspec

from onelane.cluster.coordination import Condition, Created, Put, StoredEntry, Unchanged, Write
from onelane.cluster.machines import ClusterView
from onelane.core.placement import Member, Placement
from onelane.core.placement_change import Gone, Order, PlacementChange, Prepare, Reborn, Tell
from onelane.errors import Invalid

ENTRY_VERSION = 1
"""Of the entries that this release writes, and the newest that it reads."""


class PlacementRefused(Invalid):
    """The entry of an app cannot be understood, or the write of one would break the order of epochs."""


@dataclass(frozen=True, slots=True)
class Death:
    """A life with a part in the change under way has ended, by proof."""

    life: int
    follower: Member | None = None
    """The next life of its shard; it has a part in the change from now on."""


@dataclass(frozen=True, slots=True)
class AppEntry:
    """What all machines know of the owners of an app's keys. A life owns keys only where it is named here."""

    placement: Placement
    """In force. Of a change under way: with the lives as of the decision."""
    following: Placement | None = None
    """In force once the change under way is over; None between changes."""
    deaths: tuple[Death, ...] = ()
    """During the change under way, in the order in which the lives are told; it only grows."""
    leases: tuple[tuple[int, int], ...] = ()
    """Each life that is named here, and the lease under which it was started."""
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    """Shard → the machine that is to start a life in its place, until the change under way is over: its own machine was
    given up, and what others have to hand over to it needs a receiver."""
    traceparent: str = ""
    """Of the span of the change under way, on the machine that has wanted it; "" for none."""

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
        return AppEntry(placement, leases=self.leases)

    def lease_of(self, life: int) -> int:
        """0 where the life is not named."""
        return dict(self.leases).get(life, 0)

    @property
    def names(self) -> dict[int, str]:
        """Life → its shard, of all that are named here."""
        placements = [self.placement] if self.following is None else [self.placement, self.following]
        followers = [death.follower for death in self.deaths if death.follower is not None]
        members = (*(member for placement in placements for member in placement.members), *followers)
        return {member.life: member.name for member in members}

    def change(self) -> tuple[PlacementChange, list[Order]]:
        """The change under way as far as it is told here, and all orders so far; the next entry's begin with these."""
        assert self.following is not None, "no change is under way"
        change = PlacementChange(self.placement, self.following)
        orders = [order for member in self.following.members for order in change.joined(member.life)]
        orders += change.begin()
        for death in self.deaths:
            orders += change.reborn(death.life, death.follower) if death.follower else change.died(death.life)
        return change, orders

    def orders_for(self, life: int) -> list[Prepare | Gone | Reborn]:
        """What a life is told of the change under way, in this order."""
        if self.following is None:
            return []
        return [order.message for order in self.change()[1] if isinstance(order, Tell) and order.life == life]


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
            check_order(entry_of(stored.value, app), entry)
        key = self.view.keys.app(app)
        is_unchanged: Condition = Created(key, 0) if stored is None else Unchanged(key, stored.changed)
        leads = Created(self.candidate.key, self.candidate.created)
        return [leads, is_unchanged], [Put(key, entry_bytes(entry))]


def pins_of(view: ClusterView, app: str) -> dict[str, str]:
    """Raises:
    PlacementRefused: the entry of the pins is none.
    """
    stored = view.snapshot.entries.get(view.keys.pins(app))
    try:
        return {} if stored is None else msgspec.json.decode(stored.value, type=dict[str, str])
    except msgspec.DecodeError as error:
        raise PlacementRefused(f"the pins of app {app!r} cannot be read ({error})") from None


def put_pins(view: ClusterView, app: str, pins: Mapping[str, str]) -> tuple[list[Condition], list[Write]]:
    """The transaction that writes these pins in place of those of this view."""
    key = view.keys.pins(app)
    stored = view.snapshot.entries.get(key)
    is_unchanged: Condition = Created(key, 0) if stored is None else Unchanged(key, stored.changed)
    return [is_unchanged], [Put(key, msgspec.json.encode(pins))]


def entry_bytes(entry: AppEntry) -> bytes:
    return msgspec.json.encode({"version": ENTRY_VERSION, "app": entry})


@lru_cache(maxsize=16)  # Of a change, it is asked for by each report of a life.
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


def check_order(last: AppEntry, entry: AppEntry) -> None:
    """Raises:
    PlacementRefused: the entry neither begins, goes on with, nor ends a change of the last one, nor names the next
        lives of the same shards.
    """
    if _goes_on(last, entry):
        return
    expected = last
    if not _is_renumbered(last, entry):
        expected = last.ended(entry.placement) if entry.following is None else last.begun(entry.following)
    if _places(entry.placement) != _places(expected.placement):
        raise PlacementRefused(f"the placement of epoch {entry.placement.epoch} has other shards by the store")


def _goes_on(last: AppEntry, entry: AppEntry) -> bool:
    """The same change, and more of it."""
    if last.following is None or (last.placement, last.following) != (entry.placement, entry.following):
        return False
    has_more = len(entry.deaths) > len(last.deaths) or entry.stand_ins != last.stand_ins
    return has_more and entry.deaths[: len(last.deaths)] == last.deaths


def _is_renumbered(last: AppEntry, entry: AppEntry) -> bool:
    is_between = last.following is None and entry.following is None and last.placement.epoch == entry.placement.epoch
    return is_between and last.placement.members != entry.placement.members


def _places(placement: Placement) -> tuple[object, ...]:
    """Without the lives: the next life of a shard has its place."""
    places = tuple(sorted((member.name, member.address) for member in placement.members))
    return placement.epoch, places, placement.points, dict(placement.pins)
