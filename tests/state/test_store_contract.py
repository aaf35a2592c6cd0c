"""What every store promises."""

import contextlib
import multiprocessing
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from onelane.errors import Fenced, StoreUnavailable
from onelane.state.store import NEVER_WRITTEN, KeyState, KeyWrite, Stamp, Store, scan

from tests.bounds import BOUND_S
from tests.running_app import ROOT
from tests.state.places import AT, STORES, StorePlace, at_place, cart, full, write

pytestmark = pytest.mark.slow


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorePlace]:
    with at_place(request, tmp_path, request.param) as place:
        yield place


@pytest.fixture(params=["sqlite", "postgresql"])
def durable_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorePlace]:
    with at_place(request, tmp_path, request.param) as place:
        yield place


def values(place: StorePlace, *keys: str) -> list[bytes]:
    """The value of each key's first row, or nothing, as another life reads it."""
    states = place.open(life=99).read(keys)
    return [states[key].rows[0].value if key in states and states[key].rows else b"" for key in keys]


def test_the_settings_find_every_store_by_its_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["onelane.stores"]
    assert {name: EntryPoint(name, value, "onelane.stores").load() for name, value in points.items()} == STORES


def test_what_was_committed_is_loaded_as_it_was(place: StorePlace) -> None:
    place.open().commit([full("k"), write("l", b"2", epoch=7)], at=AT)
    states = place.open(life=2).load(["k", "l"], epoch=7, at=AT)
    expected = full("k")
    assert states["k"] == KeyState("k", Stamp(1, 1), expected.rows, expected.answers, expected.reminders)
    assert states["l"] == KeyState("l", Stamp(7, 1), (cart(b"2"),))


def test_a_key_without_state_is_loaded_as_an_empty_one_and_read_as_none(place: StorePlace) -> None:
    store = place.open()
    assert store.read(["k"]) == {}
    assert store.load(["k"], epoch=1, at=AT) == {"k": KeyState("k", NEVER_WRITTEN)}
    assert store.load([], epoch=1, at=AT) == {}
    store.commit([], at=AT)


def test_a_write_replaces_and_drops_what_it_names_and_leaves_the_rest(place: StorePlace) -> None:
    store = place.open()
    store.commit([full("k"), full("l")], at=AT)
    change = KeyWrite(
        "k", 1, (cart(b"new"),), dropped_rows=("links",), dropped_answers=("a-1",), dropped_reminders=("r-2", "none")
    )
    store.commit([change], at=AT)
    state = store.read(["k"])["k"]
    assert state.rows == (cart(b"new"),)
    assert [answer.id for answer in state.answers] == ["a-2"]
    assert [reminder.id for reminder in state.reminders] == ["r-1"]
    assert store.read(["l"])["l"].rows == full("l").rows


def test_what_a_write_both_drops_and_writes_is_written(place: StorePlace) -> None:
    store = place.open()
    store.commit([write("k", b"old")], at=AT)
    store.commit([KeyWrite("k", 1, (cart(b"new"),), dropped_rows=("carts",))], at=AT)
    assert values(place, "k") == [b"new"]


@pytest.mark.parametrize("key", ["%00%FF", "a/b", "ä".encode().hex(), "'; DROP TABLE rows; --", "k" * 1024])
def test_keys_of_any_text_do_not_touch_each_other(place: StorePlace, key: str) -> None:
    store = place.open()
    store.commit([write(key, b"1"), write(key[:-1], b"2"), write(key + "0", b"3")], at=AT)
    assert values(place, key, key[:-1], key + "0") == [b"1", b"2", b"3"]


def test_a_value_of_many_megabytes_comes_back(place: StorePlace) -> None:
    value = bytes(range(256)) * (32 * 1024)
    place.open().commit([write("k", value), write("l", b"")], at=AT)
    assert values(place, "k", "l") == [value, b""]


def test_a_key_occurs_once_in_a_commit(place: StorePlace) -> None:
    store = place.open()
    with pytest.raises(ValueError, match="'k' occurs twice"):
        store.commit([write("k", b"1"), write("k", b"2")], at=AT)
    assert values(place, "k") == [b""]


@pytest.mark.parametrize(("claim", "stamp"), [((2, 1), (1, 9)), ((2, 2), (2, 1)), ((2, 1), (1, 1))])
def test_a_write_and_a_load_with_a_lower_stamp_than_the_claim_s_change_nothing(
    place: StorePlace, claim: tuple[int, int], stamp: tuple[int, int]
) -> None:
    newer, older = place.open(life=claim[1]), place.open(life=stamp[1])
    older.commit([write("k", b"before", epoch=stamp[0])], at=AT)
    assert newer.load(["k"], epoch=claim[0], at=AT)["k"].rows == (cart(b"before"),)
    with pytest.raises(Fenced) as fenced:
        older.commit([write("other", b"1", stamp[0]), write("k", b"late", stamp[0])], at=AT)
    assert fenced.value.keys == ("k",)
    with pytest.raises(Fenced):
        older.load(["other", "k"], epoch=stamp[0], at=AT)
    assert values(place, "k", "other") == [b"before", b""]
    # Neither has the failed load claimed the other key.
    assert older.load(["other"], epoch=0, at=AT)["other"].rows == ()
    newer.commit([write("k", b"after", claim[0])], at=AT)
    assert values(place, "k") == [b"after"]


