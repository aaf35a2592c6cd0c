"""How many signatures of tokens a lane checks: so many a second in all, and fewer for addresses whose tokens fail.

A check costs 100 to 150 µs, and anybody can send a token that fails it. So a flood of forged tokens costs the lane no
more than a bounded number of checks; and once an address has used up its failures, others get the checks. Pure.
"""

import ipaddress
from collections import OrderedDict

CHECK_BURST = 200.0
"""Checks in one go: 20 to 30 ms, below what is a stall."""
FAILURES_PER_S = 5.0
FAILURE_BURST = 50.0
"""Failures of one address before its tokens are not checked for a while. Many clients may share an address."""
MAX_ADDRESSES = 4096
"""Addresses whose failures are remembered; the one that failed least recently is forgotten."""


class SignatureBudget:
    """See the module. Owned by one lane; times are seconds of one clock."""

    def __init__(self, per_s: float, now: float) -> None:
        """per_s: checks in all."""
        self._per_s = per_s
        self._checks = CHECK_BURST
        self._at = now
        self._failures: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Network → the failures that it may still have, and when they were counted."""

    def take(self, peer: str, now: float) -> bool:
        """Whether a token of this client may be checked now. peer: gRPC's name of its address."""
        if self._failures_left(network_of(peer), now) < 1.0:
            return False
        self._checks = min(CHECK_BURST, self._checks + (now - self._at) * self._per_s)
        self._at = now
        if self._checks < 1.0:
            return False
        self._checks -= 1.0
        return True

    def note_failure(self, peer: str, now: float) -> None:
        """A token of this client was checked, and is not valid."""
        network = network_of(peer)
        left = self._failures_left(network, now)
        self._failures[network] = (left - 1.0, now)
        self._failures.move_to_end(network)
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)

    def _failures_left(self, network: str, now: float) -> float:
        left, at = self._failures.get(network, (FAILURE_BURST, now))
        return min(FAILURE_BURST, left + (now - at) * FAILURES_PER_S)


def network_of(peer: str) -> str:
    """A client's address without its port; of IPv6 the /64, of which one client may have every address."""
    address = peer.rpartition(":")[0] or peer
    if not address.startswith("ipv6:"):
        return address
    text = address.removeprefix("ipv6:").replace("%5B", "[").replace("%5D", "]").strip("[]")
    try:
        return str(ipaddress.IPv6Network((text.partition("%")[0], 64), strict=False))
    except ValueError:
        return address
