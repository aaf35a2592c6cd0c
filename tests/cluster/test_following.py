"""What a life is told of the placements of its cluster, and by what it begins."""

from dataclasses import replace

from onelane.cluster.following import Beginning, Known, beginning
from onelane.cluster.placements import AppEntry, Death
from onelane.core.placement import Member, Placement
from onelane.core.placement_change import Gone, Prepare

A, B, C = (Member(f"lobby-{n}", f"10.0.0.{n}:1", f"s{n}", n) for n in (1, 2, 3))
NEXT_B = replace(B, life=9)
FIRST, SECOND = Placement(7, (A, B)), Placement(8, (A, B, C))
SOCKETS = frozenset({A.socket, B.socket})
PLACED = AppEntry(FIRST)
CHANGING = PLACED.begun(SECOND)


def test_a_life_that_joins_begins_at_once_and_owns_nothing() -> None:
    assert beginning(None, 3, follows=False) == Beginning(Known(3), None)
    assert beginning(PLACED, 3, follows=False) == Beginning(Known(3, 7, sockets=SOCKETS), FIRST)


def test_the_next_life_of_a_shard_waits_until_an_entry_names_it() -> None:
    for entry in (None, PLACED, CHANGING, replace(CHANGING, deaths=(Death(2),))):
        assert beginning(entry, 9, follows=True) is None
    named = AppEntry(replace(FIRST, members=(A, NEXT_B)))
    assert beginning(named, 9, follows=True) == Beginning(Known(9, 7, is_named=True, sockets=SOCKETS), named.placement)


def test_the_next_life_begins_in_the_middle_of_a_change() -> None:
    begins = beginning(replace(CHANGING, deaths=(Death(2, NEXT_B),)), 9, follows=True)
    assert begins is not None
    assert begins.prepare == Prepare(FIRST, replace(SECOND, members=(A, NEXT_B, C)), frozenset({2}))


def test_a_life_is_told_each_order_and_each_placement_once_however_many_entries_it_has_missed() -> None:
    known, messages = Known(1, 7, is_named=True, sockets=SOCKETS).news(replace(CHANGING, deaths=(Death(2),)))
    assert messages == [Prepare(FIRST, SECOND, frozenset()), Gone(2)]
    assert known.news(replace(CHANGING, deaths=(Death(2),)))[1] == []
    known, messages = known.news(AppEntry(SECOND))
    assert messages == [SECOND]
    assert known.news(AppEntry(SECOND)) == (known, [])
    assert known.news(None) == (known, [])


def test_a_life_that_was_to_take_over_and_has_the_place_of_a_dead_one_in_the_same_epoch_is_told() -> None:
    known = Known(9, 7)
    assert known.news(PLACED)[1] == []
    named = replace(FIRST, members=(A, NEXT_B))
    assert known.news(AppEntry(named))[1] == [named]


def test_a_life_is_told_where_another_one_is_reached_in_the_same_epoch() -> None:
    """It was to take over from one that died before the change had begun."""
    begins = beginning(PLACED, 1, follows=True)
    assert begins is not None
    moved = replace(FIRST, members=(A, replace(NEXT_B, socket="s9")))
    known, messages = begins.known.news(AppEntry(moved))
    assert messages == [moved]
    assert known.news(AppEntry(moved)) == (known, [])
    assert begins.known.news(AppEntry(replace(FIRST, members=(A, NEXT_B))))[1] == []
