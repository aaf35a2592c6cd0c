"""What people are told of a cluster, by the store's view."""

import json
from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from onelane.cluster.coordination import Snapshot, StoredEntry
from onelane.cluster.machines import AppPart, ClusterKeys, ClusterView, MachineRecord, record_bytes
from onelane.cluster.overview import MachineState, ShardPlace, machine_row, overview_of, overview_row, states_of
from onelane.cluster.placements import AppEntry, Death, entry_bytes
from onelane.core.placement import Member, Placement

KEYS = ClusterKeys("arena")
A0, A1 = (Member(f"lobby-a{n}", f"10.0.0.11:5015{n}", f"a@10.0.0.11:700{n}", 3 + n) for n in (0, 1))
B0 = Member("lobby-b0", "10.0.0.12:50150", "b@10.0.0.12:7000", 9)
C0 = Member("lobby-c0", "10.0.0.13:50150", "c@10.0.0.13:7000", 12)
PLACED = AppEntry(Placement(7, (A0, A1, B0)), leases=((3, 100), (4, 100), (9, 200)))
CHANGING = replace(PLACED, following=Placement(8, (A0, A1, B0, C0)), leases=(*PLACED.leases, (12, 300)))
LEASES = {"a": 100, "b": 200, "c": 300}


def record(name: str, *lives: Member, **details: object) -> MachineRecord:
    host = f"10.0.0.1{' abc'.index(name)}"
    plain = MachineRecord(name=name, advertise=host, release="0.9.0", lease_s=5.0, start=f"{name}-1")
    return replace(plain, apps={"lobby": lives} if lives else {}, **details)  # type: ignore[arg-type]


def part(epoch: int, *, departed: tuple[int, ...] = (), arrived: tuple[int, ...] = ()) -> Mapping[str, AppPart]:
    return {"lobby": AppPart(epoch=epoch, departed=departed, arrived=arrived)}


A, B, C = record("a", A0, A1), record("b", B0), record("c", C0)


def view(*records: MachineRecord, app: AppEntry | None = PLACED, **others: bytes) -> ClusterView:
    """others: further entries, by their keys, with `__` for `/`."""
    rows = [StoredEntry(KEYS.machine(r.name), record_bytes(r), 1, 1, LEASES[r.name]) for r in records]
    rows += [
        StoredEntry(KEYS.candidate(LEASES[r.name]), r.name.encode(), LEASES[r.name], 1, LEASES[r.name]) for r in records
    ]
    rows += [] if app is None else [StoredEntry(KEYS.app("lobby"), entry_bytes(app), 1, 1)]
    rows += [StoredEntry(KEYS.prefix + key.replace("__", "/"), value, 1, 1) for key, value in others.items()]
    return ClusterView(KEYS, Snapshot(41, {entry.key: entry for entry in rows}))


def test_machines_are_told_with_their_lives_and_the_oldest_candidate_coordinates() -> None:
    overview = overview_of(view(B, replace(A, admin="http://10.0.0.11:9464")), {100: 3.5})
    assert (overview.name, overview.revision, overview.coordinator) == ("arena", 41, "a")
    a, b = overview.machines
    assert (a.name, a.state, a.coordinates, a.lease, a.lease_left_s) == ("a", MachineState.JOINED, True, 100, 3.5)
    assert (a.advertise, a.release, a.lease_s, a.admin) == ("10.0.0.11", "0.9.0", 5.0, "http://10.0.0.11:9464")
    assert [(row.shard, row.life, row.is_placed) for row in a.lives["lobby"]] == [
        ("lobby-a0", 3, True),
        ("lobby-a1", 4, True),
    ]
    assert (b.name, b.coordinates, b.lease_left_s, b.admin) == ("b", False, None, "")
    (lobby,) = overview.apps
    assert (lobby.name, lobby.epoch, lobby.shards, lobby.unserved, lobby.change) == ("lobby", 7, 3, (), None)


def test_a_machine_whose_clock_is_not_that_of_the_one_which_coordinates_is_told() -> None:
    a, b, c = overview_of(view(*(replace(r, ahead_s=s) for r, s in ((A, -2.0), (B, 3600.0), (C, 27.0))))).machines
    assert (a.fault, c.fault) == ("", "")
    assert b.fault == (
        "the clocks of two machines are too far apart: that of 'b' is 3600 s ahead of etcd's and that of 'a' is 2 s "
        "behind etcd's"
    )


def test_a_life_that_owns_no_keys_yet_is_told_apart() -> None:
    newer = replace(B0, socket="b@10.0.0.12:7001", life=10)
    _, b = overview_of(view(A, record("b", B0, newer))).machines
    assert [(row.life, row.is_placed) for row in b.lives["lobby"]] == [(9, True), (10, False)]


