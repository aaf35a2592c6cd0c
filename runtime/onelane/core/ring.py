"""gRPC's own ring_hash, to the last bit, so that every stock client computes the same owner of a key.

Promises: the same key has the same owner in every process and language; adding an endpoint to a ring of equal
weights moves keys only to it, as long as `min = max = points · n`.

Leaves out: health. A client skips endpoints that are down; a server never does.
Source: gRPC core `ring_hash.cc`, gRFCs A42 and A76; `tests/core/test_ring.py` holds it to the real grpcio client.
"""

from bisect import bisect_left
from collections.abc import Sequence
from math import ceil

import xxhash

from onelane.errors import NoShards

SIZE = 2**64
"""Number of positions on the ring."""


def hash_of(data: bytes) -> int:
    """XXH64 with seed 0, gRPC's hash of keys and points: 0 to 2**64 - 1."""
    return xxhash.xxh64_intdigest(data)


def first_point_of(endpoint: str) -> str:
    """The text that hashes to the first point of an endpoint: it owns this text in each ring that it is in."""
    return f"{endpoint}_0"


class Ring:
    """The points of some endpoints, and their owners. Immutable."""

    __slots__ = ("_hashes", "_owners", "endpoints", "points")

    def __init__(self, endpoints: Sequence[str], *, points: int) -> None:
        """Build the ring of `endpoints` ("ip:port", each once), `points` for each of them.

        Cost: O(P log P) for P = n · points; about 1 ms for 64 endpoints at 16 points.

        Raises:
            NoShards: `endpoints` is empty.
        """
        if not endpoints:
            raise NoShards("a ring needs at least one endpoint")
        self.endpoints = tuple(sorted(endpoints))
        self.points = points
        owners = _owners_of_points(self.endpoints, points * len(self.endpoints))
        self._hashes = sorted(owners)
        self._owners = [owners[position] for position in self._hashes]

    def owner_of(self, key: bytes) -> str:
        """The endpoint that owns `key`, its canonical text as bytes. O(log points)."""
        return self.owner_of_hash(xxhash.xxh64_intdigest(key))

    def owner_of_hash(self, position: int) -> str:
        """As `owner_of`, by the `hash_of` a key."""
        index = bisect_left(self._hashes, position)
        return self._owners[index if index < len(self._owners) else 0]

    def owner_at(self, part: float) -> str:
        """The endpoint that owns the position after this part (0 to 1) of the ring."""
        return self.owner_of_hash(int(part * SIZE))

    def shares(self) -> dict[str, float]:
        """Endpoint → the part of the ring that it owns; together 1."""
        owned = dict.fromkeys(self.endpoints, 0)
        before = self._hashes[-1] - SIZE
        for position, owner in zip(self._hashes, self._owners, strict=True):
            owned[owner] += position - before
            before = position
        return {endpoint: part / SIZE for endpoint, part in owned.items()}


def _owners_of_points(endpoints: tuple[str, ...], size: int) -> dict[int, str]:
    """Position of each point → its endpoint; of two points at one position, the first endpoint's.

    A dict, and not pairs: of a large ring, to sort numbers takes half the time of sorting pairs.
    """
    counts = _counts(len(endpoints), size)
    suffixes = [b"_%d" % number for number in range(max(counts))]
    owners: dict[int, str] = {}
    for endpoint, count in zip(reversed(endpoints), reversed(counts), strict=True):
        prefix = endpoint.encode()
        positions = [xxhash.xxh64_intdigest(prefix + suffix) for suffix in suffixes[:count]]
        owners.update(dict.fromkeys(positions, endpoint))
    return owners


def _counts(endpoints: int, size: int) -> list[int]:
    """The points of each endpoint."""
    # gRPC's arithmetic in IEEE doubles, step by step: for some n even equal weights differ by one point.
    share = 1.0 / endpoints
    scale = min(ceil(share * size) / share, float(size))
    counts = []
    have, want = 0, 0.0
    for _ in range(endpoints):
        want += scale * share
        counts.append(max(0, ceil(want) - have))
        have += counts[-1]
    return counts
