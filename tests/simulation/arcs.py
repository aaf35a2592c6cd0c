"""Who owns each of very many keys by several placements at once: one hash and one look-up for a key, not one by each.

The rings of the placements divide all positions into arcs; within one, every placement has one owner. The rings are the
real ones, and so is the hash: `tests/simulation/test_arcs.py` compares with `Placement.owner_of`, key by key.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from onelane.core.placement import Placement
from onelane.core.ring import hash_of

BUCKET_BITS = 20
"""The ring is looked up by the first bits of a position first: the rest of the way is a step or two, not twenty."""


class Arcs:
    """The arcs of some placements without pins."""

    def __init__(self, placements: Sequence[Placement]) -> None:
        self._ends = sorted({position for each in placements for position in each.ring._hashes})
        """Each arc ends with its position, which is a part of it; what is past the last belongs to the first."""
        self.owners = {each.epoch: self._owners_by(each) for each in placements}
        """By epoch: the life that owns each arc."""
        self._moves = [len(set(lives)) > 1 for lives in zip(*self.owners.values(), strict=True)]
        starts = range(0, 2**64, 2 ** (64 - BUCKET_BITS))
        self._buckets = [*(bisect_left(self._ends, start) for start in starts), len(self._ends)]

    def _owners_by(self, placement: Placement) -> list[int]:
        ring, lives = placement.ring, {member.address: member.life for member in placement.members}
        owners, index = [], 0
        for end in self._ends:
            while index < len(ring._hashes) and ring._hashes[index] < end:
                index += 1
            owners.append(lives[ring._owners[index if index < len(ring._owners) else 0]])
        return owners

    def spread(self, keys: int) -> tuple[Sequence[int], Sequence[tuple[str, int]]]:
        """How many of the keys `key-0` and so on each arc has; and in their order, those whose owners differ, each with
        its arc."""
        ends, buckets, moves = self._ends, self._buckets, self._moves
        shift, count = 64 - BUCKET_BITS, len(ends)
        keys_of_arc = [0] * count
        moving: list[tuple[str, int]] = []
        for number in range(keys):
            position = hash_of(b"key-%d" % number)
            bucket = position >> shift
            arc = bisect_left(ends, position, buckets[bucket], buckets[bucket + 1])
            if arc == count:
                arc = 0
            keys_of_arc[arc] += 1
            if moves[arc]:
                moving.append((f"key-{number}", arc))
        return keys_of_arc, moving

    def counts(self, placement: Placement, keys_of_arc: Sequence[int]) -> Counter[int]:
        """Life → its keys."""
        counts: Counter[int] = Counter()
        for life, keys in zip(self.owners[placement.epoch], keys_of_arc, strict=True):
            if keys:
                counts[life] += keys
        return counts