def test_without_machines_and_placements_there_is_nobody() -> None:
    overview = overview_of(view(app=None))
    assert (overview.coordinator, overview.machines, overview.apps) == ("", (), ())
    assert overview_row(overview)["coordinator"] is None


def test_an_app_without_a_placement_has_epoch_0() -> None:
    (lobby,) = overview_of(view(A, app=None)).apps
    assert (lobby.epoch, lobby.shards) == (0, 0)


def test_a_machine_whose_record_is_gone_while_keys_are_its_own_is_missing() -> None:
    overview = overview_of(view(A))
    a, b = overview.machines
    assert (a.state, b.name, b.state, b.lease) == (MachineState.JOINED, "b", MachineState.MISSING, 200)
    assert [row.shard for row in b.lives["lobby"]] == ["lobby-b0"]
    assert overview.apps[0].unserved == (ShardPlace("lobby-b0", "b"),)
    assert states_of(overview) == {MachineState.JOINED: 1, MachineState.MISSING: 1}


def test_a_machine_that_came_back_stands_beside_what_it_was_given_up_as() -> None:
    returned = view(A)
    entry = StoredEntry(KEYS.machine("b"), record_bytes(record("b")), 9, 9, 201)
    returned = replace(returned, snapshot=Snapshot(42, {**returned.snapshot.entries, entry.key: entry}))
    states = [(machine.name, machine.state, machine.lease) for machine in overview_of(returned).machines]
    assert states[1:] == [("b", MachineState.MISSING, 200), ("b", MachineState.JOINED, 201)]


def test_a_machine_without_a_link_address_is_missing_without_a_name() -> None:
    """Its entry was written by hand, or by another release."""
    odd = replace(PLACED, placement=Placement(7, (A0, A1, replace(B0, socket="/run/b.sock"))))
    machine, _ = overview_of(view(A, app=odd)).machines
    assert (machine.name, machine.state) == ("", MachineState.MISSING)
    assert overview_row(overview_of(view(A, app=odd)))["apps"]["lobby"]["unserved"] == [
        {"name": "lobby-b0", "machine": None}
    ]


def test_the_name_of_a_shard_has_its_machine() -> None:
    named = replace(B0, name="b/lobby-0", socket="/run/b.sock")
    _, b = overview_of(view(A, app=replace(PLACED, placement=Placement(7, (A0, A1, named))))).machines
    assert (b.name, b.state) == ("b", MachineState.MISSING)


def test_a_machine_that_an_operator_forgets_says_so_with_its_record_and_without() -> None:
    for records in ((A, B), (A,)):
        _, b = overview_of(view(*records, forgotten__200=b"5.0")).machines
        assert (b.name, b.state) == ("b", MachineState.FORGOTTEN)


def test_a_record_of_a_newer_release_is_told_with_the_reason() -> None:
    newer = b'{"version": 9, "oldest_reader": 9, "machine": {"release": "7.0"}}'
    _, d = overview_of(view(A, app=None, machines__d=newer)).machines
    assert (d.state, d.fault) == (
        MachineState.UNREADABLE,
        "it runs onelane 7.0, whose records (version 9) are newer",
    )


def test_a_change_is_told_with_what_it_waits_for() -> None:
    (lobby,) = overview_of(view(A, B, C, app=CHANGING)).apps
    change = lobby.change
    assert change is not None
    assert (change.before, change.after, change.what) == (7, 8, "lobby-c0 joins")
    assert change.waits_for == tuple(
        ShardPlace(name, machine)
        for name, machine in (("lobby-a0", "a"), ("lobby-a1", "a"), ("lobby-b0", "b"), ("lobby-c0", "c"))
    )
    reported = replace(A, parts=part(8, departed=(3, 4), arrived=(3, 4)))
    (lobby,) = overview_of(view(reported, B, C, app=CHANGING)).apps
    assert lobby.change is not None
    assert lobby.change.waits_for == (ShardPlace("lobby-b0", "b"), ShardPlace("lobby-c0", "c"))


def test_reports_of_another_change_are_none_of_this_one() -> None:
    old = replace(A, parts=part(7, departed=(3, 4), arrived=(3, 4)))
    (lobby,) = overview_of(view(old, B, C, app=CHANGING)).apps
    assert lobby.change is not None
    assert len(lobby.change.waits_for) == 4


