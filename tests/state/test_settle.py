"""A cold start finds every key in its owner's file, whatever the files were written by, and whoever died meanwhile."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from onelane.core.placement import Member, Placement
from onelane.errors import Fenced, StoreRefused, StoreUnavailable
from onelane.state.settle import moves_from, settle
from onelane.state.sqlite_store import SqliteStore
from onelane.state.store import KeyState, KeyWrite, Stamp, scan

from tests.state.places import AT, StorePlace, cart, full, write

pytestmark = pytest.mark.slow
KEYS = [f"k{number}" for number in range(60)]


def placement(shards: int) -> Placement:
    members = tuple(Member(f"lobby-{index}", f"127.0.0.1:{7000 + index}", "") for index in range(shards))
    return Placement(1, members)


def fill(folder: Path, shards: int) -> None:
    """Every key in the file of its owner of `shards`."""
    place = StorePlace("sqlite", folder)
    for member in placement(shards).members:
        keys = [key for key in KEYS if placement(shards).owner_of(key) == member]
        place.open(shard=member.name).commit([full(key) for key in keys], at=AT)
    place.close()


def contents(folder: Path) -> dict[str, list[KeyState]]:
    """Name of a shard → what is in its file."""
    place = StorePlace("sqlite", folder)
    names = sorted(path.stem for path in (folder / "lobby").glob("*.sqlite"))
    states = {name: list(scan(place.open(shard=name))) for name in names}
    place.close()
    return states


def assert_settled(folder: Path, shards: int) -> None:
    """Every key is once, whole, in its owner's file; and there is no other file."""
    members = placement(shards).members
    files = contents(folder)
    assert list(files) == [member.name for member in members]
    for member in members:
        expected = [key for key in sorted(KEYS) if placement(shards).owner_of(key) == member]
        assert [state.key for state in files[member.name]] == expected
        assert all(state.rows == full("k").rows and state.answers and state.reminders for state in files[member.name])


def test_the_plan_names_the_keys_of_others_by_their_owner() -> None:
    moves = moves_from("lobby-0", KEYS, placement(3))
    assert set(moves) == {"lobby-1", "lobby-2"}
    assert all(placement(3).owner_of(key).name == owner for owner, keys in moves.items() for key in keys)
    assert moves_from("lobby-0", KEYS, placement(1)) == {}


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 2)])
def test_another_number_of_shards_finds_each_key_at_its_owner(tmp_path: Path, before: int, after: int) -> None:
    fill(tmp_path, before)
    seen: list[tuple[int, int]] = []
    settled = settle(tmp_path, "lobby", placement(after), at=AT, progress=lambda *at: seen.append(at), limit=7)
    assert_settled(tmp_path, after)
    assert settled.newest == Stamp(1, 1)
    assert (settled.moved == 0) == (before == after)
    assert seen == sorted(seen)
    assert seen[-1] == (60, 60)
    assert settle(tmp_path, "lobby", placement(after), at=AT).moved == 0


STEPS = ("adopt", "drop", "set_members", "remove")


