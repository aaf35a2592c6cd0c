"""How many connections there may be to one shard: in all, and of one peer.

A peer is an IPv4 address, or a network /64 of IPv6: one customer of a provider has at least as many addresses. Unix
sockets stay within the machine, and count only in the sum.
"""

import ipaddress
from collections import Counter
from typing import Any


class PeerSlots:
    """The slots that are taken. Owned by one listener."""

    def __init__(self, *, in_all: int, per_peer: int) -> None:
        self.taken = 0
        self._in_all = in_all
        self._per_peer = per_peer
        self._by_peer: Counter[str] = Counter()

    def fault(self, network: str) -> str:
        """Why there is no slot for one connection more: `full`, `peer`, or "". network: see `network_of`."""
        if self.taken >= self._in_all:
            return "full"
        return "peer" if network and self._by_peer[network] >= self._per_peer else ""

    def take(self, network: str) -> None:
        self.taken += 1
        if network:
            self._by_peer[network] += 1

    def give_back(self, network: str) -> None:
        self.taken -= 1
        if network:
            self._by_peer[network] -= 1
            if not self._by_peer[network]:
                del self._by_peer[network]


def network_of(peer_name: Any) -> str:
    """The peer that a connection counts for; "" for none. peer_name: as `socket.getpeername` returns it."""
    if not isinstance(peer_name, tuple):
        return ""
    host: str = peer_name[0]
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
