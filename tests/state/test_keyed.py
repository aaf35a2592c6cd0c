"""A key's entries leave a process together and arrive whole; what cannot leave is named, and holds up nothing."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from onelane.errors import BadService
from onelane.state import keyed
from onelane.state.entries import KeyedEntry

from tests.echo.v1.echo_pb2 import EchoRequest
from tests.state.owners import Cart, Owner, move


@pytest.fixture
def old() -> Owner:
    """The owner before a change of placement."""
    return Owner()


@pytest.fixture
def new() -> Owner:
    """The owner after it, of the same release."""
    return Owner()


def test_a_keyed_dict_is_a_plain_dict(old: Owner) -> None:
    """So its use costs what that of any dict costs."""
    assert type(old.carts) is dict
    assert type(old.dicts.declare("queues", asyncio.Queue, moves=False)) is dict


def test_all_entries_of_a_key_move_and_no_other(old: Owner, new: Owner) -> None:
    old.carts.update(ada=Cart({"tea": 2}), bob=Cart())
    old.totals.update(ada=7, eve=1)
    move("ada", old, new)
    assert (new.carts, new.totals) == ({"ada": Cart({"tea": 2})}, {"ada": 7})
    assert (old.carts, old.totals) == ({"bob": Cart()}, {"eve": 1})


def test_keys_has_each_key_with_state_that_moves_once(old: Owner) -> None:
    old.dicts.declare("queues", asyncio.Queue, moves=False)["zoe"] = asyncio.Queue()
    old.carts.update(ada=Cart(), bob=Cart())
    old.totals.update({"ada": 7, "e ve": 1})
    assert sorted(old.dicts.keys()) == ["ada", "bob", "e%20ve"]


def test_keys_may_be_iterated_in_pieces_while_the_dicts_change(old: Owner) -> None:
    old.totals.update({f"key-{i}": i for i in range(1000)})
    keys = old.dicts.keys()
    first = [next(keys) for _ in range(10)]
    old.totals.clear()
    old.totals.update(late=1)
    assert len(set(first) | set(keys)) == 1000
    assert old.dicts.entries_of("key-999") == []


@pytest.mark.parametrize("key", ["a b/ü", "", "1", "%20", b"\xff\x00", b"1", 1, -7, 2**64 - 1])
def test_a_key_arrives_as_the_service_wrote_it(key: Any, old: Owner, new: Owner) -> None:
    old.totals[key] = 3
    (text,) = old.dicts.keys()
    move(text, old, new)
    ((arrived, value),) = new.totals.items()
    assert (arrived, type(arrived), value, old.totals) == (key, type(key), 3, {})


def test_every_spelling_of_a_key_is_an_entry_and_all_move_together(old: Owner, new: Owner) -> None:
    old.totals.update({1: 10, "1": 20, b"1": 30})
    assert list(old.dicts.keys()) == ["1"]
    move("1", old, new)
    assert (new.totals, old.totals) == ({1: 10, "1": 20, b"1": 30}, {})


def test_where_one_entry_cannot_be_read_none_is_installed_and_all_leave_again_as_they_came(
    old: Owner, new: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    """So a release that cannot read them loses nothing for the one before."""
    old.totals["ada"] = 7
    broken = KeyedEntry("carts", "ada", b"\x81\xa5items\x01", "msgpack", 1)
    entries = [*old.dicts.entries_of("ada"), broken]
    new.dicts.install("ada", entries)
    assert (new.carts, new.totals, new.lost()) == ({}, {}, {"unreadable": 1})
    assert "keyed 'carts', key 'ada': ValidationError: Expected `object`, got `int` - at `$.items`" in caplog.text
    assert (list(new.dicts.keys()), new.dicts.entries_of("ada")) == (["ada"], entries)
    new.totals["ada"] = 1
    assert [entry.value for entry in new.dicts.entries_of("ada")] == [b"\x01", broken.value], "what is newer goes first"
    new.dicts.forget("ada")
    assert list(new.dicts.keys()) == []


WRONG: dict[str, tuple[Any, str]] = {
    "another type": (Cart({"tea": "two"}), "Expected `int`, got `str` - at `$.items[...]`"),  # type: ignore[dict-item]
    "no data at all": (Cart({"tea": asyncio}), "module is unsupported - at `$.items['tea']`"),  # type: ignore[dict-item]
    "no text": (Cart(note="\ud800"), "surrogates not allowed - at `$.note`"),
    "another kind": (7, "Expected `object`, got `int`"),
}


@pytest.mark.parametrize(("value", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_named_and_counted_and_the_rest_of_its_key_moves(
    value: Any, message: str, old: Owner, new: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    old.carts["ada"], old.totals["ada"] = value, 7
    move("ada", old, new)
    assert (new.totals, old.lost()) == ({"ada": 7}, {"unwritable": 1})
    assert "keyed.entry_lost shard=echo-0 reason=unwritable keyed 'carts', key 'ada': " in caplog.text
    assert message in caplog.text


def test_what_makes_a_key_larger_than_a_message_can_be_is_named_and_counted_and_the_rest_of_it_moves(
    old: Owner, new: Owner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A value of 2 GB failed as its batch was written: the batch was gone, and the change waited for ever."""
    monkeypatch.setattr(keyed, "MOST_BYTES", 100)
    notes = old.dicts.declare("notes", str)
    new_notes = new.dicts.declare("notes", str)
    old.carts["ada"], notes["ada"], old.totals["ada"] = Cart(note="x" * 60), "y" * 90, 7
    move("ada", old, new)
    assert (new.carts, new_notes, new.totals) == ({"ada": Cart(note="x" * 60)}, {}, {"ada": 7})
    assert old.lost() == {"unwritable": 1}
    assert "keyed 'notes', key 'ada': 92 bytes, with" in caplog.text


