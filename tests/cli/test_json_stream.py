"""JSON values one after another: each is handed out as soon as it is whole, however the text is cut."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.cli.json_stream import JsonValues
from onelane.errors import Invalid

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values=st.lists(VALUES, max_size=5), size=st.integers(1, 9))
def test_the_values_are_the_same_however_the_text_is_cut(values: list[Any], size: int) -> None:
    text = "\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    stream = JsonValues()
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    texts = [value for piece in pieces for value in stream.feed(piece)] + list(stream.finish())
    assert [json.loads(text) for text in texts] == values


def test_an_object_is_handed_out_with_its_last_brace() -> None:
    stream = JsonValues()
    assert list(stream.feed('{"a": "}\\"{"')) == []
    assert list(stream.feed('}{"b"')) == ['{"a": "}\\"{"}']
    assert list(stream.feed(": [1]}")) == ['{"b": [1]}']
    assert list(stream.finish()) == []


def test_what_is_no_json_is_handed_out_for_its_parser_to_refuse() -> None:
    stream = JsonValues()
    assert list(stream.feed('}{"a": ')) == ["}"]
    assert list(stream.finish()) == ['{"a":']


def test_a_value_without_an_end_is_bounded() -> None:
    with pytest.raises(Invalid, match="longer than 10 characters"):
        list(JsonValues(limit=10).feed('{"a": "' + "x" * 10))
