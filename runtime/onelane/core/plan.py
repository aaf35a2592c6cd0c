"""What another number of shards would do to the keys of an app. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from onelane.core.placement import Member, Placement


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard before and after; 0 where it is not in that placement."""

    name: str
    share_before: float
    """Of the ring: of all keys that there may be, without pins."""
    share_after: float
    keys_before: int
    keys_after: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome of `plan`."""

    shards: tuple[ShardPlan, ...]
    moved_share: float
    """Of the ring."""
    keys: int
    moved: tuple[str, ...]
    """The keys that change their owner, in the order in which they were given."""

    @property
    def skew_before(self) -> float:
        """How much more the shard with the most has than the mean; of keys, or of the ring where there are none."""
        return _skew([shard.keys_before if self.keys else shard.share_before for shard in self.shards])

    @property
    def skew_after(self) -> float:
        return _skew([shard.keys_after if self.keys else shard.share_after for shard in self.shards])


def plan(before: Placement, after: Placement, keys: Mapping[str, int]) -> Plan:
    """Compare two placements of an app. keys: canonical text → what it counts for."""
    counts_before, counts_after = Counter[str](), Counter[str]()
    moved = []
    for key, weight in keys.items():
        old, new = before.owner_of(key).name, after.owner_of(key).name
        counts_before[old] += weight
        counts_after[new] += weight
        if old != new:
            moved.append(key)
    shares_before, shares_after = _shares(before), _shares(after)
    names = [member.name for member in (*before.members, *after.members)]
    shards = tuple(
        ShardPlan(
            name,
            shares_before.get(name, 0.0),
            shares_after.get(name, 0.0),
            counts_before[name],
            counts_after[name],
        )
        for name in dict.fromkeys(names)
    )
    # A ring moves no key between two shards that stay: what a shard has less of, others have got.
    moved_share = sum(max(0.0, shard.share_before - shard.share_after) for shard in shards)
    return Plan(shards, moved_share, sum(keys.values()), tuple(moved))


def with_shards(placement: Placement, members: tuple[Member, ...]) -> Placement:
    """The next placement, of these members; pins to those that are no more wait, and hold nothing."""
    names = {member.name for member in members}
    pins = {key: name for key, name in placement.pins.items() if name in names}
    return Placement(placement.epoch + 1, members, placement.points, pins)


def _shares(placement: Placement) -> dict[str, float]:
    owned = placement.ring.shares()
    return {member.name: owned.get(member.address, 0.0) for member in placement.members}


def _skew(parts: list[float] | list[int]) -> float:
    present = [part for part in parts if part]
    return max(present) * len(present) / sum(present) if present else 1.0
