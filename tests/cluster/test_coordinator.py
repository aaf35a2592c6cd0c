"""What a coordinator writes next, decision by decision. `test_coordinator_explored` goes through their orders."""

from dataclasses import replace

import pytest
from onelane.cluster.coordinator import AppLives, next_entry
from onelane.cluster.machines import AppPart, MachineRecord
from onelane.cluster.placements import AppEntry, Death, PlacementRefused
from onelane.core.placement import Member, Placement

A0, A1, B0 = (Member(f"lobby-{n}", f"10.0.0.{n}:1", f"s{n}", life) for n, life in ((0, 1), (1, 2), (2, 3)))
NEXT_B = replace(B0, socket="s9", life=9)
PLACED = AppEntry(Placement(7, (A0, A1)), leases=((1, 11), (2, 11)))
BOTH = AppEntry(Placement(7, (A0, A1, B0)), leases=((1, 11), (2, 11), (3, 12)))


def record(name: str, *running: Member, part: AppPart | None = None) -> MachineRecord:
    """part: without it, all lives that run are to own keys."""
    parts = {"lobby": AppPart(placed=running) if part is None else part}
    return MachineRecord(
        name=name, advertise="h", release="0", lease_s=5.0, start="s", apps={"lobby": running}, parts=parts
    )


A, B = record("a", A0, A1), record("b", B0)


def lives(*records: MachineRecord, ended: frozenset[int] = frozenset()) -> AppLives:
    leases = {"a": 11, "b": 12}
    return AppLives("lobby", {leases[record.name]: record for record in records}, ended)


def following(entry: AppEntry | None) -> Placement:
    assert entry is not None
    assert entry.following is not None
    return entry.following


def test_the_first_placement_has_the_lives_that_are_ready_and_their_leases() -> None:
    assert next_entry(None, lives()) is None
    assert next_entry(None, lives(record("a", A0, part=AppPart()))) is None
    first = next_entry(None, lives(A, B), points=64, first_epoch=7, pins={"k": "lobby-1", "j": "lobby-9"})
    assert first == replace(BOTH, placement=Placement(7, (A0, A1, B0), 64, {"k": "lobby-1"}))


def test_a_machine_counts_by_its_shards() -> None:
    """Each has the same weight on the ring, so a machine has as many parts of the keys as it has shards."""
    assert following(next_entry(PLACED, lives(A, B))).members == (A0, A1, B0)
    assert next_entry(BOTH, lives(A, B)) is None


def test_a_machine_leaves_by_wanting_no_keys_and_runs_on_until_they_have_moved() -> None:
    changed = next_entry(BOTH, lives(A, record("b", B0, part=AppPart())))
    assert following(changed).members == (A0, A1)
    assert changed is not None
    assert changed.deaths == ()


def test_a_change_has_the_trace_of_the_machine_that_wants_it_and_the_next_one_has_none() -> None:
    wants = record("b", B0, part=AppPart(traceparent="00-1-2-01"))
    changed = next_entry(BOTH, lives(A, wants))
    assert changed is not None
    assert changed.traceparent == "00-1-2-01"
    assert changed.ended(following(changed)).traceparent == ""
    assert next_entry(PLACED, lives(A, B)) == replace(changed_to(PLACED, A0, A1, B0), leases=BOTH.leases)


def changed_to(entry: AppEntry, *members: Member) -> AppEntry:
    return entry.begun(replace(entry.placement, epoch=entry.placement.epoch + 1, members=members))


def test_the_lives_of_an_ended_lease_are_dead_and_those_of_a_missing_record_may_be_alive() -> None:
    assert next_entry(BOTH, lives(A)) is None
    changed = next_entry(BOTH, lives(A, ended=frozenset({12})))
    assert following(changed).members == (A0, A1)
    assert changed is not None
    assert changed.deaths == (Death(B0.life),)


def test_a_shard_whose_process_has_ended_keeps_its_place_until_its_next_life_is_there() -> None:
    waits = record("b", part=AppPart(placed=(B0,)))
    assert next_entry(BOTH, lives(A, waits)) is None
    named = next_entry(BOTH, lives(A, record("b", NEXT_B)))
    assert named == AppEntry(Placement(7, (A0, A1, NEXT_B)), leases=((1, 11), (2, 11), (9, 12)))


def test_a_life_that_replaces_one_that_runs_takes_over_from_it_in_a_change() -> None:
    changed = next_entry(BOTH, lives(A, record("b", B0, NEXT_B, part=AppPart(placed=(NEXT_B,)))))
    assert following(changed).members == (A0, A1, NEXT_B)
    assert changed is not None
    assert changed.placement.members == (A0, A1, B0)


def test_pins_are_a_change_of_their_own_and_go_with_their_shard() -> None:
    pins = {"k": "lobby-2"}
    assert next_entry(PLACED, lives(A), pins=pins) is None
    assert following(next_entry(BOTH, lives(A, B), pins=pins)).pins == pins
    pinned = replace(BOTH, placement=replace(BOTH.placement, pins=pins))
    assert following(next_entry(pinned, lives(A, B))).pins == {}
    unpinned = next_entry(pinned, lives(A, ended=frozenset({12})), pins=pins)
    assert following(unpinned).pins == {}


def test_when_all_machines_are_gone_the_placement_waits_for_one() -> None:
    assert next_entry(BOTH, lives(ended=frozenset({11, 12}))) is None


CHANGING = replace(BOTH.begun(Placement(8, (A0, A1))), leases=BOTH.leases)
LEAVING_B = AppPart(epoch=8, departed=(3,))


def test_a_change_ends_with_the_reports_of_all_its_lives_and_reports_of_another_one_do_not_count() -> None:
    reports = AppPart(placed=(A0, A1), epoch=8, departed=(1, 2), arrived=(1, 2))
    machines = lives(record("a", A0, A1, part=reports), record("b", B0, part=LEAVING_B))
    assert next_entry(CHANGING, machines) == replace(PLACED, placement=Placement(8, (A0, A1)))
    late = replace(reports, epoch=7)
    assert next_entry(CHANGING, lives(record("a", A0, A1, part=late), record("b", B0, part=LEAVING_B))) is None


JOINING = replace(PLACED.begun(Placement(8, (A0, A1, B0))), leases=BOTH.leases)


def test_a_shard_that_is_owed_keys_and_whose_machine_is_given_up_gets_a_stand_in() -> None:
    dead = next_entry(JOINING, lives(A, ended=frozenset({12})))
    assert dead == replace(JOINING, deaths=(Death(B0.life),))
    asked = next_entry(dead, lives(A, ended=frozenset({12})))
    assert asked is not None
    assert asked.stand_ins == {"lobby-2": "a"}
    part = AppPart(placed=(A0, A1), stand_ins=(NEXT_B,))
    followed = next_entry(asked, lives(record("a", A0, A1, NEXT_B, part=part), ended=frozenset({12})))
    assert followed is not None
    assert followed.deaths == (Death(B0.life), Death(B0.life, NEXT_B))
    assert dict(followed.leases)[9] == 11


def test_a_shard_whose_machine_starts_it_again_needs_no_stand_in() -> None:
    dead = replace(JOINING, deaths=(Death(B0.life),))
    assert next_entry(dead, lives(A, record("b", part=AppPart(placed=(B0,))))) is None


def test_two_machines_whose_shards_have_one_name_are_refused_by_it() -> None:
    with pytest.raises(PlacementRefused, match="app 'lobby': two lives are called lobby-0"):
        next_entry(PLACED, lives(A, record("b", replace(A0, life=5))))
