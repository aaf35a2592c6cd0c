"""What another number of shards would move, by the same ring that will move it."""

import pytest
from onelane.core.placement import Member, Placement
from onelane.core.plan import plan, with_shards

MEMBERS = tuple(Member(f"lobby-{index}", f"10.0.0.1:{4000 + index}", "") for index in range(5))
KEYS = {f"key-{number}": 1 for number in range(5000)}


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 3), (3, 3)])
def test_the_keys_that_it_names_are_those_that_change_their_owner(before: int, after: int) -> None:
    old = Placement(1, MEMBERS[:before])
    new = with_shards(old, MEMBERS[:after])
    outcome = plan(old, new, KEYS)
    assert outcome.moved == tuple(key for key in KEYS if old.owner_of(key) != new.owner_of(key))
    # As many as the ring says, of keys that are spread evenly.
    assert len(outcome.moved) / len(KEYS) == pytest.approx(outcome.moved_share, abs=0.03)
    assert sum(shard.keys_before for shard in outcome.shards) == sum(shard.keys_after for shard in outcome.shards)
    assert [shard.name for shard in outcome.shards] == [member.name for member in MEMBERS[: max(before, after)]]


def test_a_key_counts_as_often_as_it_is_told_and_skew_is_of_what_counts() -> None:
    old = Placement(1, MEMBERS[:2], pins={"hot": "lobby-1", "cold": "lobby-0"})
    outcome = plan(old, with_shards(old, MEMBERS[:2]), {"hot": 300, "cold": 100})
    assert [(shard.keys_before, shard.keys_after) for shard in outcome.shards] == [(100, 100), (300, 300)]
    assert (outcome.skew_before, outcome.moved, outcome.moved_share) == (1.5, (), 0.0)


def test_a_pin_to_a_shard_that_is_no_more_holds_nothing() -> None:
    old = Placement(1, MEMBERS[:3], pins={"k": "lobby-2"})
    outcome = plan(old, with_shards(old, MEMBERS[:2]), {"k": 1})
    assert outcome.moved == ("k",)
    assert outcome.shards[2].share_after == 0.0
