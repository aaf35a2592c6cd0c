"""One entry of a keyed dict as it leaves its process, and the spellings of a routing key.

A routing key is known by its canonical text (`core/keys`); a dict has it as the service wrote it. Several spellings
have one canonical text: 1, "1" and b"1". In a dict each is an entry of its own; all of them belong to that one routing
key, and move with it. A key of several fields is a tuple of them, in the order of their rule.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from onelane.core.keys import KeyPart, RoutingKey, canonical, composite

DictKey = RoutingKey
"""A routing key as a service writes it. A bool is the integer that it equals, as in any dict."""
MAX_FIELDS = 5
"""Of a key of a dict: each field may have three spellings, and all of them together are looked up. Five integers have
243, which take some 10 µs for each dict, after a turn of such a key that is kept, and as it moves."""
MOST_BYTES = 2**31 - 2**24
"""Of the values of one key together: they leave in one message, and protobuf writes none of 2 GiB. The names of their
dicts and all else of the message have the rest."""
_PARTS = (str, bytes, int)
_INTEGER_BEGINS = frozenset("-0123456789")
_KINDS: dict[str, Callable[[str], KeyPart]] = {
    "s": lambda text: unquote_to_bytes(text).decode(),
    "b": unquote_to_bytes,
    "i": int,
}
"""Letter → the part of that kind with a canonical text."""


@dataclass(frozen=True, slots=True, repr=False)
class UnknownKey:
    """The key of an entry in a dict, spelled by a newer release in a way that this one does not know."""

    kind: str
    """In words."""
    release: str
    """Of the sender; "" where it has not named it."""
    entry: bytes
    """The whole entry as it came: an `Entry` of siblings.proto."""

    def __repr__(self) -> str:
        return f"<{self.kind}>"


class KeyedEntry(NamedTuple):
    """What one keyed dict holds for a key; `Entry` of siblings.proto."""

    dict: str
    """The dict's name."""
    key: DictKey | UnknownKey
    """As the dict has it."""
    value: bytes
    """As its codec writes it."""
    codec: str
    """The codec's name."""
    version: int
    """Of the value's kind."""


def canonical_key(key: object) -> str | None:
    """The canonical text of a dict's key; None where it is no routing key."""
    try:
        # A constant: the union of three types is made anew wherever it is written.
        if isinstance(key, _PARTS):
            return canonical(key)
        return composite(key) if isinstance(key, tuple) and len(key) <= MAX_FIELDS else None
    except ValueError:
        # A text that is no Unicode, or an integer of thousands of digits.
        return None


class CompositeSpellings:
    """The spellings of a key of several fields, made anew each time: 243 tuples of each key that is remembered would
    take more memory than what the key stands for."""

    __slots__ = ("_parts",)

    def __init__(self, parts: list[tuple[KeyPart, ...]]) -> None:
        """parts: of each field its spellings."""
        self._parts = parts

    def __iter__(self) -> Iterator[tuple[KeyPart, ...]]:
        return product(*self._parts)


def spellings(text: str) -> Iterable[DictKey]:
    """The dict keys whose canonical text is `text`, the commonest first. May be iterated again."""
    if "/" not in text:
        return _spellings_of_part(text)
    parts = text.split("/", MAX_FIELDS)
    # A client may send any text with any number of slashes.
    return CompositeSpellings(list(map(_spellings_of_part, parts))) if len(parts) <= MAX_FIELDS else ()


def _spellings_of_part(text: str) -> tuple[KeyPart, ...]:
    if canonical_key(text) == text:
        # Nearly every key: it is spelled as it is.
        if text[:1] not in _INTEGER_BEGINS or (integer := _integer(text)) is None:
            return text, text.encode()
        return text, text.encode(), integer
    raw = unquote_to_bytes(text)
    candidates: tuple[KeyPart, ...] = (raw.decode(errors="replace"), raw)
    return tuple(key for key in candidates if canonical_key(key) == text)


def _integer(text: str) -> int | None:
    """The integer whose canonical text it is."""
    # Asked before, since an exception costs more than all else that is done for a key that leaves.
    if text.removeprefix("-").isdecimal():
        # Python makes no integer of thousands of digits.
        with suppress(ValueError):
            integer = int(text)
            return integer if str(integer) == text else None
    return None


def composite_text(key: tuple[KeyPart, ...]) -> str:
    """A key of several fields as a store and a sibling have it: of each its kind and its canonical text."""
    return "/".join(_kind_of(part) + canonical(part) for part in key)


def composite_of(text: str) -> tuple[KeyPart, ...]:
    """The key that `composite_text` has written.

    Raises:
        ValueError: it has written none of this kind.
    """
    try:
        return tuple(_KINDS[part[:1]](part[1:]) for part in text.split("/"))
    except KeyError as error:
        raise ValueError(f"{text!r} names no key of several fields") from error


def _kind_of(part: KeyPart) -> str:
    return "s" if isinstance(part, str) else "b" if isinstance(part, bytes) else "i"
