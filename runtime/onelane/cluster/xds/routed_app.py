"""What clients are to know of the owners of an app's keys. Values; pure.

A change of placement is shown in two steps. From its begin, the shards that leave are draining: clients leave them out
of the ring, which is then that of the shards that stay. Those that join are shown once they own keys, at its end.
Meanwhile a call that comes to another shard than its owner is forwarded, as ever.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from onelane.cluster.machines import ClusterView
from onelane.cluster.placements import AppEntry, PlacementRefused, entry_of
from onelane.core.placement import Member, Placement


@dataclass(frozen=True, slots=True)
class RoutedApp:
    """The placement of an app as clients are to follow it."""

    placement: Placement
    draining: frozenset[str] = field(default_factory=frozenset)
    """The names of shards to which nothing new is to be sent. Never all of them."""

    @property
    def members(self) -> tuple[Member, ...]:
        """All shards, in the order of the ring: by the text of their addresses."""
        return tuple(sorted(self.placement.members, key=lambda member: member.address))

    @property
    def owners(self) -> Placement:
        """Which shard clients are to send the calls of a key to."""
        placement = self.placement
        pins = {key: name for key, name in placement.pins.items() if name not in self.draining}
        members = tuple(member for member in self.members if member.name not in self.draining)
        return Placement(placement.epoch, members, placement.points, pins)


def routed_app(entry: AppEntry) -> RoutedApp:
    """What an entry of the store is to clients."""
    if entry.following is None:
        return RoutedApp(entry.placement)
    staying = {(member.name, member.address) for member in entry.following.members}
    names = {member.name for member in entry.placement.members}
    leaving = {member.name for member in entry.placement.members if (member.name, member.address) not in staying}
    # A client for which all shards drain has nowhere to send a call.
    return RoutedApp(entry.placement, frozenset(leaving if leaving < names else ()))


def routed_apps(view: ClusterView, last: Mapping[str, RoutedApp]) -> tuple[dict[str, RoutedApp], dict[str, str]]:
    """All apps of a cluster, and why the entry of an app cannot be read: such an app stays as it was `last`."""
    folder = view.keys.app("")
    apps, faults = dict[str, RoutedApp](), dict[str, str]()
    for key, stored in view.snapshot.entries.items():
        if not key.startswith(folder):
            continue
        name = key.removeprefix(folder)
        try:
            apps[name] = routed_app(entry_of(stored.value, name))
        except PlacementRefused as error:
            faults[name] = str(error)
            if name in last:
                apps[name] = last[name]
    return apps, faults
