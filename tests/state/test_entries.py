"""Each spelling of a routing key leads to its canonical text, and back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.core.keys import canonical
from onelane.state.entries import canonical_key, spellings


@given(st.text() | st.binary() | st.integers())
def test_a_key_is_among_the_spellings_of_its_canonical_text(key: Any) -> None:
    assert (type(key), key) in [(type(spelling), spelling) for spelling in spellings(canonical(key))]


@given(st.text() | st.text(st.characters(codec="ascii")))
def test_spellings_have_that_canonical_text_and_no_other(text: str) -> None:
    assert {canonical(spelling) for spelling in spellings(text)} <= {text}


@pytest.mark.parametrize(
    ("text", "keys"),
    [("ada", ("ada", b"ada")), ("7", ("7", b"7", 7)), ("07", ("07", b"07")), ("-1", ("-1", b"-1", -1)), ("a/b", ())],
)
def test_the_commonest_spelling_is_first(text: str, keys: tuple[Any, ...]) -> None:
    assert spellings(text) == keys


def test_a_long_number_is_a_text() -> None:
    assert spellings("1" * 5000) == ("1" * 5000, b"1" * 5000)


@pytest.mark.parametrize("key", [("a", 1), 1.0, None, "\ud800", 10**5000], ids=lambda key: type(key).__name__)
def test_other_keys_are_no_routing_keys(key: Any) -> None:
    assert canonical_key(key) is None
