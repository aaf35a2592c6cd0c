"""One life's part in a change of placement, promise by promise."""

import pytest
from onelane.core.handoff import (
    HOLD,
    SERVE,
    Arrived,
    Departed,
    Drop,
    Forget,
    Handoff,
    Install,
    Refuse,
    Release,
    ReleaseAll,
    Send,
    SendDone,
)
from onelane.core.placement import Member, Placement
from onelane.errors import NotHome


def member(name: str, life: int) -> Member:
    return Member(name, f"127.0.0.1:{1000 + ord(name)}", f"{name}.sock", life)


A, B, C = member("a", 1), member("b", 2), member("c", 3)
NEXT_B = member("b", 7)
BEFORE = Placement(1, (A, B), points=1, pins={"k": "a", "l": "a", "stays": "a", "to-a": "b"})
AFTER = Placement(2, (A, B, C), points=1, pins={"k": "b", "l": "c", "stays": "a", "to-a": "a"})


def leaving(*busy: str) -> Handoff:
    """Of A, which `k` leaves to B and `l` to C."""
    handoff = Handoff(A, BEFORE, AFTER)
    handoff.begin(busy)
    return handoff


def arriving() -> Handoff:
    """Of B, at which `k` arrives from A."""
    handoff = Handoff(B, BEFORE, AFTER)
    handoff.begin(())
    return handoff


def test_a_call_for_a_key_that_leaves_is_sent_on() -> None:
    assert leaving().where("k", 0) == B


def test_a_call_for_a_key_that_leaves_is_sent_on_while_its_last_turn_runs() -> None:
    assert leaving("k").where("k", 1) == B


def test_a_call_for_a_key_that_stays_is_served() -> None:
    assert leaving().where("stays", 0) is SERVE


def test_a_call_for_a_key_that_arrives_is_held() -> None:
    assert arriving().where("k", 0) is HOLD


def test_a_call_that_was_sent_by_the_newest_placement_is_not_sent_on_again() -> None:
    with pytest.raises(NotHome):
        leaving().where("k", 2)


def test_a_key_whose_turn_runs_is_not_sent_before_its_end() -> None:
    handoff = leaving("k")
    assert handoff.scanned(["k"]) == []
    assert handoff.quiet("k") == [Send(B, ("k",))]


def test_a_key_whose_last_turn_left_no_state_is_not_sent() -> None:
    handoff = leaving("k")
    handoff.scan_done()
    assert handoff.quiet("k", has_state=False) == [SendDone(B), Departed()]


def test_a_key_is_sent_once_however_often_it_is_named() -> None:
    handoff = leaving()
    assert handoff.scanned(["k", "stays", "l"]) == [Send(B, ("k",)), Send(C, ("l",))]
    handoff.sent_acknowledged(B.life, ["k"])
    assert handoff.scanned(["k", "l"]) == []


def test_a_key_is_forgotten_when_its_new_owner_has_acknowledged_it() -> None:
    handoff = leaving()
    handoff.scanned(["k"])
    assert handoff.sent_acknowledged(B.life, ["k"]) == [Forget(("k",))]
    assert handoff.sent_acknowledged(B.life, ["k"]) == []


def test_a_new_owner_is_told_done_after_its_last_acknowledgement() -> None:
    handoff = leaving()
    handoff.scanned(["k", "l"])
    assert handoff.scan_done() == []
    assert handoff.sent_acknowledged(B.life, ["k"]) == [Forget(("k",)), SendDone(B)]
    assert handoff.sent_acknowledged(C.life, ["l"]) == [Forget(("l",)), SendDone(C), Departed()]


def test_a_new_owner_is_not_told_done_before_the_scan_is() -> None:
    handoff = leaving()
    handoff.scanned(["k"])
    assert handoff.sent_acknowledged(B.life, ["k"]) == [Forget(("k",))]


def test_what_a_dead_owner_did_not_acknowledge_is_sent_to_its_next_life() -> None:
    handoff = leaving()
    handoff.scanned(["k"])
    handoff.gone(B.life)
    assert handoff.sent_acknowledged(B.life, ["k"]) == []
    assert handoff.reborn(NEXT_B) == [Send(NEXT_B, ("k",))]
    assert handoff.where("k", 0) == NEXT_B


