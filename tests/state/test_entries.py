"""Each spelling of a routing key leads to its canonical text, and back."""

import tracemalloc
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.core.keys import canonical
from onelane.errors import UnreadableValue
from onelane.shard.moved_keys import entries_from, moved_key
from onelane.state.durable_entries import DurableEntries, entry_of, row_of
from onelane.state.entries import MAX_FIELDS, KeyedEntry, canonical_key, composite_of, composite_text, spellings
from onelane.state.keyed import KeyedDicts
from onelane.state.store import Row
from onelane.telemetry.stats import Stats

PARTS = st.text() | st.binary() | st.integers()


@given(PARTS)
def test_a_key_is_among_the_spellings_of_its_canonical_text(key: Any) -> None:
    assert (type(key), key) in [(type(spelling), spelling) for spelling in spellings(canonical(key))]


@given(st.lists(PARTS, min_size=2, max_size=MAX_FIELDS).map(tuple))
def test_so_is_a_key_of_several_fields_and_it_comes_back_from_a_store_and_from_a_sibling(key: Any) -> None:
    text = canonical_key(key)
    assert text == "/".join(map(canonical, key))
    assert repr(key) in map(repr, spellings(text))
    assert repr(composite_of(composite_text(key))) == repr(key)
    (entry,) = entries_from(moved_key(text, [KeyedEntry("d", key, b"", "msgpack", 1)]))
    assert repr(entry.key) == repr(entry_of(row_of(entry)).key) == repr(key)


@pytest.mark.parametrize("text", ["x7", "", "sa/", "i/b"])
def test_what_is_stored_as_a_key_of_several_fields_and_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its text is that of int() or ours
        composite_of(text)


@given(st.text() | st.text(st.characters(codec="ascii")))
def test_spellings_have_that_canonical_text_and_no_other(text: str) -> None:
    assert {canonical(spelling) for spelling in spellings(text)} <= {text}


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ada", ("ada", b"ada")),
        ("7", ("7", b"7", 7)),
        ("07", ("07", b"07")),
        ("-1", ("-1", b"-1", -1)),
        ("a/b", tuple(product(("a", b"a"), ("b", b"b")))),
        ("1/2", tuple(product(("1", b"1", 1), ("2", b"2", 2)))),
        ("/".join("abcdef"), ()),
        ("/" * 100_000, ()),
    ],
)
def test_the_commonest_spelling_is_first(text: str, keys: tuple[Any, ...]) -> None:
    assert tuple(spellings(text)) == keys


def test_a_long_number_is_a_text() -> None:
    assert spellings("1" * 5000) == ("1" * 5000, b"1" * 5000)


NO_KEYS = [("a",), ("a", 1.0), ("a", ("b", "c")), tuple("abcdef"), 1.0, None, "\ud800", ("a", "\ud800"), 10**5000]


@pytest.mark.parametrize("key", NO_KEYS, ids=range(len(NO_KEYS)))
def test_other_keys_are_no_routing_keys(key: Any) -> None:
    assert canonical_key(key) is None


@pytest.mark.parametrize("spelled", [b"x7", b"", b"txnew/i7", b"inew"])
def test_a_row_whose_key_only_a_newer_release_can_read_is_unreadable_by_name(spelled: bytes) -> None:
    """Else its key is loaded for ever, and with it the change of placement in which the key is to leave."""
    dicts = KeyedDicts("app-0", Stats())
    counts = dicts.declare("counts", int, durable=True)
    entries = DurableEntries(dicts)
    with pytest.raises(UnreadableValue, match="its key is spelled in a way that this release does not"):
        entries.install("7", [Row("counts", b"\x07", spelled, "msgpack", 1)])
    assert counts == {}


def test_little_is_remembered_of_a_key_of_five_integers() -> None:
    """It has 243 spellings, and the last 16,384 keys are remembered."""
    dicts = KeyedDicts("app-0", Stats())
    dicts.declare("counts", int, durable=True)
    entries = DurableEntries(dicts)
    tracemalloc.start()
    try:
        for number in range(100):
            entries.rows_of("/".join([str(number)] * MAX_FIELDS), {})
        remembered, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert remembered / 100 < 3000
