"""Slots for connections: in all, and for each peer."""

from typing import Any

import pytest
from onelane.server.peer_slots import PeerSlots, network_of


@pytest.mark.parametrize(
    ("peer_name", "network"),
    [
        (("192.0.2.7", 4711), "192.0.2.7"),
        (("::ffff:192.0.2.7", 4711, 0, 0), "192.0.2.7"),
        (("2001:db8:1:2:3::9", 4711, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 4711, 0, 2), "fe80::/64"),
        ("", ""),
        ("/run/echo.sock", ""),
        (None, ""),
    ],
)
def test_a_peer_is_an_address_or_a_network_of_ipv6_and_no_unix_socket(peer_name: Any, network: str) -> None:
    assert network_of(peer_name) == network


def test_slots_are_bounded_for_each_peer_and_in_all_and_come_back() -> None:
    slots = PeerSlots(in_all=4, per_peer=2)
    for network in ("a", "a", ""):
        assert slots.fault(network) == ""
        slots.take(network)
    assert (slots.fault("a"), slots.fault("b"), slots.fault("")) == ("peer", "", "")
    slots.take("b")
    assert (slots.fault("b"), slots.fault("")) == ("full", "full")
    for network in ("a", "a", "b", ""):
        slots.give_back(network)
    assert (slots.taken, slots.fault("a"), len(slots._by_peer)) == (0, "", 0)
