"""How a key is found and written: the same text in every language."""

import sys
import tracemalloc
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st
from onelane.core import keys
from onelane.errors import BadKey, BadService, LongKey, Misuse
from onelane.v1 import options_pb2

Field = descriptor_pb2.FieldDescriptorProto


def field(name: str, number: int, kind: int, *, key: bool = False, of: str = "", repeated: bool = False) -> Field:
    label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
    field = Field(name=name, number=number, type=kind, label=label, type_name=of or None)  # type: ignore[arg-type]
    if key:
        field.options.Extensions[options_pb2.key] = True
    return field


def message_with(*fields: Field, **nested: list[Field]) -> Any:
    """A message class `t.M` of these fields, beside the nested messages."""
    proto = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    for name, inner in {"M": list(fields), **nested}.items():
        proto.message_type.add(name=name).field.extend(inner)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(proto.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.M"))


def read(cls: Any, **values: Any) -> str:
    paths = keys.annotated_paths(cls.DESCRIPTOR)
    return keys.field_key(cls.DESCRIPTOR, paths).read(cls(**values))


STRING = message_with(field("id", 1, Field.TYPE_STRING, key=True))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("room", "room"),
        ("a b", "a%20b"),
        ("50%", "50%25"),
        ("a/b", "a%2Fb"),
        ("é", "%C3%A9"),
        ("\x7f", "%7F"),
    ],
)
def test_a_string_is_its_utf8_percent_encoded(value: str, text: str) -> None:
    assert read(STRING, id=value) == text


@given(st.binary(min_size=1))
def test_bytes_can_be_read_back_from_their_text(value: bytes) -> None:
    text = keys.canonical(value)
    assert unquote_to_bytes(text) == value
    assert all(0x21 <= ord(c) <= 0x7E and c != "/" for c in text)


@given(st.text(min_size=1))
def test_a_string_and_its_bytes_have_one_text(value: str) -> None:
    assert keys.canonical(value) == keys.canonical(value.encode())


@pytest.mark.parametrize("kind", [Field.TYPE_INT32, Field.TYPE_SINT64, Field.TYPE_UINT64, Field.TYPE_FIXED32])
def test_an_integer_is_decimal(kind: int) -> None:
    assert read(message_with(field("n", 1, kind, key=True)), n=42) == "42"


def test_a_composite_is_joined_in_field_number_order() -> None:
    cls = message_with(field("b", 2, Field.TYPE_STRING, key=True), field("a", 1, Field.TYPE_INT32, key=True))
    assert read(cls, a=7, b="x/y") == "7/x%2Fy"


def test_a_nested_field_is_reached() -> None:
    inner = [field("id", 1, Field.TYPE_STRING, key=True)]
    cls = message_with(field("room", 3, Field.TYPE_MESSAGE, of=".t.Room"), Room=inner)
    assert read(cls, room={"id": "r1"}) == "r1"


def test_a_missing_or_empty_key_is_named() -> None:
    with pytest.raises(BadKey, match=r"t\.M\.id is empty"):
        read(STRING)
    inner = [field("id", 1, Field.TYPE_STRING, key=True)]
    cls = message_with(field("room", 3, Field.TYPE_MESSAGE, of=".t.Room"), Room=inner)
    with pytest.raises(BadKey, match=r"t\.M\.room\.id is missing"):
        read(cls)


@given(st.text(min_size=1, max_size=40) | st.text("ab/é ", min_size=1, max_size=40), st.integers(1, 40))
def test_a_key_is_read_as_its_canonical_text_or_refused_where_that_is_longer_than_the_limit(
    value: str, limit: int
) -> None:
    rule = keys.field_key(STRING.DESCRIPTOR, ["id"], limit)
    if len(keys.canonical(value)) <= limit:
        assert rule.read(STRING(id=value)) == keys.canonical(value)
    else:
        with pytest.raises(LongKey, match=rf"t\.M\.id is too long: a key has at most {limit} bytes"):
            rule.read(STRING(id=value))


@pytest.mark.parametrize("value", ["x" * 3_500_000, "\x00" * 3_500_000, "é" * 3_500_000])
def test_a_key_of_megabytes_is_refused_without_a_copy_of_it(value: str) -> None:
    request = STRING(id=value)
    read = keys.field_key(STRING.DESCRIPTOR, ["id"]).read
    tracemalloc.start()
    with pytest.raises(LongKey) as caught:
        read(request)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Reading the field makes one string; the canonical text would be three to six times as long.
    assert peak < 2 * sys.getsizeof(value)
    assert len(str(caught.value)) < 100


