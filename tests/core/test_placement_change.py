"""The coordinator's part in a change of placement, promise by promise."""

from onelane.core.placement import Member, Placement
from onelane.core.placement_change import Gone, Over, Phase, PlacementChange, Prepare, Reborn, Tell


def member(name: str, life: int) -> Member:
    return Member(name, f"127.0.0.1:{1000 + ord(name)}", f"{name}.sock", life)


A, B, C = member("a", 1), member("b", 2), member("c", 3)
NEXT_B, NEXT_C = member("b", 7), member("c", 8)
BEFORE, AFTER = Placement(1, (A, B)), Placement(2, (B, C))
"""C joins, and A leaves."""
NOBODY: frozenset[int] = frozenset()


def moving() -> PlacementChange:
    change = PlacementChange(BEFORE, AFTER)
    change.joined(C.life)
    return change


def test_nobody_is_told_before_every_new_life_has_joined() -> None:
    change = PlacementChange(BEFORE, AFTER)
    assert change.begin() == []
    assert change.waits_for() == {C.life}
    prepare = Prepare(BEFORE, AFTER, NOBODY)
    assert change.joined(C.life) == [Tell(A.life, prepare), Tell(B.life, prepare), Tell(C.life, prepare)]


def test_a_change_without_a_new_life_begins_at_once() -> None:
    change = PlacementChange(BEFORE, Placement(2, (A,)))
    assert [type(order) for order in change.begin()] == [Tell, Tell]
    assert change.begin() == []


def test_a_change_is_over_when_all_have_departed_and_arrived() -> None:
    change = moving()
    for life in (A.life, B.life):
        assert change.departed(life) == []
    assert change.arrived(C.life) == []
    assert change.waits_for() == {B.life}
    assert change.arrived(B.life) == [Over(AFTER, leaving=(A,))]
    assert change.phase is Phase.OVER
    assert change.arrived(B.life) == []


def test_a_death_ends_the_part_of_the_dead_and_of_nobody_else() -> None:
    change = moving()
    assert change.died(A.life) == [Tell(B.life, Gone(A.life)), Tell(C.life, Gone(A.life))]
    assert change.died(A.life) == []
    assert change.waits_for() == {B.life, C.life}


def test_a_dead_life_is_not_ended_again() -> None:
    change = moving()
    change.died(A.life)
    change.departed(B.life)
    change.arrived(B.life)
    assert change.arrived(C.life) == [Over(AFTER, leaving=())]


def test_the_next_life_begins_in_the_middle_of_the_change() -> None:
    change = moving()
    change.died(B.life)
    after = Placement(2, (NEXT_B, C))
    assert change.reborn(B.life, NEXT_B) == [
        Tell(NEXT_B.life, Prepare(BEFORE, after, frozenset({B.life}))),
        Tell(A.life, Reborn(NEXT_B)),
        Tell(C.life, Reborn(NEXT_B)),
    ]
    assert change.reborn(B.life, NEXT_B) == []
    assert change.waits_for() == {A.life, C.life, NEXT_B.life}


def test_the_others_are_told_of_a_death_that_was_not_reported_before_the_next_life() -> None:
    """Else the change would wait for the dead life for ever."""
    change = moving()
    assert [order for order in change.reborn(B.life, NEXT_B) if isinstance(order, Tell) and order.life == A.life] == [
        Tell(A.life, Gone(B.life)),
        Tell(A.life, Reborn(NEXT_B)),
    ]
    assert change.waits_for() == {A.life, C.life, NEXT_B.life}


def test_a_change_waits_for_the_next_life_as_long_as_keys_are_owed_to_it() -> None:
    change = moving()
    change.died(C.life)
    change.departed(B.life)
    change.arrived(B.life)
    assert change.waits_for() == {A.life}


def test_a_life_that_is_only_in_the_old_placement_gets_no_next_life() -> None:
    change = moving()
    change.died(A.life)
    assert change.reborn(A.life, member("a", 9)) == []


def test_a_life_that_dies_before_the_others_are_told_is_replaced_in_both_placements() -> None:
    change = PlacementChange(BEFORE, AFTER)
    assert change.died(B.life) == change.reborn(B.life, NEXT_B) == []
    orders = change.joined(C.life)
    prepare = Prepare(Placement(1, (A, NEXT_B)), Placement(2, (NEXT_B, C)), frozenset({B.life}))
    assert orders == [Tell(life, prepare) for life in (A.life, C.life, NEXT_B.life)]


def test_a_joining_life_that_dies_is_waited_for_in_its_next_life() -> None:
    change = PlacementChange(BEFORE, AFTER)
    change.died(C.life)
    change.reborn(C.life, NEXT_C)
    assert change.joined(C.life) == []
    assert [order.life for order in change.joined(NEXT_C.life) if isinstance(order, Tell)] == [
        A.life,
        B.life,
        NEXT_C.life,
    ]


def test_a_death_of_a_stranger_changes_nothing() -> None:
    assert moving().died(99) == []


def test_a_coordinator_that_takes_over_ends_the_change_by_what_the_lives_say_again() -> None:
    change = PlacementChange(BEFORE, AFTER)
    change.died(A.life)
    assert change.joined(C.life) == [
        Tell(life, Prepare(BEFORE, AFTER, frozenset({A.life}))) for life in (B.life, C.life)
    ]
    change.departed(B.life)
    change.arrived(B.life)
    assert change.arrived(C.life) == [Over(AFTER, leaving=())]