class StepCutter:
    """Lets a number of steps of `settle` happen, and then none."""

    def __init__(self, allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.remaining = allowed
        for name in STEPS:
            monkeypatch.setattr(SqliteStore, name, self._counted(getattr(SqliteStore, name)))

    def _counted(self, step: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: object, **options: object) -> None:
            self.remaining -= 1
            if self.remaining < 0:
                raise StoreUnavailable("here", "the power is cut")
            step(*arguments, **options)

        return run


def settle_but_cut(folder: Path, shards: int, allowed: int) -> bool:
    """Whether it was cut off."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        StepCutter(allowed, monkeypatch)
        try:
            settle(folder, "lobby", placement(shards), at=AT)
        except StoreUnavailable:
            return True
    return False


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 2)])
def test_a_run_that_was_cut_off_after_any_step_is_completed_by_the_next(
    tmp_path: Path, before: int, after: int
) -> None:
    fill(tmp_path / "filled", before)
    settle(tmp_path / "filled", "lobby", placement(before), at=AT)
    for allowed in range(20):
        folder = tmp_path / f"cut-{allowed}"
        shutil.copytree(tmp_path / "filled", folder)
        was_cut = settle_but_cut(folder, after, allowed)
        settle(folder, "lobby", placement(after), at=AT)
        assert_settled(folder, after)
        if not was_cut:
            break
    assert allowed > 5


@pytest.mark.parametrize("newer", ["lobby-0", "lobby-1", "lobby-2"])
def test_of_two_copies_of_a_key_that_with_the_higher_stamp_counts(tmp_path: Path, newer: str) -> None:
    place = StorePlace("sqlite", tmp_path)
    for index in range(3):
        shard = f"lobby-{index}"
        epoch = 9 if shard == newer else 2 + index
        place.open(shard=shard).commit([KeyWrite("k", epoch, (cart(shard.encode()),))], at=AT)
    place.close()
    settled = settle(tmp_path, "lobby", placement(3), at=AT)
    owner = placement(3).owner_of("k").name
    assert [state for states in contents(tmp_path).values() for state in states] == [
        KeyState("k", Stamp(9, 1), (cart(newer.encode()),))
    ]
    assert contents(tmp_path)[owner]
    assert settled.newest == Stamp(9, 1)


def test_a_deleted_key_does_not_come_back_by_an_older_copy(tmp_path: Path) -> None:
    place = StorePlace("sqlite", tmp_path)
    place.open(shard="lobby-0").commit([write("k", b"old", 1)], at=AT)
    place.open(shard="lobby-1").commit([write("k", b"moved", 2)], at=AT)
    place.open(shard="lobby-1").commit([KeyWrite("k", 2, dropped_rows=("carts",))], at=AT)
    place.close()
    settle(tmp_path, "lobby", placement(1), at=AT)
    assert contents(tmp_path) == {"lobby-0": [KeyState("k", Stamp(2, 1))]}


def test_a_claim_alone_does_not_outdo_a_copy_that_was_written(tmp_path: Path) -> None:
    """The new owner claimed the key, and the old one died before it could hand it over."""
    place = StorePlace("sqlite", tmp_path)
    place.open(shard="lobby-0", life=7).load(["k"], epoch=5, at=AT)
    place.open(shard="lobby-1").commit([write("k", b"1", 1)], at=AT)
    place.close()
    settled = settle(tmp_path, "lobby", placement(1), at=AT)
    assert contents(tmp_path)["lobby-0"] == [KeyState("k", Stamp(1, 1), (cart(b"1"),))]
    assert settled.newest == Stamp(5, 7)


@pytest.mark.parametrize("has_later_write", [False, True])
def test_a_key_keeps_its_highest_claim_when_it_moves(tmp_path: Path, has_later_write: bool) -> None:
    """Else a start after the clock was set back could own the key in an epoch below that of a life that still runs."""
    place = StorePlace("sqlite", tmp_path)
    if has_later_write:
        place.open(shard="lobby-0").commit([write("k", b"later", 2)], at=AT)
    place.open(shard="lobby-1").commit([write("k", b"first", 1)], at=AT)
    place.open(shard="lobby-1", life=7).load(["k"], epoch=5, at=AT)
    place.close()
    settled = settle(tmp_path, "lobby", placement(1), at=AT)
    assert settled.newest == Stamp(5, 7)
    written, value = (Stamp(2, 1), b"later") if has_later_write else (Stamp(1, 1), b"first")
    assert contents(tmp_path)["lobby-0"] == [KeyState("k", written, (cart(value),))]
    with pytest.raises(Fenced):
        place.open(shard="lobby-0").load(["k"], epoch=4, at=AT)
    place.close()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_lost_file_is_named_again_and_again_until_it_is_accepted(tmp_path: Path, shards: int) -> None:
    fill(tmp_path, 2)
    settle(tmp_path, "lobby", placement(2), at=AT)
    for path in (tmp_path / "lobby").glob("lobby-1.*"):
        path.unlink()
    for _ in range(2):
        with pytest.raises(StoreRefused, match="no state of lobby-1, expected all files of the last start"):
            settle(tmp_path, "lobby", placement(shards), at=AT)
    settle(tmp_path, "lobby", placement(shards), at=AT, accepts_missing=True)
    assert settle(tmp_path, "lobby", placement(shards), at=AT).moved == 0


def test_the_file_of_another_app_is_refused_before_anything_moves(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    before = contents(tmp_path)
    StorePlace("sqlite", tmp_path).open(shard="shop-0", app="shop").close()
    foreign = (tmp_path / "shop" / "shop-0.sqlite").rename(tmp_path / "lobby" / "shop-0.sqlite")
    with pytest.raises(StoreRefused, match=r"shop-0.sqlite: the state of the app 'shop', expected 'lobby'"):
        settle(tmp_path, "lobby", placement(1), at=AT)
    foreign.unlink()
    assert contents(tmp_path) == before


def test_apps_may_share_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    shop = StorePlace("sqlite", tmp_path).open(shard="shop-0", app="shop")
    shop.commit([write("k", b"shop")], at=AT)
    settle(tmp_path, "lobby", placement(1), at=AT)
    assert_settled(tmp_path, 1)
    assert shop.read(["k"])["k"].rows == (cart(b"shop"),)
    shop.close()
