"""What a codec writes it reads back as the same value, or it says at once why it cannot."""

import datetime
import enum
import math
import subprocess
import sys
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple, TypedDict

import msgspec
import pytest
from google.protobuf.struct_pb2 import Struct, Value
from hypothesis import given
from hypothesis import strategies as st
from onelane.errors import BadService
from onelane.state.codecs import Codec, codec_for

from tests.bounds import BOUND_S
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(NamedTuple):
    x: int
    y: float


class Address(TypedDict, total=False):
    street: str
    since: datetime.date


class Tag(msgspec.Struct, eq=False):
    """Not compared by value."""

    name: str
    weight: float
    sizes: set[int | None] = msgspec.field(default_factory=set)


@dataclass(slots=True)
class Everything:
    number: int
    ratio: float
    text: str
    raw: bytes
    flag: bool
    nothing: None
    day: datetime.date
    moment: datetime.datetime
    span: datetime.timedelta
    price: Decimal
    ident: uuid.UUID
    colour: Colour
    point: Point
    address: Address
    names: set[str]
    pairs: dict[int, tuple[str, int]]
    parts: list["Everything"]


FIELDS = {
    "number": st.integers(-(2**63), 2**64 - 1),
    "ratio": st.floats(allow_nan=False),
    "text": st.text(),
    "raw": st.binary(),
    "flag": st.booleans(),
    "nothing": st.none(),
    "day": st.dates(),
    "moment": st.datetimes() | st.datetimes(timezones=st.just(datetime.UTC)),
    "span": st.timedeltas(datetime.timedelta(days=-10_000), datetime.timedelta(days=10_000)),
    "price": st.decimals(allow_nan=False),
    "ident": st.uuids(),
    "colour": st.sampled_from(Colour),
    "point": st.builds(Point, st.integers(-(2**63), 2**63), st.floats(allow_nan=False)),
    "address": st.fixed_dictionaries({}, optional={"street": st.text(), "since": st.dates()}),
    "names": st.sets(st.text()),
    "pairs": st.dictionaries(st.integers(0, 2**63), st.tuples(st.text(), st.integers(0, 9))),
}
EVERYTHING = st.recursive(
    st.builds(Everything, parts=st.just([]), **FIELDS),
    lambda inner: st.builds(Everything, parts=st.lists(inner, max_size=2), **FIELDS),
    max_leaves=3,
)
EVERYTHING_CODEC = codec_for(Everything, None)


def there_and_back(codec: Codec, value: Any) -> Any:
    data = codec.encode(value)
    codec.check(value, data)
    return codec.decode(data)


@given(EVERYTHING)
def test_every_value_of_a_kind_comes_back_equal(value: Everything) -> None:
    assert there_and_back(EVERYTHING_CODEC, value) == value


@given(st.builds(EchoRequest, key=st.text(), text=st.text()))
def test_every_message_comes_back_equal(value: EchoRequest) -> None:
    assert there_and_back(codec_for(EchoRequest, None), value) == value


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(PLAIN))
def test_a_list_without_the_type_of_its_items_holds_builtins(value: list[Any]) -> None:
    assert repr(there_and_back(codec_for(list, None), value)) == repr(value)


def test_the_order_of_a_dict_is_kept() -> None:
    value = {"b": 1, "a": 2, "c": 3}
    assert list(there_and_back(codec_for(dict[str, int], None), value)) == ["b", "a", "c"]


def test_a_kind_that_is_not_compared_by_value_comes_back() -> None:
    copy = there_and_back(codec_for(Tag, None), Tag("a", math.nan))
    assert (copy.name, math.isnan(copy.weight)) == ("a", True)
    assert there_and_back(codec_for(Tag, None), Tag("a", 3)).weight == 3.0


def test_the_items_of_a_set_may_come_back_in_another_order() -> None:
    codec = codec_for(Tag, None)
    for size in range(50):
        # Its table has room for many more items than that of its copy, so the two often differ in order.
        sizes: set[int | None] = {None, *range(200)}
        for other in set(range(200)) - {size}:
            sizes.discard(other)
        assert there_and_back(codec, Tag("a", 0.0, sizes)).sizes == sizes


@dataclass
class Animal:
    name: str


@dataclass
class Dog(Animal):
    tricks: list[str] = field(default_factory=list)


