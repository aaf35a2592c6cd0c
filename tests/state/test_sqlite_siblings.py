"""A key that moves is loaded by its new owner, whichever shard has stored it, and its older copies never come back."""

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from onelane.errors import Fenced, StoreRefused, StoreUnavailable
from onelane.state.settle import settle
from onelane.state.store import NEVER_WRITTEN, KeyState, KeyWrite, Stamp, Store, StoredReminder

from tests.running_app import ROOT
from tests.state.places import AT, STORES, StorePlace, at_place, cart, full, write
from tests.state.test_settle import placement

pytestmark = pytest.mark.slow


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorePlace]:
    with at_place(request, tmp_path, request.param) as place:
        yield place


@pytest.fixture
def files(tmp_path: Path) -> Iterator[StorePlace]:
    place = StorePlace("sqlite", tmp_path)
    yield place
    place.close()


def load(store: Store, epoch: int, key: str = "k") -> KeyState:
    return store.load([key], epoch=epoch, at=AT)[key]


def file_of(place: StorePlace, shard: str) -> Path:
    return place.folder / "lobby" / f"{shard}.sqlite"


def test_the_new_owner_loads_all_that_the_old_one_has_stored(place: StorePlace) -> None:
    place.open(shard="lobby-0").commit([full("k"), full("stays")], at=AT)
    new = place.open(shard="lobby-1", life=2)
    state = load(new, 2)
    expected = full("k")
    assert state == KeyState("k", Stamp(1, 1), expected.rows, expected.answers, expected.reminders)
    new.commit([write("k", b"new", 2)], at=AT)
    assert {row.value for row in new.read(["k"])["k"].rows} == {b"new", b""}


@pytest.mark.parametrize("writes", [True, False], ids=["it writes", "it only reads"])
def test_a_key_that_comes_back_is_loaded_as_its_last_owner_left_it(place: StorePlace, *, writes: bool) -> None:
    first, second = place.open(shard="lobby-0", life=5), place.open(shard="lobby-1", life=2)
    first.commit([write("k", b"1", 1)], at=AT)
    load(second, 2)
    if writes:
        second.commit([write("k", b"2", 2)], at=AT)
    assert load(first, 3).rows == (cart(b"2" if writes else b"1"),)
    first.commit([write("k", b"3", 3)], at=AT)
    assert load(second, 4).rows == (cart(b"3"),)


def test_a_third_owner_loads_what_was_written_last_whoever_loaded_it_since(place: StorePlace) -> None:
    stores = [place.open(shard=f"lobby-{index}", life=index + 1) for index in range(3)]
    stores[0].commit([write("k", b"1", 1)], at=AT)
    load(stores[1], 2)
    stores[1].commit([write("k", b"2", 2)], at=AT)
    load(stores[0], 3)
    assert load(stores[2], 4).rows == (cart(b"2"),)


@pytest.mark.parametrize("owners", [(0, 1), (1, 0)])
def test_of_two_that_have_stored_a_key_the_next_owner_loads_what_was_written_later(
    place: StorePlace, owners: tuple[int, int]
) -> None:
    """In whichever order their files are looked at, and although the earlier one is open."""
    stores = [place.open(shard=f"lobby-{index}", life=index + 1) for index in range(3)]
    for epoch, owner in enumerate(owners, 1):
        load(stores[owner], epoch)
        stores[owner].commit([write("k", str(epoch).encode(), epoch)], at=AT)
    assert load(stores[2], 3).rows == (cart(b"2"),)


def test_a_key_that_its_last_owner_has_deleted_does_not_come_back_by_an_older_copy(place: StorePlace) -> None:
    first, second = place.open(shard="lobby-0", life=1), place.open(shard="lobby-1", life=2)
    first.commit([write("k", b"1", 1)], at=AT)
    load(second, 2)
    second.commit([KeyWrite("k", 2, dropped_rows=("carts",))], at=AT)
    assert second.forget(answers_before=AT, claims_before=AT + 1) == 1
    assert load(first, 3).rows == ()
    assert load(place.open(shard="lobby-2", life=3), 4).rows == ()


def test_a_claim_of_another_shard_with_a_higher_stamp_fences_and_none_is_claimed(place: StorePlace) -> None:
    late, owner = place.open(shard="lobby-0", life=9), place.open(shard="lobby-1", life=2)
    load(owner, 2)
    with pytest.raises(Fenced) as fenced:
        late.load(["other", "k"], epoch=1, at=AT)
    assert fenced.value.keys == ("k",)
    assert load(owner, 2).written == NEVER_WRITTEN
    assert load(owner, 1, "other").rows == ()


def test_what_was_written_in_an_epoch_before_does_not_fence_a_lower_life(place: StorePlace) -> None:
    place.open(shard="lobby-0", life=9).commit([write("k", b"1", 1)], at=AT)
    assert load(place.open(shard="lobby-1", life=2), 2).rows == (cart(b"1"),)