def test_a_key_that_is_no_routing_key_is_named_and_counted_and_the_others_move(
    old: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    old.totals.update({("ada", 1.5): 1, "bob": 2, "\ud800": 3, 10**5000: 4})
    assert list(old.dicts.keys()) == ["bob"]
    assert old.lost() == {"no_key": 3}
    assert (
        "keyed 'totals', key ('ada', 1.5): this tuple is no routing key: a str, bytes or int is, and for" in caplog.text
    )


def test_what_is_lost_is_counted_without_end_and_logged_up_to_a_limit(
    old: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    old.totals.update({(i,): i for i in range(1000)})
    assert list(old.dicts.keys()) == []
    assert old.lost() == {"no_key": 1000}
    assert len(caplog.records) == 100


def test_an_entry_of_a_dict_that_the_new_release_does_not_move_is_not_installed_and_counted(
    old: Owner, new: Owner
) -> None:
    old.dicts.declare("removed", int)["ada"] = 1
    old.dicts.declare("links", int)["ada"] = 2
    new.dicts.declare("links", int, moves=False)
    old.totals["ada"] = 7
    move("ada", old, new)
    assert (new.totals, new.dicts.counts()["links"], new.lost()) == ({"ada": 7}, 0, {"no_dict": 2})


def test_what_stays_outlives_the_move_until_the_change_is_over(old: Owner, new: Owner) -> None:
    """A stream of the key may still run, and needs its queue."""
    queues = old.dicts.declare("queues", asyncio.Queue, moves=False)
    queues["ada"] = asyncio.Queue()
    old.totals["ada"] = 1
    move("ada", old, new)
    assert (list(queues), old.totals) == (["ada"], {})


def test_dicts_that_stay_lose_the_keys_that_have_left_and_no_other(old: Owner) -> None:
    queues = old.dicts.declare("queues", asyncio.Queue, moves=False)
    queues.update({"ada": asyncio.Queue(), 7: asyncio.Queue(), "b b": asyncio.Queue(), ("no", 1.5): asyncio.Queue()})
    old.totals["ada"] = 1
    assert old.dicts.drop_foreign(lambda key: key == "b%20b") == 2
    assert (set(queues), old.totals) == ({"b b", ("no", 1.5)}, {"ada": 1})


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": str}, "kind"),
    "moves": ({"kind": int, "moves": False}, "moves"),
    "version": ({"kind": int, "version": 2}, "version"),
    "migrate": ({"kind": int, "version": 2, "migrate": {1: abs}}, "version and migrate"),
}


@pytest.mark.parametrize(("declared", "names"), DIFFERENT.values(), ids=DIFFERENT)
def test_one_name_has_one_declaration(declared: dict[str, Any], names: str, old: Owner) -> None:
    assert old.dicts.declare("totals", int) is old.totals
    with pytest.raises(BadService, match=f"keyed 'totals' is declared twice, with another {names}"):
        old.dicts.declare("totals", **declared)


def test_hooks_get_the_key_as_the_dicts_have_it_while_its_entries_are_there(old: Owner, new: Owner) -> None:
    calls: list[Any] = []
    old.dicts.on_leave(lambda key: calls.append(("leave", key, old.totals[key])))
    new.dicts.on_arrive(lambda key: calls.append(("arrive", key, new.totals[key])))
    old.totals.update({"a b": 1, 7: 2})
    for key in list(old.dicts.keys()):
        move(key, old, new)
    assert calls == [("leave", "a b", 1), ("arrive", "a b", 1), ("leave", 7, 2), ("arrive", 7, 2)]


def test_entries_leave_as_a_hook_leaves_them(old: Owner, new: Owner) -> None:
    old.dicts.on_leave(lambda key: old.totals.update({key: 99}))
    old.totals["ada"] = 1
    move("ada", old, new)
    assert new.totals == {"ada": 99}


@pytest.mark.parametrize(("key", "named"), [("ada", "ada"), ("eu/7", ("eu", "7")), ("/" * 9, "/" * 9)])
def test_a_key_without_state_has_hooks_too(key: str, named: object, old: Owner) -> None:
    calls: list[Any] = []
    old.dicts.on_leave(calls.append)
    old.dicts.leaves(key)
    assert calls == [named]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_hook_that_raises_is_logged_and_the_key_moves(
    error: type[BaseException], old: Owner, new: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(key: Any) -> None:
        raise error("cannot")

    calls: list[Any] = []
    for hook in (fail, calls.append):
        old.dicts.on_leave(hook)
        new.dicts.on_arrive(hook)
    old.totals["ada"] = 1
    move("ada", old, new)
    assert (new.totals, calls) == ({"ada": 1}, ["ada", "ada"])
    assert re.findall("keyed.hook_failed shard=echo-0 hook=(.*)", caplog.text) == ["on_leave", "on_arrive"]


async def wait_for_ever(key: Any) -> None: ...


@pytest.mark.parametrize("hook", [wait_for_ever, None])
@pytest.mark.parametrize("register", ["on_arrive", "on_leave"])
def test_a_hook_is_a_plain_function(register: str, hook: Any, old: Owner) -> None:
    setter: Callable[[Any], None] = getattr(old.dicts, register)
    with pytest.raises(BadService, match=f"{register}: expected a plain function"):
        setter(hook)


def test_protobuf_messages_move(old: Owner, new: Owner) -> None:
    for owner in (old, new):
        owner.dicts.declare("last", EchoRequest)
    old.dicts.declare("last", EchoRequest)["ada"] = EchoRequest(text="hello")
    move("ada", old, new)
    assert new.dicts.declare("last", EchoRequest) == {"ada": EchoRequest(text="hello")}