def test_a_death_in_a_change_and_a_stand_in_are_told() -> None:
    dying = replace(CHANGING, deaths=(Death(12),), stand_ins={"lobby-c0": "b"})
    overview = overview_of(view(A, B, app=dying))
    change = overview.apps[0].change
    assert change is not None
    assert (change.dead, change.stand_ins) == (("lobby-c0",), {"lobby-c0": "b"})
    assert ShardPlace("lobby-c0", "c") not in change.waits_for
    assert [machine.name for machine in overview.machines] == ["a", "b", "c"]


@given(st.data())
def test_a_change_waits_for_the_lives_that_its_coordinator_waits_for(data: st.DataObject) -> None:
    lives = [member.life for member in (A0, A1, B0, C0)]
    dead = data.draw(st.lists(st.sampled_from(lives), unique=True))
    newer = replace(C0, life=30)
    deaths = tuple(Death(life, newer if life == C0.life and data.draw(st.booleans()) else None) for life in dead)
    reports = [tuple(data.draw(st.sets(st.sampled_from([*lives, 30])))) for _ in range(2)]
    entry = replace(CHANGING, deaths=deaths)
    change, _ = entry.change()
    for life in reports[0]:
        change.departed(life)
    for life in reports[1]:
        change.arrived(life)
    reporting = replace(A, parts=part(8, departed=reports[0], arrived=reports[1]))
    shown = overview_of(view(reporting, B, C, app=entry)).apps[0].change
    expected = {9: B0, 3: A0, 4: A1, 12: C0, 30: newer}
    assert shown is not None
    assert [place.shard for place in shown.waits_for] == sorted(expected[life].name for life in change.waits_for())


def test_what_changes_is_said_in_words() -> None:
    newer = replace(A1, life=20)
    change = replace(PLACED, following=Placement(8, (A0, newer, C0), pins={"k": "lobby-a0"}))
    (lobby,) = overview_of(view(A, B, C, app=change)).apps
    assert lobby.change is not None
    assert lobby.change.what == "lobby-c0 joins, lobby-b0 leaves, lobby-a1 gets its next process, 1 pin"


def test_pins_are_counted_and_no_key_is_told() -> None:
    pinned = view(A, B, pins__lobby=json.dumps({"secret-key": "lobby-a0"}).encode())
    overview = overview_of(pinned)
    assert overview.apps[0].pins == 1
    assert "secret-key" not in json.dumps(overview_row(overview))


def test_what_cannot_be_read_is_a_fault_of_its_app_alone() -> None:
    (lobby,) = overview_of(view(A, app=None, apps__lobby=b'{"version": 9}')).apps
    assert lobby.fault == "the placement of app 'lobby' was written by a newer release: upgrade this machine"
    (lobby,) = overview_of(view(A, B, pins__lobby=b"?")).apps
    assert "the pins of app 'lobby' cannot be read" in lobby.fault
    twice = replace(A, parts={"lobby": AppPart(placed=(A0, replace(A1, name="lobby-a0")))})
    (lobby,) = overview_of(view(twice, B)).apps
    assert (lobby.fault, lobby.epoch) == ("app 'lobby': two lives are called lobby-a0", 7)


def test_as_json_it_has_one_shape() -> None:
    row = overview_row(overview_of(view(A, B, C, app=CHANGING), {100: 3.5}))
    assert json.loads(json.dumps(row)) == row
    assert {name: value for name, value in row.items() if name != "machines"} == {
        "name": "arena",
        "revision": 41,
        "coordinator": "a",
        "apps": {
            "lobby": {
                "epoch": 7,
                "shards": 3,
                "unserved": [],
                "change": {
                    "what": "lobby-c0 joins",
                    "from": 7,
                    "to": 8,
                    "since_s": None,
                    "waits_for": [
                        {"name": "lobby-a0", "machine": "a"},
                        {"name": "lobby-a1", "machine": "a"},
                        {"name": "lobby-b0", "machine": "b"},
                        {"name": "lobby-c0", "machine": "c"},
                    ],
                    "dead": [],
                    "stand_ins": {},
                },
                "pins": 0,
                "fault": "",
            }
        },
    }
    assert row["machines"][1] == machine_row(overview_of(view(A, B)).machines[1])
    assert row["machines"][1] == {
        "name": "b",
        "state": "joined",
        "coordinates": False,
        "advertise": "10.0.0.12",
        "admin": None,
        "release": "0.9.0",
        "lease": "c8",
        "lease_s": 5.0,
        "lease_left_s": None,
        "apps": {"lobby": [{"name": "lobby-b0", "life": 9, "address": "10.0.0.12:50150", "placed": True}]},
        "since_s": None,
        "fault": "",
    }