def test_what_a_killed_owner_had_reported_is_loaded_by_the_next_one(files: StorePlace) -> None:
    heir = files.open(shard="lobby-1", life=2)
    script = f"""
from pathlib import Path
from typing import Any
from tests.state.places import StorePlace, write
store = StorePlace("sqlite", Path({str(files.folder)!r})).open(shard="lobby-0")
for number in range(10**6):
    store.commit([write("k", b"%d" % number)], at=0.0)
    print(number, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        reported = [int(child.stdout.readline()) for _ in range(20)]
        child.kill()
        reported += [int(line) for line in child.stdout.read().splitlines()]
    assert int(load(heir, 2).rows[0].value) in (reported[-1], reported[-1] + 1)


def test_a_file_that_appears_later_is_seen_and_one_that_is_being_made_is_passed_over(files: StorePlace) -> None:
    store = files.open(shard="lobby-0", life=2)
    file_of(files, "lobby-1").touch()
    assert load(store, 2).rows == ()
    files.open(shard="lobby-1").commit([write("k", b"1", 1)], at=AT)
    assert load(store, 3).rows == (cart(b"1"),)


def test_another_file_is_never_waited_for_while_its_owner_writes(files: StorePlace) -> None:
    files.open(shard="lobby-1").commit([write("k", b"1", 1)], at=AT)
    store = files.open(shard="lobby-0", life=2, patience_s=0.01)
    with contextlib.closing(sqlite3.connect(file_of(files, "lobby-1"), isolation_level=None)) as owner:
        owner.execute("BEGIN IMMEDIATE")
        assert load(store, 2).rows == (cart(b"1"),)


def test_a_file_that_vanishes_while_the_others_run_is_an_error_and_not_an_empty_state(files: StorePlace) -> None:
    files.open(shard="lobby-1").commit([write("k", b"1", 1)], at=AT)
    store = files.open(shard="lobby-0", life=2)
    store.commit([write("own", b"2", 2)], at=AT)
    aside = file_of(files, "lobby-1").rename(files.folder / "aside")
    with pytest.raises(StoreUnavailable, match="has no file of lobby-1 any more"):
        load(store, 2)
    # No other shard can have had a key since it was claimed here in the same epoch.
    assert load(store, 2, "own").rows == (cart(b"2"),)
    aside.rename(file_of(files, "lobby-1"))
    assert load(store, 2).rows == (cart(b"1"),)


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_a_file_that_was_lost_is_not_made_anew_in_silence(files: StorePlace, *, is_made_anew: bool) -> None:
    """Also of a shard that came after the last cold start."""
    for shard in ("lobby-0", "lobby-1"):
        files.open(shard=shard).close()
    file_of(files, "lobby-1").unlink()
    if is_made_anew:
        file_of(files, "lobby-1").touch()
    for _ in range(2):
        with pytest.raises(StoreRefused, match=r"lobby-1.sqlite: no state, expected the file of the last start"):
            files.open(shard="lobby-1")
    with pytest.raises(StoreRefused, match="no state of lobby-1, expected all files of the last start"):
        settle(files.folder, "lobby", placement(2), at=AT)
    settle(files.folder, "lobby", placement(2), at=AT, accepts_missing=True)
    files.open(shard="lobby-1")


def remind(key: str, epoch: int, due: float, *, dropped: tuple[str, ...] = ()) -> KeyWrite:
    return KeyWrite(key, epoch, reminders=(StoredReminder("r", due, b""),), dropped_reminders=dropped)


def places(store: Store, **more: Any) -> list[tuple[float, str]]:
    return [(reminder.due, reminder.key) for reminder in store.reminders(before=100.0, **more)]


def test_the_new_owner_sees_the_reminders_of_a_key_before_it_has_loaded_it(place: StorePlace) -> None:
    place.open(shard="lobby-0").commit([remind("k", 1, 10.0), remind("stays", 1, 30.0)], at=AT)
    new = place.open(shard="lobby-1", life=2)
    new.commit([remind("own", 2, 20.0)], at=AT)
    assert places(new) == [(10.0, "k"), (20.0, "own"), (30.0, "stays")]


def test_reminders_in_an_older_copy_of_a_key_are_left_out_wherever_it_is(place: StorePlace) -> None:
    first, second = place.open(shard="lobby-0", life=5), place.open(shard="lobby-1", life=2)
    first.commit([remind("k", 1, 10.0), remind("dropped", 1, 15.0)], at=AT)
    second.load(["k", "dropped"], epoch=2, at=AT)
    second.commit([remind("k", 2, 20.0), KeyWrite("dropped", 2, dropped_reminders=("r",))], at=AT)
    assert places(first) == places(second) == [(20.0, "k")]
    load(first, 3)
    first.commit([remind("k", 3, 30.0)], at=AT)
    assert places(first) == places(second) == [(30.0, "k")]


def test_a_page_of_reminders_is_full_although_older_copies_are_left_out(place: StorePlace) -> None:
    first, second = place.open(shard="lobby-0", life=5), place.open(shard="lobby-1", life=2)
    keys = [f"k{number}" for number in range(6)]
    first.commit([remind(key, 1, 10.0 + number) for number, key in enumerate(keys)], at=AT)
    second.load(keys[:4], epoch=2, at=AT)
    second.commit([KeyWrite(key, 2, dropped_reminders=("r",)) for key in keys[:4]], at=AT)
    assert places(second, limit=2) == [(14.0, "k4"), (15.0, "k5")]
    last = second.reminders(before=100.0, limit=1)[-1].place
    assert places(second, after=last, limit=2) == [(15.0, "k5")]
