"""A strict dict gives the entries of a key in the turn of that key alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any

import pytest
from onelane.core.context import ShardBinding, TurnContext, bind_shard, current_call_var
from onelane.core.turns import Turns
from onelane.errors import BadService, NoRoutingKey, NotItsKey
from onelane.state.keyed import KeyedDicts
from onelane.state.strict_dict import StrictDict
from onelane.telemetry.stats import Stats

from tests.state.owners import Owner

TURNS = Turns("echo-0", draw=lambda: 1, per_key=1, in_all=1)


@contextmanager
def turn_of(key: str) -> Iterator[None]:
    """Run inside of a turn of `key` (canonical text), as `Shard.turn` does."""
    turn = TURNS.enter(key, "test", "", object())
    assert turn is not None
    token = current_call_var.set(TurnContext(current_call_var.get(), turn))
    try:
        yield
    finally:
        current_call_var.reset(token)
        TURNS.leave(turn)


def strict(**entries: Any) -> StrictDict:
    strict_dict = StrictDict("rooms", app="lobby")
    strict_dict.update(entries)
    return strict_dict


TOUCHES: dict[str, Callable[[StrictDict], Any]] = {
    "d[k]": lambda d: d["bob"],
    "d[k] = v": lambda d: d.__setitem__("bob", 1),
    "del d[k]": lambda d: d.__delitem__("bob"),
    "k in d": lambda d: "bob" in d,
    "get": lambda d: d.get("bob"),
    "get of a key that is not in it": lambda d: d.get("eve"),
    "setdefault": lambda d: d.setdefault("bob", 1),
    "pop": lambda d: d.pop("bob", None),
    "update": lambda d: d.update(bob=1),
    "|=": lambda d: d.__ior__({"bob": 1}),
    "|": lambda d: d | {},
    "reversed |": lambda d: {} | d,
    "==": lambda d: d == {},
    "!=": lambda d: d != {},
    "for": lambda d: [key for key in d],  # noqa: C416
    "reversed": lambda d: list(reversed(d)),
    "keys": lambda d: d.keys(),
    "values": lambda d: d.values(),
    "items": lambda d: d.items(),
    "dict(d)": lambda d: dict(d),
    "copy": lambda d: d.copy(),
    "popitem": lambda d: d.popitem(),
    "clear": lambda d: d.clear(),
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_another_keys_entry_is_refused_by_both_names(touch: Callable[[StrictDict], Any]) -> None:
    rooms = strict(ada=1, bob=2)
    with turn_of("ada"), pytest.raises(NotItsKey, match=r"keyed 'rooms': the entry of '(bob|eve)' .* turn of 'ada'"):
        touch(rooms)
    assert rooms == {"ada": 1, "bob": 2}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_a_strict_dict_does_what_a_dict_does(touch: Callable[[Any], Any]) -> None:
    rooms, plain = strict(ada=1, bob=2), {"ada": 1, "bob": 2}
    assert repr(touch(rooms)).removeprefix("StrictDict") == repr(touch(plain))
    assert rooms == plain


def test_the_entries_of_the_turns_own_key_are_there_under_each_spelling() -> None:
    rooms = strict()
    with turn_of("7"):
        rooms[7], rooms["7"] = 1, 2
        assert sorted(rooms.values()) == [1, 2]
        assert rooms.pop(7) == 1


def test_a_key_of_several_fields_is_named_as_the_code_has_it() -> None:
    rooms = strict(ada=1)
    with (
        turn_of("ada"),
        pytest.raises(NotItsKey, match=r"entry of \('ada', 1\) .*`async with shard.turn\(\('ada', 1\)\)"),
    ):
        rooms["ada", 1] = 2
    assert rooms == {"ada": 1}


def test_a_turn_inside_of_a_turn_has_the_entries_of_both() -> None:
    rooms = strict(ada=1, bob=2, eve=3)
    with turn_of("ada"), turn_of("bob"):
        assert (rooms["ada"], rooms["bob"]) == (1, 2)
        with pytest.raises(NotItsKey, match=r"'eve' .* turn of 'bob'"):
            rooms["eve"]


@pytest.mark.parametrize("key", [("ada", 1.0), 1.0, None])
def test_a_key_that_is_no_routing_key_is_refused_at_once(key: Any) -> None:
    rooms = strict()
    with pytest.raises(NoRoutingKey, match="keyed 'rooms', key"):
        rooms[key] = 1
    assert len(rooms) == 0


def test_a_keyed_dict_may_be_strict_and_moves_like_any_other() -> None:
    old, new = (KeyedDicts("echo-0", Stats()) for _ in range(2))
    rooms = old.declare("rooms", int, strict=True)
    assert type(rooms) is StrictDict
    rooms["ada"] = 1
    new.declare("rooms", int)
    new.install("ada", old.entries_of("ada"))
    old.forget("ada")
    assert (new.declare("rooms", int), rooms) == ({"ada": 1}, {})


def test_one_name_is_strict_or_not() -> None:
    with pytest.raises(BadService, match="keyed 'totals' is declared twice, with another strict"):
        Owner().dicts.declare("totals", int, strict=True)


def _as_code_of_a_shard(touch: Callable[[], Any]) -> Any:
    """Run outside of any turn, as a task of a shard's own does."""
    context = Context()
    context.run(bind_shard, ShardBinding("lobby-0", None, None), whole_process=False)
    return context.run(touch)


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_outside_of_any_turn_there_is_nothing_but_the_list_of_the_keys(touch: Callable[[StrictDict], Any]) -> None:
    rooms = strict(ada=1, bob=2)
    if touch in (TOUCHES["for"], TOUCHES["reversed"], TOUCHES["keys"]):
        assert set(_as_code_of_a_shard(lambda: touch(rooms))) == {"ada", "bob"}
    else:
        with pytest.raises(
            NotItsKey, match=r"'lobby', keyed 'rooms': the entry of '\w+' was touched outside of any turn:"
        ):
            _as_code_of_a_shard(lambda: touch(rooms))
    assert rooms == {"ada": 1, "bob": 2}


def test_a_hook_has_the_entries_of_its_key_and_no_others() -> None:
    dicts = KeyedDicts("lobby-0", Stats(), app="lobby")
    carts = dicts.declare("carts", int, strict=True)
    seen: list[Any] = []

    def look(key: Any) -> None:
        seen.append(carts.setdefault(key, 7))
        with pytest.raises(NotItsKey, match="'bob' was touched in the turn of 'ada'"):
            carts.get("bob")

    dicts.on_leave(look)
    _as_code_of_a_shard(lambda: dicts.leaves("ada"))
    assert seen == [7]
