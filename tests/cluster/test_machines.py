"""The records of a cluster's machines, and who coordinates."""

from dataclasses import replace

import msgspec
import pytest
from onelane.cluster.coordination import EntryChanges, Snapshot, StoredEntry
from onelane.cluster.machines import (
    ClusterKeys,
    ClusterView,
    MachineRecord,
    UnreadableRecord,
    objections,
    record_bytes,
    record_of,
    with_clock,
)
from onelane.core.placement import Member

KEYS = ClusterKeys("arena")
A = MachineRecord(
    name="a",
    advertise="10.0.0.11",
    release="0.1.0",
    lease_s=5.0,
    start="s1",
    trust="sha256:1",
    apps={"lobby": (Member("lobby-0", "10.0.0.11:50151", "/run/lobby-0.sock", 3),)},
    settings={"lobby": "d1"},
)
B = replace(A, name="b", advertise="10.0.0.12", start="s2")


def entry(key: str, value: bytes = b"", created: int = 1, changed: int = 1) -> StoredEntry:
    return StoredEntry(key, value, created, changed)


def view(*entries: StoredEntry) -> ClusterView:
    return ClusterView(KEYS, Snapshot(9, {entry.key: entry for entry in entries}))


def test_a_record_is_read_as_it_was_written() -> None:
    assert record_of(record_bytes(A), "a") == A


def test_a_newer_record_that_this_release_understands_is_read_without_what_it_does_not_know() -> None:
    row = msgspec.json.decode(record_bytes(A))
    row["version"], row["machine"]["racks"] = 2, ["r1"]
    assert record_of(msgspec.json.encode(row), "a") == A


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"version": 7, "oldest_reader": 2, "machine": {"release": "9.0"}}', "it runs onelane 9.0"),
        (b"", "none of a machine"),
        (b"[]", "none of a machine"),
        (b'{"version": 1}', "none of a machine"),
        (b'{"version": 1, "oldest_reader": 1, "machine": {"name": "a"}}', "none of a machine"),
        (b'{"version": null, "oldest_reader": 1, "machine": 7}', "none of a machine"),
        (record_bytes(B), "that of b"),
    ],
)
def test_a_record_that_cannot_be_read_says_why_and_keeps_the_machine_from_joining(value: bytes, reason: str) -> None:
    record = record_of(value, "a")
    assert isinstance(record, UnreadableRecord)
    assert reason in record.reason
    (fault,) = objections(B, [record])
    assert "machine 'a' cannot be understood" in fault


def test_machines_that_are_set_up_alike_join_each_other_and_a_machine_itself() -> None:
    assert objections(A, [B]) == objections(A, [A]) == []
    assert objections(replace(A, settings={"profile": "d7"}), [B]) == []


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        (replace(A, start="s2", advertise="10.0.0.12"), "a machine 'a' is there already, at 10.0.0.12"),
        (replace(B, trust="sha256:2"), "machine 'b' trusts another authority"),
        (replace(B, settings={"lobby": "d2"}), "app 'lobby' is set up otherwise on machine 'b'"),
    ],
)
def test_what_keeps_two_machines_apart_is_told_with_its_name(other: MachineRecord, fault: str) -> None:
    (seen,) = objections(A, [other])
    assert fault in seen


def test_a_view_shows_the_machines_of_its_own_cluster_alone() -> None:
    other = ClusterKeys("arena2").machine("c")
    shown = view(entry(KEYS.machine("b"), record_bytes(B)), entry(KEYS.machine("a"), record_bytes(A)), entry(other))
    assert shown.machines() == [A, B]
    assert not other.startswith(KEYS.prefix)


def test_the_oldest_candidate_coordinates_and_the_next_one_once_it_is_gone() -> None:
    first, second = entry(KEYS.candidate(70), created=5), entry(KEYS.candidate(8), created=6)
    assert view().coordinator() is None
    shown = view(second, first)
    assert shown.coordinator() == first
    assert shown.after(EntryChanges(10, ((first.key, None),))).coordinator() == second


def test_a_view_follows_what_changes() -> None:
    shown = view(entry(KEYS.machine("a"), record_bytes(A)))
    added = entry(KEYS.machine("b"), record_bytes(B), 10, 10)
    later = shown.after(EntryChanges(11, ((added.key, added), (KEYS.machine("a"), None))))
    assert later.machines() == [B]
    assert later.snapshot.revision == 11
    assert (shown.machines(), later.entry("b"), later.entry("a")) == ([A], added, None)


def test_of_a_view_that_follows_another_only_what_is_new_is_parsed() -> None:
    """A change of placement is some views, and each is looked at by several."""
    before = view(entry(KEYS.machine("a"), record_bytes(A)), entry(KEYS.machine("b"), record_bytes(B)))
    moved = entry(KEYS.machine("b"), record_bytes(replace(B, release="0.2.0")), changed=10)
    (a, _), (same_a, other_b) = before.machines(), before.after(EntryChanges(10, ((moved.key, moved),))).machines()
    assert same_a is a
    assert other_b == replace(B, release="0.2.0")


@pytest.mark.parametrize("loopback", ["127.0.0.1", "::1", "localhost"])
@pytest.mark.parametrize("is_mine", [True, False])
def test_an_address_that_the_other_machine_cannot_reach_is_told_by_whose_it_is(loopback: str, is_mine: bool) -> None:
    near = replace(A, advertise=loopback)
    (fault,) = objections(near, [B]) if is_mine else objections(B, [near])
    assert fault == (
        f"machine 'a' advertises {loopback}, which machine 'b' at 10.0.0.12 cannot reach: set `advertise` of 'a' to an "
        "address of its own"
    )


def test_machines_on_one_host_may_advertise_its_loopback_addresses() -> None:
    assert objections(replace(A, advertise="127.0.0.1"), [replace(B, advertise="localhost")]) == []


@pytest.mark.parametrize(
    ("last_s", "seen_s", "ahead_s"),
    [(None, None, None), (None, 0.0, 0.0), (7.0, None, 7.0), (7.0, 37.0, 7.0), (7.0, 38.0, 38.0), (7.0, -24.0, -24.0)],
    ids=["nobody knows", "first look", "nobody knows now", "not set", "set ahead", "set back"],
)
def test_a_record_has_another_clock_only_where_the_clock_was_set(
    last_s: float | None, seen_s: float | None, ahead_s: float | None
) -> None:
    """Two looks differ by what an answer takes and by whole seconds: no write for that."""
    assert with_clock(replace(A, ahead_s=last_s), seen_s) == replace(A, ahead_s=ahead_s)
