"""The epoch by which a shard owns a key: what it still writes of a key that leaves must not fence the next owner."""

from onelane.core.handoff import Handoff
from onelane.core.placement import Member, Placement
from onelane.lane.routing import Router

ME, SIBLING = Member("a-0", "127.0.0.1:1", "", 1), Member("a-1", "127.0.0.1:2", "", 2)
KEYS = [f"k{number}" for number in range(20)]


def test_a_key_that_leaves_is_owned_by_the_epoch_before_and_one_that_stays_or_arrives_by_the_next() -> None:
    before, after = Placement(4, (ME,)), Placement(5, (ME, SIBLING))
    leaving = {key for key in KEYS if after.owner_of(key) == SIBLING}
    mine, other = Router("a-0", before, life=1), Router("a-1", before, life=2)
    for router, me in ((mine, ME), (other, SIBLING)):
        router.change(Handoff(me, before, after))
    assert {key: mine.epoch_of(key) for key in KEYS} == {key: 4 if key in leaving else 5 for key in KEYS}
    assert {key: other.epoch_of(key) for key in KEYS} == {key: 5 if key in leaving else 0 for key in KEYS}
    mine.place(after)
    assert {key: mine.epoch_of(key) for key in KEYS} == {key: 0 if key in leaving else 5 for key in KEYS}


def test_the_next_life_of_a_shard_owns_its_keys_by_the_epoch_of_its_own() -> None:
    next_life = Member("a-0", "127.0.0.1:1", "", 3)
    before, after = Placement(4, (ME,)), Placement(5, (next_life,))
    old, new = Router("a-0", before, life=1), Router("a-0", before, life=3)
    for router, me in ((old, ME), (new, next_life)):
        router.change(Handoff(me, before, after))
    assert (old.epoch_of("k"), new.epoch_of("k")) == (4, 5)