@pytest.mark.parametrize(("first", "second"), [((1, 1), (1, 1)), ((1, 1), (1, 2)), ((1, 9), (2, 1))])
def test_an_equal_or_higher_stamp_may_write_with_and_without_a_load(
    place: StorePlace, first: tuple[int, int], second: tuple[int, int]
) -> None:
    place.open(life=first[1]).load(["k"], epoch=first[0], at=AT)
    later = place.open(life=second[1])
    later.commit([write("k", b"1", second[0])], at=AT)
    later.load(["k"], epoch=second[0], at=AT)
    later.commit([write("k", b"2", second[0])], at=AT)
    assert values(place, "k") == [b"2"]


def test_a_claim_of_a_key_without_state_fences_too(place: StorePlace) -> None:
    older, newer = place.open(life=1), place.open(life=2)
    older.load(["k"], epoch=1, at=AT)
    newer.load(["k"], epoch=2, at=AT)
    with pytest.raises(Fenced):
        older.commit([write("k", b"late", 1)], at=AT)
    assert values(place, "k") == [b""]


def test_a_write_fences_as_a_claim_does_also_one_that_drops_the_last_row(place: StorePlace) -> None:
    older, newer = place.open(life=1), place.open(life=2)
    older.commit([write("k", b"1", 1)], at=AT)
    newer.commit([KeyWrite("k", 2, dropped_rows=("carts",))], at=AT)
    with pytest.raises(Fenced):
        older.commit([write("k", b"late", 1)], at=AT)
    assert place.open().read(["k"])["k"] == KeyState("k", Stamp(2, 2))


def test_a_claim_does_not_change_which_write_was_the_last(place: StorePlace) -> None:
    place.open(life=1).commit([write("k", b"1", 1)], at=AT)
    assert place.open(life=4).load(["k"], epoch=3, at=AT)["k"].written == Stamp(1, 1)


def test_the_newest_stamp_is_that_of_any_claim_or_write(place: StorePlace) -> None:
    store = place.open(life=9)
    assert store.newest() == NEVER_WRITTEN
    store.commit([write("k", b"1", epoch=11)], at=AT)
    place.open(life=12).load(["a"], epoch=2, at=AT)
    assert store.newest() == Stamp(11, 9)
    place.open(life=12).load(["a"], epoch=11, at=AT)
    assert store.newest() == Stamp(11, 12)


def test_the_error_names_every_fenced_key(place: StorePlace) -> None:
    keys = [f"k{number}" for number in range(5)]
    place.open(life=2).load(keys[1:], epoch=2, at=AT)
    with pytest.raises(Fenced, match="'k1', 'k2', 'k3' and 1 more") as fenced:
        place.open(life=1).load(keys, epoch=1, at=AT)
    assert fenced.value.keys == ("k1", "k2", "k3", "k4")


def test_keys_are_listed_in_order_a_page_at_a_time(place: StorePlace) -> None:
    store = place.open()
    keys = sorted(f"k{number}%2F" for number in range(25))
    store.commit([write(key, key.encode()) for key in reversed(keys)], at=AT)
    assert store.keys(limit=10) == keys[:10]
    assert store.keys(after=keys[9], limit=10) == keys[10:20]
    assert store.keys(after=keys[-1]) == []
    assert [state.rows[0].value.decode() for state in scan(store, limit=4)] == keys


def test_keys_idle_for_long_are_listed_by_the_dict_that_has_them(place: StorePlace) -> None:
    store = place.open()
    store.commit([full("a"), write("b", b"1"), full("loaded")], at=AT)
    store.commit([full("fresh")], at=AT + 100)
    store.load(["loaded"], epoch=1, at=AT + 100)
    assert store.idle_keys("carts", before=AT + 50) == ["a", "b"]
    assert store.idle_keys("carts", before=AT + 50, limit=1) == ["a"]
    assert store.idle_keys("carts", before=AT + 50, after="a") == ["b"]
    assert store.idle_keys("links", before=AT + 50) == ["a"]
    assert store.idle_keys("links", before=AT) == []


def test_reminders_are_listed_in_the_order_in_which_they_are_due(place: StorePlace) -> None:
    store = place.open()
    store.commit([full("b"), full("a")], at=AT)
    due = store.reminders(before=30.25)
    assert [(reminder.due, reminder.key, reminder.reminder.data) for reminder in due] == [
        (20.0, "a", b"now"),
        (20.0, "b", b"now"),
    ]
    later = store.reminders(before=float("inf"), after=due[0].place, limit=2)
    assert [reminder.place for reminder in later] == [(20.0, "b", "r-1"), (30.25, "a", "r-2")]
    dropped = {"a": ("r-1",), "b": ("r-1", "r-2")}
    store.commit([KeyWrite(key, 1, dropped_reminders=names) for key, names in dropped.items()], at=AT)
    assert [reminder.place for reminder in store.reminders(before=float("inf"))] == [(30.25, "a", "r-2")]


