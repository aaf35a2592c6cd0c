"""Codecs: a value of a keyed dict as bytes, and back. No pickle: bytes from elsewhere never run code here.

`msgpack`: whatever msgspec encodes with its type: dataclass, Struct, attrs, TypedDict, builtins, dates, UUID, Enum, and
any of them nested. A field that was added has its default, one that was removed is skipped.
`protobuf`: a generated message, by its own rules for changes.
Any other: an object with `encode(value) -> bytes` and `decode(bytes) -> value`, from the service.

msgspec is imported when the first such dict is declared: an app without one does not pay for it.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

from google.protobuf.message import Message

from onelane.errors import BadService
from onelane.state.kinds import encodable_faults

Migration = Callable[[Any], Any]
"""Lifts a value by one version; see `Codec.lift`."""
BUILT_IN = ("msgpack", "protobuf")


@runtime_checkable
class ServiceCodec(Protocol):
    """What `codec=` takes. Its name travels with each value: its own `name`, else its class's."""

    def encode(self, value: Any, /) -> bytes:
        """The value as bytes; whatever it raises counts as a value that cannot be encoded."""

    def decode(self, data: bytes, /) -> Any:
        """The value again; whatever it raises counts as bytes that cannot be read."""


class Codec(Protocol):
    """A codec for one kind. Its methods raise any `Exception`, whose text names the field where it can."""

    @property
    def name(self) -> str:
        """Travels with each value."""

    def encode(self, value: Any) -> bytes:
        """The value as bytes, unchecked."""

    def check(self, value: Any, data: bytes) -> None:
        """Raise where `data`, the value's bytes, would not give the value back."""

    def decode(self, data: bytes) -> Any:
        """A value of the kind."""

    def lift(self, data: bytes, steps: list[Migration]) -> bytes:
        """The bytes of an older version, taken through `steps`. A step of `msgpack` is given builtins, as of
        `msgspec.msgpack.decode` without a type, and returns the next version's, or anything that encodes like them; a
        step of any other codec is given bytes, and returns bytes."""


def codec_for(kind: Any, codec: ServiceCodec | None) -> Codec:
    """The codec of a kind. codec: the service's own; None for that of the kind.

    Raises:
        BadService: the kind cannot be encoded, by field; or `codec` is none.
    """
    if codec is not None:
        return OwnCodec(codec)
    if isinstance(kind, type) and issubclass(kind, Message):
        return ProtobufCodec(kind)
    if faults := encodable_faults(kind):
        raise BadService(
            f"cannot be encoded: {'; '.join(faults)}. Either change it, or give a codec= with encode(value) and "
            "decode(bytes), or say moves=False: then the entries are dropped when their key leaves the process"
        )
    return MsgpackCodec(kind)


class MsgpackCodec:
    """See the module."""

    name = "msgpack"

    def __init__(self, kind: Any) -> None:
        # Here, and not at the first value: that is in the middle of a change, or of a turn, where all calls of the lane
        # would wait for the import.
        from msgspec.msgpack import Decoder, Encoder

        self._encode: Callable[[Any], bytes] = Encoder().encode
        self._decode: Callable[[bytes], Any] = Decoder(kind).decode

    def encode(self, value: Any) -> bytes:
        try:
            return self._encode(value)
        except Exception as error:
            raise ValueError(f"{error} - at `{self._place_of_fault(value)}`") from error

    def check(self, value: Any, data: bytes) -> None:
        """msgspec writes a value without a look at its type: an attribute of a wrong type would be found at the new
        owner, where the value is lost already, and a subclass would come back as its base.

        Not noticed: a subclass that is equal to its base, as a defaultdict is to a dict."""
        decoded = self._decode(data)
        if decoded != value and (difference := _difference(value, decoded, "$")):
            raise ValueError(difference)

    def decode(self, data: bytes) -> Any:
        return self._decode(data)

    def lift(self, data: bytes, steps: list[Migration]) -> bytes:
        from msgspec.msgpack import decode

        value = decode(data)
        for step in steps:
            value = step(value)
        return self._encode(value)

    def _place_of_fault(self, value: Any, place: str = "$", depth: int = 0) -> str:
        """The innermost part of a value that cannot be encoded. A value in a circle has no innermost part."""
        for name, part in _parts(value) if depth < 20 else ():
            try:
                self._encode(part)
            except Exception:
                return self._place_of_fault(part, f"{place}{name}", depth + 1)
        return place


class ProtobufCodec:
    """See the module. The bytes of equal messages are equal, within one release of protobuf."""

    name = "protobuf"

    def __init__(self, kind: type[Message]) -> None:
        self._kind = kind

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, self._kind):
            raise TypeError(f"expected {self._kind.__name__}, got {type(value).__name__}")
        return value.SerializeToString(deterministic=True)

    def check(self, value: Any, data: bytes) -> None: ...

    def decode(self, data: bytes) -> Any:
        return self._kind.FromString(data)

    def lift(self, data: bytes, steps: list[Migration]) -> bytes:
        return _through(data, steps)


class OwnCodec:
    """A service's codec."""

    def __init__(self, codec: ServiceCodec) -> None:
        if not isinstance(codec, ServiceCodec):
            raise BadService(f"codec={codec!r} lacks encode(value) or decode(bytes)")
        name = getattr(codec, "name", "") or getattr(codec, "__name__", type(codec).__qualname__)
        if not isinstance(name, str) or name in BUILT_IN:
            raise BadService(f"codec={codec!r}: {name!r} cannot be its name; {' and '.join(BUILT_IN)} are taken")
        self.name = name
        self.decode = codec.decode
        self._encode = codec.encode

    def encode(self, value: Any) -> bytes:
        data = self._encode(value)
        if not isinstance(data, bytes):
            raise TypeError(f"codec {self.name} returned {type(data).__name__}, not bytes")
        return data

    def check(self, value: Any, data: bytes) -> None: ...

    def lift(self, data: bytes, steps: list[Migration]) -> bytes:
        return _through(data, steps)


def _through(data: bytes, steps: list[Migration]) -> bytes:
    for step in steps:
        data = step(data)
        if not isinstance(data, bytes):
            raise TypeError(f"{step} returned {type(data).__name__}, not bytes")
    return data


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a container or of an object with fields, each with its place in there."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{key!r} as a key]", key
            yield f"[{key!r}]", item
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    else:
        for name in _field_names(value):
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)


def _field_names(value: Any) -> tuple[str, ...]:
    if is_dataclass(value):
        return tuple(field.name for field in fields(value))
    attributes = getattr(type(value), "__attrs_attrs__", ())
    return getattr(type(value), "__struct_fields__", None) or tuple(attribute.name for attribute in attributes)


def _difference(value: Any, decoded: Any, place: str) -> str:
    """Where a value and its copy are of different types, in words; "" where they are not. Of a set only its own type
    counts, since its items have no order."""
    if type(value) is not type(decoded):
        # Such as an int where a float is declared, and an enum of text.
        is_plain = isinstance(value, str | bytes | int | float)
        wrong = f"a {type(value).__qualname__} would come back as a {type(decoded).__qualname__} - at `{place}`"
        return "" if is_plain else wrong
    if isinstance(value, set | frozenset):
        return ""
    pairs = zip(_parts(value), _parts(decoded), strict=False)
    return next(filter(None, (_difference(part, copy, place + name) for (name, part), (_, copy) in pairs)), "")