def test_the_parts_of_a_composite_share_the_limit() -> None:
    cls = message_with(field("a", 1, Field.TYPE_BYTES, key=True), field("b", 2, Field.TYPE_STRING, key=True))
    rule = keys.field_key(cls.DESCRIPTOR, ["a", "b"], 8)
    assert rule.read(cls(a=b"1234", b="567")) == "1234/567"
    with pytest.raises(LongKey, match=r"the key t\.M\.\{a,b\} is too long"):
        rule.read(cls(a=b"1234", b="5678"))


def test_a_long_key_in_the_metadata_is_refused_by_its_name() -> None:
    with pytest.raises(LongKey, match="metadata x-user is too long"):
        keys.key_in(keys.MetadataKey("x-user", 8), None, [("x-user", "123456789")])
    for rule in (keys.field_key(STRING.DESCRIPTOR, ["id"], 8), keys.MetadataKey(keys.HEADER, 8)):
        with pytest.raises(LongKey, match="metadata onelane-key is too long"):
            keys.key_in(rule, None, [("onelane-key", "123456789")])


def test_a_message_that_holds_itself_ends_the_search() -> None:
    cls = message_with(field("next", 1, Field.TYPE_MESSAGE, of=".t.M"), field("id", 2, Field.TYPE_STRING, key=True))
    assert keys.annotated_paths(cls.DESCRIPTOR) == ("id",)


def test_what_cannot_be_a_key_is_refused_by_name() -> None:
    with pytest.raises(BadService, match=r"t\.M\.ok: .* not a float or bool"):
        keys.field_key(message_with(field("ok", 1, Field.TYPE_BOOL)).DESCRIPTOR, ["ok"])
    with pytest.raises(BadService, match="has no field 'nope'"):
        keys.field_key(STRING.DESCRIPTOR, ["nope"])
    with pytest.raises(BadService, match="cannot lie in a repeated field"):
        keys.field_key(message_with(field("l", 1, Field.TYPE_STRING, repeated=True)).DESCRIPTOR, ["l"])


def test_metadata_that_contradicts_the_field_is_refused() -> None:
    rule = keys.field_key(STRING.DESCRIPTOR, ["id"])
    assert keys.key_in(rule, STRING(id="a"), [("onelane-key", "a")]) == "a"
    with pytest.raises(BadKey, match="onelane-key is 'b', but id makes the key 'a'"):
        keys.key_in(rule, STRING(id="a"), [("onelane-key", "b")])


def test_metadata_can_be_the_key() -> None:
    rule = keys.MetadataKey("x-user")
    assert keys.key_in(rule, None, [("x-user", "a b")]) == "a%20b"
    with pytest.raises(BadKey, match="metadata x-user is missing"):
        keys.key_in(rule, None, [])


def test_several_values_are_joined_as_grpc_hashes_them() -> None:
    assert keys.header_of([("onelane-key", "a"), ("x", "y"), ("onelane-key", "b")]) == "a,b"


@pytest.mark.parametrize("name", ["X-User", "x-bin", ""])
def test_a_metadata_name_that_grpc_would_never_match_is_refused(name: str) -> None:
    with pytest.raises(BadService, match="expected a lower-case name"):
        keys.configured_rule(f"metadata:{name}", None)


PARTS = st.text() | st.binary() | st.integers()


@given(PARTS | st.lists(PARTS, min_size=2).map(tuple))
def test_a_key_that_is_named_by_its_canonical_text_is_the_same_key(key: Any) -> None:
    text = keys.canonical(key)
    assert keys.canonical(keys.named(text)) == keys.bounded(key, "the key", 10**6) == text


@pytest.mark.parametrize("key", [(), ("a",), ("a", None), ("a", ("b",)), ("a", 1.5)])
def test_a_tuple_that_is_no_key_is_refused_with_what_is_one(key: Any) -> None:
    with pytest.raises(Misuse, match=r"the key of the turn is .*: one of several fields is a tuple of two or more"):
        keys.bounded(key, "the key of the turn", 100)


@pytest.mark.parametrize("key", [("a" * 99, b"b"), ("%" * 40, 1), (10**60, 10**60)])
def test_of_several_fields_the_sum_is_limited(key: Any) -> None:
    with pytest.raises(LongKey):
        keys.bounded(key, "the key", 100)
