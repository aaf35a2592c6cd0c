"""Values outlive the release that wrote them: fields come and go, older versions are lifted, newer ones are refused.

The files in `old_values` were written by the classes below, as they were in each version.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from onelane.errors import BadService, UnreadableValue
from onelane.state.declaration import Declaration, ValueCodec
from onelane.state.entries import KeyedEntry

from tests.echo.v1.echo_pb2 import EchoRequest

OLD_VALUES = Path(__file__).parent / "old_values"


@dataclass
class PriceOfVersion1:
    """In euros."""

    amount: float


@dataclass
class PriceOfVersion2:
    cents: int


@dataclass
class Price:
    """The newest: version 3."""

    cents: int
    currency: str


def to_version_2(price: dict[str, Any]) -> dict[str, Any]:
    return {"cents": round(price["amount"] * 100)}


def to_version_3(price: dict[str, Any]) -> dict[str, Any]:
    return price | {"currency": "EUR"}


MIGRATE = {1: to_version_2, 2: to_version_3}


def prices(**changes: Any) -> ValueCodec:
    """The newest release; changes: of its declaration."""
    arguments: dict[str, Any] = {"kind": Price, "version": 3, "migrate": MIGRATE} | changes
    return ValueCodec(Declaration("prices", **arguments))


def stored(version: int) -> KeyedEntry:
    return KeyedEntry("prices", "tea", (OLD_VALUES / f"price_{version}.msgpack").read_bytes(), "msgpack", version)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_values_of_every_version_are_read(version: int) -> None:
    assert prices().read(stored(version)) == Price(250, "EUR")


def test_the_newest_version_is_written() -> None:
    assert prices().write("tea", Price(250, "EUR")) == stored(3)


def test_a_step_may_return_what_encodes_like_the_next_version() -> None:
    assert prices(migrate={2: lambda price: Price(price["cents"], "CHF")}).read(stored(2)) == Price(250, "CHF")


@pytest.mark.parametrize("version", [4, 0])
def test_a_version_that_this_release_does_not_know_is_refused_by_name(version: int) -> None:
    entry = KeyedEntry("prices", "tea", stored(3).value, "msgpack", version)
    with pytest.raises(UnreadableValue, match=f"'prices', key 'tea': of version {version}, but .* versions up to 3"):
        prices().read(entry)


def test_a_missing_step_is_named() -> None:
    with pytest.raises(UnreadableValue, match="of version 1, and migrate has no step from 1"):
        prices(migrate={2: to_version_3}).read(stored(1))


def test_a_step_that_raises_is_named() -> None:
    with pytest.raises(UnreadableValue, match=r"keyed 'prices', key 'tea': KeyError: 'amount'"):
        prices(migrate={1: to_version_2, 2: to_version_2}).read(stored(1))


def test_a_step_whose_result_does_not_fit_is_named_with_the_field() -> None:
    with pytest.raises(UnreadableValue, match=r"Expected `int`, got `str` - at `\$.cents`"):
        prices(migrate={2: lambda price: {"cents": "250", "currency": "EUR"}}).read(stored(2))


def test_values_of_another_codec_are_refused_by_name() -> None:
    with pytest.raises(UnreadableValue, match="written by codec 'protobuf', but this release has 'msgpack'"):
        prices().read(KeyedEntry("prices", "tea", b"", "protobuf", 3))


@dataclass
class Slim:
    """Price without `currency`, and with a new field."""

    cents: int
    tax: float = 0.19


def test_fields_are_added_with_defaults_and_removed_without_a_version() -> None:
    slim = ValueCodec(Declaration("prices", Slim, version=3))
    assert slim.read(stored(3)) == Slim(250)
    price_with_default = msgspec.defstruct("Price", [("cents", int), ("currency", str, "EUR")])
    written = slim.write("tea", Slim(300, 0.07))
    assert ValueCodec(Declaration("prices", price_with_default, version=3)).read(written).currency == "EUR"


def test_a_field_without_a_default_is_named() -> None:
    with pytest.raises(UnreadableValue, match="missing required field `currency`"):
        prices(version=2, migrate={}).read(stored(2))


def test_steps_of_protobuf_have_bytes() -> None:
    last = ValueCodec(Declaration("last", EchoRequest, version=2, migrate={1: lambda data: data[1:]}))
    data = EchoRequest(text="hello").SerializeToString()
    assert last.read(KeyedEntry("last", "tea", b"\x00" + data, "protobuf", 1)) == EchoRequest(text="hello")
    no_bytes = ValueCodec(Declaration("last", EchoRequest, version=2, migrate={1: EchoRequest.FromString}))
    with pytest.raises(UnreadableValue, match="returned EchoRequest, not bytes"):
        no_bytes.read(KeyedEntry("last", "tea", data, "protobuf", 1))


async def step(value: Any) -> Any: ...


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 0}, "version=0: expected an integer from 1"),
        ({"version": 2**32}, "version=4294967296: expected an integer from 1 to 4294967295"),
        ({"version": "2"}, "version='2': expected"),
        ({"version": 2}, "migrate has 2, but versions before are 1 to 1"),
        ({"migrate": {1: step}}, r"migrate\[1\] is no plain function"),
        ({"migrate": {1: {}}}, r"migrate\[1\] is no plain function"),
        ({"kind": dict[str, object()], "migrate": {}}, "keyed 'prices': cannot be encoded: <object object"),  # type: ignore[misc]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_declaration_that_cannot_work_is_refused_at_start(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadService, match=message):
        prices(**changes)


class NamelessCodec:
    name = "\ud800"

    def encode(self, value: Any) -> bytes:
        return b""

    def decode(self, data: bytes) -> Any:
        return None


def test_a_name_that_cannot_be_written_is_refused_at_start() -> None:
    """Else each entry would fail as its key leaves."""
    with pytest.raises(BadService, match="expected a text as its name"):
        Declaration("\ud800", int)
    with pytest.raises(BadService, match="the name of its codec"):
        prices(codec=NamelessCodec(), migrate={})


def test_a_refused_kind_is_told_the_three_ways_out() -> None:
    with pytest.raises(BadService) as refused:
        prices(kind=dict[str, type])
    assert str(refused.value) == (
        "keyed 'prices': cannot be encoded: type. Either change it, or give a codec= with encode(value) and "
        "decode(bytes), or say moves=False: then the entries are dropped when their key leaves the process"
    )