def test_old_answers_and_empty_keys_are_forgotten_a_few_at_a_time(place: StorePlace) -> None:
    store = place.open()
    store.commit([full("k"), full("l")], at=AT)
    store.load(["claimed", "claimed too"], epoch=1, at=AT)
    store.load(["new"], epoch=1, at=AT + 100)
    while store.forget(answers_before=11.0, claims_before=AT + 50, limit=1):
        pass
    assert store.keys() == ["k", "l", "new"]
    assert [[answer.id for answer in state.answers] for state in scan(store)] == [["a-2"], ["a-2"], []]


def test_counts_are_of_everything(place: StorePlace) -> None:
    store = place.open()
    store.commit([full("k"), write("l", b"123")], at=AT)
    store.load(["claimed"], epoch=1, at=AT)
    counts = store.counts()
    assert (counts.keys, dict(counts.rows), counts.value_bytes) == (3, {"carts": 2, "links": 1}, 5)
    assert (counts.answers, counts.reminders) == (2, 2)


def test_what_a_killed_process_had_reported_is_on_disk(durable_place: StorePlace) -> None:
    script = f"""
from tests.state.places import StorePlace, write
from pathlib import Path
store = StorePlace({durable_place.kind!r}, Path({str(durable_place.folder)!r}), {durable_place.dsn!r}).open()
for number in range(10**6):
    store.commit([write("k", b"%d" % number), write(f"k{{number}}", b"x" * 100)], at=0.0)
    print(number, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        reported = [int(child.stdout.readline()) for _ in range(50)]
        child.kill()
        reported += [int(line) for line in child.stdout.read().splitlines()]
    store = durable_place.open(life=2)
    last = int(store.load(["k"], epoch=1, at=AT)["k"].rows[0].value)
    # A commit may have ended between the report and the death.
    assert last in (reported[-1], reported[-1] + 1)
    assert len(list(scan(store))) == last + 2


def claim_all(place: StorePlace, life: int, results: "multiprocessing.Queue[tuple[int, int]]") -> None:
    """Open the store, together with other processes; load and write the keys that no later life has claimed."""
    store = place.open(life=life)
    writes = 0
    for number in range(30):
        with contextlib.suppress(Fenced):
            store.load([f"k{number}", "shared"], epoch=1, at=AT)
            store.commit([write("shared", b"%d" % life), write(f"k{number}", b"%d" % life)], at=AT)
            writes += 1
    place.close()
    results.put((life, writes))


def test_processes_that_start_at_once_all_open_it_and_the_last_life_has_every_key(durable_place: StorePlace) -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[int, int]] = context.Queue()
    children = [context.Process(target=claim_all, args=(durable_place, life, results)) for life in (1, 2)]
    for child in children:
        child.start()
    writes = dict(results.get(timeout=BOUND_S) for _ in children)
    for child in children:
        child.join(30)
    assert writes[2] == 30
    assert {state.rows[0].value for state in scan(durable_place.open())} == {b"2"}


def test_what_a_commit_of_many_turns_costs(durable_place: StorePlace) -> None:
    store = durable_place.open()
    timings = []
    for _ in range(5):
        writes = [write(f"k{number}", bytes(500)) for number in range(256)]
        began = time.perf_counter()
        store.commit(writes, at=AT)
        timings.append(time.perf_counter() - began)
    print(f"{durable_place.kind}: 256 turns in one commit, {min(timings) * 1000:.1f} ms")  # noqa: T201 - pytest -s shows it
    assert store.counts().keys == 256


def test_a_probe_leaves_nothing_behind(place: StorePlace) -> None:
    store = place.open()
    store.commit([full("k")], at=AT)
    counts = store.counts()
    for _ in range(3):
        store.probe()
    assert (store.counts(), store.keys(), store.newest()) == (counts, ["k"], Stamp(1, 1))


def test_a_probe_fails_where_a_commit_would_though_all_can_be_read(durable_place: StorePlace) -> None:
    durable_place.open().commit([full("k")], at=AT)
    with read_only(durable_place) as store:
        assert store.newest() == Stamp(1, 1)
        for write_it in (store.probe, lambda: store.commit([full("k")], at=AT)):
            with pytest.raises(StoreUnavailable):
                write_it()


@contextlib.contextmanager
def read_only(place: StorePlace) -> Iterator[Store]:
    """A store that cannot be written: its file is another writer's, or its server a standby."""
    if place.kind == "postgresql":
        place.dsn = place.dsn.replace("options=", "options=-cdefault_transaction_read_only%3Don%20")
        yield place.open()
        return
    store = place.open(patience_s=0.05)
    (file,) = place.folder.rglob("*.sqlite")
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield store
