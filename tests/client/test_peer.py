"""What the methods of one channel share: the peer's address, and what is counted about calls to it."""

from typing import Any

import pytest
from onelane.client.peer import Peer
from onelane.telemetry.stats import Stats


def points(stats: Stats) -> dict[str, Any]:
    return {point.instrument.name: (dict(point.attributes), point.value) for point in stats.take()}


@pytest.mark.parametrize(
    ("target", "attributes"),
    [
        ("shop.example:443", {"server.address": "shop.example", "server.port": 443}),
        ("dns:///shop.example:443", {"server.address": "shop.example", "server.port": 443}),
        ("ipv6:[::1]:80", {"server.address": "::1", "server.port": 80}),
        ("unix:/run/shop", {"server.address": "/run/shop"}),
    ],
)
def test_spans_and_durations_name_the_address_that_is_dialled(target: str, attributes: dict[str, Any]) -> None:
    assert Peer("shop", target, deadline_s=None).address_attributes == attributes


def test_decisions_are_counted_by_peer_and_reason() -> None:
    stats = Stats()
    peer = Peer("shop", "shop.example:443", deadline_s=None, stats=stats)
    peer.count("retries", "UNAVAILABLE")
    peer.count("retries", "UNAVAILABLE")
    peer.count("hedges", "late")
    assert points(stats) == {
        "onelane.client.retries": ({"onelane.peer": "shop", "onelane.reason": "UNAVAILABLE"}, 2),
        "onelane.client.hedges": ({"onelane.peer": "shop", "onelane.reason": "late"}, 1),
    }


def test_outside_of_a_shard_nothing_is_counted() -> None:
    peer = Peer("shop", "shop.example:443", deadline_s=None)
    peer.count("refusals", "in_flight")
    assert peer.duration is None