def test_a_key_that_becomes_quiet_while_its_owner_is_dead_waits_for_the_next_life() -> None:
    handoff = leaving("k")
    handoff.gone(B.life)
    assert handoff.quiet("k") == []
    assert handoff.reborn(NEXT_B) == [Send(NEXT_B, ("k",))]


def test_the_next_life_of_an_owner_is_told_done_again() -> None:
    handoff = leaving()
    assert handoff.scan_done() == [SendDone(B), SendDone(C), Departed()]
    handoff.gone(B.life)
    assert handoff.reborn(NEXT_B) == [SendDone(NEXT_B)]
    assert handoff.reborn(NEXT_B) == []


def test_a_key_is_held_until_it_is_installed() -> None:
    handoff = arriving()
    assert handoff.moved(A.life, B.life, ["k"]) == [Install(("k",))]
    assert handoff.where("k", 0) is HOLD
    assert handoff.installed(["k"]) == [Release(("k",))]
    assert handoff.where("k", 0) is SERVE


def test_a_key_that_was_installed_is_not_overwritten_by_a_repeated_message() -> None:
    handoff = arriving()
    handoff.moved(A.life, B.life, ["k"])
    handoff.installed(["k"])
    assert handoff.moved(A.life, B.life, ["k"]) == [Install(())]


def test_an_install_that_was_cut_short_is_done_again() -> None:
    handoff = arriving()
    handoff.moved(A.life, B.life, ["k"])
    assert handoff.moved(A.life, B.life, ["k"]) == [Install(("k",))]


def test_a_key_without_state_is_served_when_its_old_owner_is_done() -> None:
    handoff = arriving()
    assert handoff.done(A.life, B.life) == [ReleaseAll(), Arrived()]
    assert handoff.done(A.life, B.life) == []
    assert handoff.where("k", 0) is SERVE


def test_a_key_is_served_when_its_old_owner_is_dead() -> None:
    handoff = arriving()
    assert handoff.gone(A.life) == [ReleaseAll(), Arrived()]
    assert handoff.where("k", 0) is SERVE


def test_a_key_that_is_being_installed_is_held_even_if_its_old_owner_dies() -> None:
    handoff = arriving()
    handoff.moved(A.life, B.life, ["k"])
    assert handoff.gone(A.life) == [ReleaseAll()]
    assert handoff.where("k", 0) is HOLD
    assert handoff.installed(["k"]) == [Release(("k",)), Arrived()]


def test_a_life_that_starts_after_the_death_of_an_old_owner_does_not_wait_for_it() -> None:
    handoff = Handoff(B, BEFORE, AFTER, {A.life})
    assert handoff.begin(()) == [Arrived()]
    assert handoff.where("k", 0) is SERVE


def test_a_life_that_starts_in_the_middle_of_a_change_waits_for_the_old_owners() -> None:
    after = Placement(2, (A, NEXT_B, C), points=1, pins=AFTER.pins)
    handoff = Handoff(NEXT_B, BEFORE, after, {B.life})
    assert handoff.begin(()) == []
    assert handoff.where("k", 0) is HOLD
    assert handoff.done(A.life, NEXT_B.life) == [ReleaseAll(), Arrived()]


@pytest.mark.parametrize(("from_life", "to_life"), [(A.life, B.life), (C.life, B.life), (A.life, NEXT_B.life)])
def test_what_a_dead_life_sent_or_another_life_was_meant_to_get_is_refused(from_life: int, to_life: int) -> None:
    handoff = arriving()
    if (from_life, to_life) == (A.life, B.life):
        handoff.gone(A.life)
    assert [type(action) for action in handoff.moved(from_life, to_life, ["k"])] == [Refuse]
    assert [type(action) for action in handoff.done(from_life, to_life)] == [Refuse]


@pytest.mark.parametrize("key", ["stays", "l", "to-a"])
def test_a_key_that_does_not_move_between_the_two_lives_is_refused(key: str) -> None:
    handoff = arriving()
    assert [type(action) for action in handoff.moved(A.life, B.life, ["k", key])] == [Refuse]
    assert handoff.installed(["k"]) == []


def test_a_key_that_comes_after_done_is_refused() -> None:
    handoff = arriving()
    handoff.done(A.life, B.life)
    assert [type(action) for action in handoff.moved(A.life, B.life, ["k"])] == [Refuse]