CHANGED: dict[str, tuple[Any, Any, str]] = {
    "a subclass": (Animal, Dog("rex"), "a Dog would come back as a Animal - at `$`"),
    "nested": (dict[str, Animal], {"d": Dog("rex")}, "a Dog would come back as a Animal - at `$['d']`"),
    "a tuple in a list": (list, [1, (2,)], "a tuple would come back as a list - at `$[1]`"),
    "an object in a list": (list, [Animal("rex")], "a Animal would come back as a dict - at `$[0]`"),
    "a set in a dict": (dict, {"a": {1}}, "a set would come back as a list - at `$['a']`"),
}


@pytest.mark.parametrize(("kind", "value", "message"), CHANGED.values(), ids=CHANGED)
def test_a_value_that_would_come_back_as_another_type_is_refused(kind: Any, value: Any, message: str) -> None:
    """msgspec alone would write each of these without a word."""
    codec = codec_for(kind, None)
    with pytest.raises(ValueError, match="would come back") as caught:
        codec.check(value, codec.encode(value))
    assert str(caught.value) == message


def test_a_value_in_a_circle_is_an_error_not_a_crash() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match=r"recursion .* - at `\$\[0\]"):
        codec_for(list, None).encode(circle)


def test_equal_messages_have_equal_bytes() -> None:
    codec = codec_for(Struct, None)
    first, second = (Struct(fields={str(i): Value() for i in order}) for order in (range(50), reversed(range(50))))
    assert codec.encode(first) == codec.encode(second)


def test_messages_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match="expected EchoRequest, got EchoReply"):
        codec_for(EchoRequest, None).encode(EchoReply())


class Upper:
    """A service's codec."""

    def encode(self, value: Any) -> bytes:
        return value.upper().encode()  # type: ignore[no-any-return]

    def decode(self, data: bytes) -> str:
        return data.decode().lower()


class Named(Upper):
    name = "upper-1"


class Text(Upper):
    def encode(self, value: Any) -> bytes:
        return value  # type: ignore[no-any-return]


def test_a_codec_of_the_service_takes_any_kind_and_has_a_name() -> None:
    assert there_and_back(codec_for(OrderedDict, Upper()), "abc") == "abc"
    assert [codec_for(object, codec).name for codec in (Upper(), Named(), msgspec.json)] == [
        "Upper",
        "upper-1",
        "msgspec.json",
    ]


def test_a_codec_that_writes_no_bytes_is_named() -> None:
    with pytest.raises(TypeError, match="codec Text returned str, not bytes"):
        codec_for(str, Text()).encode("abc")


@pytest.mark.parametrize(
    ("codec", "message"),
    [(object(), "lacks encode"), (type("C", (Upper,), {"name": "msgpack"})(), "'msgpack' cannot be its name")],
    ids=["no codec", "the name of another"],
)
def test_what_is_no_codec_is_refused(codec: Any, message: str) -> None:
    with pytest.raises(BadService, match=message):
        codec_for(str, codec)


def test_msgspec_is_imported_by_the_first_kind_that_needs_it() -> None:
    """A shard without such a dict pays neither the time nor the memory of its import."""
    program = (
        "import sys, onelane.shard.shard\n"
        "from onelane.state.codecs import codec_for\n"
        "from onelane.v1.siblings_pb2 import Entry\n"
        "codec_for(Entry, None).encode(Entry())\n"
        "assert not any(name.startswith('msgspec') for name in sys.modules)\n"
        "codec_for(int, None)\n"
        "assert 'msgspec' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=BOUND_S)


@pytest.mark.parametrize("kind", ["int", "dict", "Entry", "datetime.date"])
def test_the_first_value_of_a_kind_imports_nothing(kind: str) -> None:
    """It is on the lane, in the middle of a turn or of a change, where all calls wait for an import."""
    value = {"int": "1", "dict": "{'a': 1}", "Entry": "Entry()", "datetime.date": "datetime.date(2026, 1, 2)"}[kind]
    program = (
        "import datetime, sys\n"
        "from onelane.state.codecs import codec_for\n"
        "from onelane.v1.siblings_pb2 import Entry\n"
        f"codec = codec_for({kind}, None)\n"
        "imported = set(sys.modules)\n"
        f"value = {value}\n"
        "data = codec.encode(value)\n"
        "codec.check(value, data)\n"
        "assert codec.decode(data) == value\n"
        "assert set(sys.modules) == imported, set(sys.modules) - imported\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=BOUND_S)
