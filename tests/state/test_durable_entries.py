"""Entries of durable dicts as rows of a store, and back."""

from dataclasses import dataclass

import pytest
from onelane.errors import UnreadableValue, UnwritableValue
from onelane.state.durable_entries import DurableEntries
from onelane.state.keyed import KeyedDicts
from onelane.state.store import Row
from onelane.telemetry.stats import Stats

from tests.function_calls import function_calls


@dataclass
class Cart:
    items: int = 0


@pytest.fixture
def dicts() -> KeyedDicts:
    return KeyedDicts("a-0", Stats())


@pytest.mark.parametrize("key", ["7", 7, b"7", b"\xff\x00", "ä", -3])
def test_an_entry_comes_back_under_the_key_that_the_service_uses(dicts: KeyedDicts, key: str | bytes | int) -> None:
    carts = dicts.declare("carts", Cart, durable=True)
    entries = DurableEntries(dicts)
    carts[key] = Cart(3)
    (text,) = dicts.keys()
    rows = [*entries.rows_of(text, {}).values()]
    entries.forget(text)
    assert carts == {}
    assert entries.install(text, rows) == rows
    assert carts == {key: Cart(3)}
    assert [type(spelling) for spelling in carts] == [type(key)]


def test_a_row_that_has_not_changed_is_the_same_object(dicts: KeyedDicts) -> None:
    carts = dicts.declare("carts", Cart, durable=True)
    entries = DurableEntries(dicts)
    carts["k"] = Cart(1)
    before = entries.rows_of("k", {})
    assert entries.rows_of("k", before)["carts"] is before["carts"]
    carts["k"].items = 2
    assert entries.rows_of("k", before) != before


def test_the_row_of_a_changed_value_takes_few_steps(dicts: KeyedDicts) -> None:
    """Each turn that changes its key pays for them."""
    counts = dicts.declare("counts", int, durable=True)
    entries = DurableEntries(dicts)
    counts["k"] = 1
    rows = entries.rows_of("k", {})
    with function_calls() as steps:
        for number in range(2, 102):
            counts["k"] = number
            before, rows = rows, entries.rows_of("k", rows)
            assert rows != before
    assert steps.count // 100 <= 18


def test_a_key_under_two_spellings_in_one_dict_is_refused_by_name(dicts: KeyedDicts) -> None:
    carts = dicts.declare("carts", Cart, durable=True)
    carts |= {"7": Cart(1), 7: Cart(2)}
    with pytest.raises(UnwritableValue, match="'carts', key 7: the dict has it under another spelling"):
        DurableEntries(dicts).rows_of("7", {})


def test_only_durable_dicts_have_rows(dicts: KeyedDicts) -> None:
    carts = dicts.declare("carts", Cart, durable=True)
    dicts.declare("rooms", Cart)["k"] = carts["k"] = Cart(1)
    entries = DurableEntries(dicts)
    assert [*entries.rows_of("k", {})] == ["carts"]
    entries.forget("k")
    assert (dicts.counts(), carts) == ({"carts": 0, "rooms": 1}, {})


def test_a_row_that_cannot_be_read_is_refused_and_no_other_of_its_key_is_put(dicts: KeyedDicts) -> None:
    """Else the next turn would drop it from the store."""
    dicts.declare("carts", Cart, durable=True)
    dicts.declare("counts", int, durable=True)
    rows = [Row("carts", b"\x80", b"sk", "msgpack", 1), Row("counts", b"\xa1x", b"sk", "msgpack", 1)]
    with pytest.raises(UnreadableValue, match="'counts', key 'k'"):
        DurableEntries(dicts).install("k", rows)
    assert dicts.counts() == {"carts": 0, "counts": 0}


def test_the_row_of_a_dict_that_this_release_does_not_have_is_left_alone(dicts: KeyedDicts) -> None:
    dicts.declare("carts", Cart, durable=True)
    assert DurableEntries(dicts).install("k", [Row("gone", b"x", b"sk", "msgpack", 1)]) == []
    assert dicts.counts() == {"carts": 0}
