"""Who serves a key, and that nobody serves it twice."""

import pytest
from onelane.core.placement import Member, Placement, route, succeed
from onelane.errors import NotHome

A, B = Member("a", "127.0.0.1:1001", "a.sock"), Member("b", "127.0.0.1:1002", "b.sock")


def test_the_owner_serves() -> None:
    assert route("k", here="a", hopped=False, placement=Placement(1, (A,))) is None


def test_others_forward_to_the_owner() -> None:
    assert route("k", here="a", hopped=False, placement=Placement(1, (B,))) == B


def test_a_call_is_forwarded_at_most_once() -> None:
    with pytest.raises(NotHome) as caught:
        route("k", here="a", hopped=True, placement=Placement(7, (B,)))
    assert caught.value.epoch == 7


def test_its_ring_is_built_once() -> None:
    """Compiled, `cached_property` remembers nothing: a shard with many keys then built a ring for each of them."""
    placement = Placement(1, (A, B))
    placement.owner_of("k")
    assert placement.ring is placement.ring


def test_placements_of_the_same_shards_share_their_ring() -> None:
    """A shard hears of each placement again, in the change that leads to it, at its end, and in the next change."""
    now, told_again = Placement(1, (A, B)), Placement(2, (Member("a", A.address, "next.sock", life=7), B))
    assert now.ring is told_again.ring
    assert Placement(2, (A, B), points=16).ring.points == 16
    assert Placement(2, (A,)).ring.endpoints == (A.address,)


def test_a_pin_overrules_the_ring() -> None:
    placement = Placement(1, (A, B))
    other = {A: B, B: A}[placement.owner_of("hot")]
    assert Placement(1, (A, B), pins={"hot": other.name}).owner_of("hot") == other


def test_epochs_only_grow() -> None:
    assert succeed(Placement(4, (A,)), (A, B)).epoch == 5


def test_the_service_config_gives_each_shard_its_points() -> None:
    config = Placement(1, (A, B)).service_config()
    assert config == {
        "loadBalancingConfig": [
            {
                "ring_hash_experimental": {
                    "minRingSize": 1024,
                    "maxRingSize": 1024,
                    "requestHashHeader": "onelane-key",
                }
            }
        ]
    }
