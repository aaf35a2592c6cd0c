"""Which shard owns a key, as of one epoch: the ring, and the pins that override it.

Promises: a placement is immutable; a later placement has a higher epoch. `route` only decides.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from onelane.core.ring import Ring
from onelane.errors import ForeignKey, NotHome

POINTS = 512
"""Default number of points of each shard on the ring."""
STOCK_RING_CAP = 4096
"""Points of the largest ring that a stock client builds, unless a channel argument raises the limit."""
KEPT_RINGS = 4
"""Rings that a process remembers, for the placements that it is yet to be told of."""


def shard_name(app: str, index: int, machine: str = "") -> str:
    """The name of a shard: `lobby-0`, and `a/lobby-0` on the machine `a` of a cluster."""
    return f"{machine}/{app}-{index}" if machine else f"{app}-{index}"


@dataclass(frozen=True, slots=True)
class Member:
    """One shard of an app, as its placement lists it."""

    name: str
    """Unique in its app: see `shard_name`."""
    address: str
    """The `ip:port` of this shard alone, which is also its endpoint on the ring."""
    socket: str
    """The path of its Unix socket, for the other shards of the app; on another machine, see `core/machine_links`."""
    life: int = 0
    """The number of its process: unique in the app, and growing."""

    @property
    def is_remote(self) -> bool:
        """It is reached by a link between machines."""
        return "@" in self.socket and "/" not in self.socket


@dataclass(frozen=True)
class Placement:
    """Ring and pins as of one epoch."""

    epoch: int
    """Grows with each change."""
    members: tuple[Member, ...]
    points: int = POINTS
    """Points of each shard on the ring."""
    pins: Mapping[str, str] = field(default_factory=dict)
    """Canonical key → name of the shard that owns it, whatever the ring says."""

    @cached_property
    def ring(self) -> Ring:
        return _ring_of(tuple(member.address for member in self.members), self.points)

    @cached_property
    def _by_address(self) -> dict[str, Member]:
        return {member.address: member for member in self.members}

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        return {member.name: member for member in self.members}

    def owner_of(self, key: str) -> Member:
        """The shard that owns `key`, in its canonical text. O(log points)."""
        if self.pins and key in self.pins:
            return self._by_name[self.pins[key]]
        return self._by_address[self.ring.owner_of(key.encode())]

    def owner_of_hash(self, position: int, key: str) -> Member:
        """As `owner_of`, by the hash of the key too (`ring.hash_of`), which is the same in every placement."""
        if self.pins and key in self.pins:
            return self._by_name[self.pins[key]]
        return self._by_address[self.ring.owner_of_hash(position)]

    @property
    def ring_size(self) -> int:
        """Points of all shards; past `STOCK_RING_CAP` a stock client needs `grpc.lb.ring_hash.ring_size_cap`."""
        return self.points * len(self.members)

    def service_config(self) -> dict[str, object]:
        """gRPC service config with which a stock client computes the same owners."""
        ring = {
            "minRingSize": self.ring_size,
            "maxRingSize": self.ring_size,
            "requestHashHeader": "onelane-key",
        }
        return {"loadBalancingConfig": [{"ring_hash_experimental": ring}]}

    def service_config_json(self) -> str:
        return json.dumps(self.service_config())


@lru_cache(KEPT_RINGS)
def _ring_of(addresses: tuple[str, ...], points: int) -> Ring:
    """A change of placement names two placements, and its end the second one again: of three rings that hold up the
    calls of a shard, and of each channel of its clients, one is new; of a rolling restart, none is."""
    return Ring(addresses, points=points)


def succeed(old: Placement, members: tuple[Member, ...]) -> Placement:
    """The placement that follows `old`, one epoch later."""
    return Placement(old.epoch + 1, members, old.points, old.pins)


def route(key: str, *, here: str, hopped: bool, placement: Placement) -> Member | None:
    """Decide where one call runs: None to serve it here, else the shard to forward it to.

    key: canonical text. here: this shard's name. hopped: another shard has forwarded the call to this one.

    Raises:
        NotHome: this shard does not own the key, and the call has been forwarded already; there is no second hop.
    """
    owner = placement.owner_of(key)
    if owner.name == here:
        return None
    if hopped:
        raise NotHome(epoch=placement.epoch)
    return owner


def check_own(key: str, *, here: str, placement: Placement) -> None:
    """Check that this shard, `here`, owns a key (canonical text) which the code of a service wants for itself.

    Raises:
        ForeignKey: another shard owns it.
    """
    owner = placement.owner_of(key)
    if owner.name != here:
        raise ForeignKey(key, shard=here, owner=owner.name)