def test_in_a_rolling_restart_only_the_two_lives_of_the_shard_have_something_to_do() -> None:
    after = Placement(2, (A, NEXT_B), points=1, pins=BEFORE.pins)
    assert Handoff(A, BEFORE, after).begin(()) == [Departed(), Arrived()]
    assert Handoff(B, BEFORE, after).scan_done() == [SendDone(NEXT_B), Departed()]
    assert Handoff(NEXT_B, BEFORE, after).where("to-a", 0) is HOLD


def test_a_life_says_again_where_it_stands() -> None:
    handoff = arriving()
    assert handoff.standing() == []
    handoff.scan_done()
    handoff.done(A.life, B.life)
    assert handoff.standing() == [Departed(), Arrived()]


def test_the_keys_that_leave_are_counted() -> None:
    handoff = leaving("k")
    handoff.scanned(["l"])
    assert (handoff.keys_to_leave, handoff.keys_left) == (2, 0)
    handoff.sent_acknowledged(C.life, ["l"])
    assert (handoff.keys_to_leave, handoff.keys_left) == (1, 1)


def test_a_key_that_is_called_leaves_before_it_is_scanned_and_once() -> None:
    handoff = leaving()
    assert handoff.called("k") == [Send(B, ("k",))]
    assert handoff.called("k") == handoff.scanned(["k"]) == []
    handoff.sent_acknowledged(B.life, ["k"])
    assert handoff.called("k") == []


def test_a_key_that_is_called_waits_for_its_last_turn() -> None:
    handoff = leaving("k")
    assert handoff.called("k") == []
    assert handoff.quiet("k") == [Send(B, ("k",))]


def test_a_key_that_stays_or_arrives_or_is_called_once_its_next_owner_has_everything_is_not_sent() -> None:
    """The next owner has been told that no other key comes."""
    handoff = leaving()
    assert handoff.called("stays") == handoff.called("to-a") == []
    handoff.scan_done()
    assert handoff.called("k") == []


def test_a_key_without_state_that_is_called_as_others_are_on_their_way_goes_as_they_do() -> None:
    """Its next owner would else hold its calls until all of them are there."""
    before = Placement(1, (A, B), points=1, pins={"k": "a", "new": "a"})
    handoff = Handoff(A, before, Placement(2, (A, B), points=1, pins={"k": "b", "new": "b"}))
    handoff.begin(())
    handoff.scanned(["k"])
    handoff.scan_done()
    assert handoff.called("new") == [Send(B, ("new",))]
    assert handoff.sent_acknowledged(B.life, ["k"]) == [Forget(("k",))]
    assert handoff.sent_acknowledged(B.life, ["new"]) == [Forget(("new",)), SendDone(B), Departed()]


def test_of_a_key_that_is_awaited_the_life_is_known_that_has_to_hand_it_over() -> None:
    handoff = arriving()
    assert (handoff.has_arriving, handoff.sender_of("k")) == (True, A)
    handoff.moved(A.life, B.life, ["k"])
    assert handoff.sender_of("k") is None
    handoff.installed(["k"])
    assert handoff.sender_of("k") is None
    handoff.done(A.life, B.life)
    assert (handoff.has_arriving, handoff.sender_of("k without state")) == (False, None)


def test_a_key_whose_call_is_given_up_leaves_as_one_whose_call_has_ended() -> None:
    handoff = leaving("k")
    handoff.scan_done()
    assert handoff.give_up("k") == [Send(B, ("k",))]
    assert handoff.quiet("k") == []
    assert not handoff.is_busy("k")
    assert handoff.sent_acknowledged(B.life, ["k"]) == [Forget(("k",)), SendDone(B), Departed()]


def test_what_a_life_has_of_a_key_that_is_not_its_own_is_not_handed_over() -> None:
    """The new owner would refuse it for ever. It was left behind by code that wrote outside of a turn."""
    before = Placement(1, (A, B, C), points=1, pins=BEFORE.pins)
    after = Placement(2, (A, B, C), points=1, pins={**AFTER.pins, "to-a": "c"})
    handoff = Handoff(A, before, after)
    assert handoff.begin(["to-a"]) == []
    assert handoff.scanned(["to-a", "k"]) == [Drop(("to-a",)), Send(B, ("k",))]
    assert handoff.give_up("to-a") == []
