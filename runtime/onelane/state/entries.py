"""One entry of a keyed dict as it leaves its process, and the spellings of a routing key.

A routing key is known by its canonical text (`core/keys`); a dict has it as the service wrote it. Several spellings
have one canonical text: 1, "1" and b"1". In a dict each is an entry of its own; all of them belong to that one routing
key, and move with it.
"""

from contextlib import suppress
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from onelane.core.keys import canonical

DictKey = str | bytes | int
"""A routing key as a service writes it. A bool is the integer that it equals, as in any dict."""


class KeyedEntry(NamedTuple):
    """What one keyed dict holds for a key; `Entry` of siblings.proto."""

    dict: str
    """The dict's name."""
    key: DictKey
    """As the dict has it."""
    value: bytes
    """As its codec writes it."""
    codec: str
    """The codec's name."""
    version: int
    """Of the value's kind."""


def canonical_key(key: object) -> str | None:
    """The canonical text of a dict's key; None where it is no routing key."""
    if not isinstance(key, str | bytes | int):
        return None
    try:
        return canonical(key)
    except ValueError:
        # A text that is no Unicode, or an integer of thousands of digits.
        return None


def spellings(text: str) -> tuple[DictKey, ...]:
    """The dict keys whose canonical text is `text`, the commonest first."""
    if canonical_key(text) == text:
        # Nearly every key: it is spelled as it is.
        spelled: tuple[DictKey, ...] = (text, text.encode())
        return spelled if (integer := _integer(text)) is None else (*spelled, integer)
    raw = unquote_to_bytes(text)
    candidates: tuple[DictKey, ...] = (raw.decode(errors="replace"), raw)
    return tuple(key for key in candidates if canonical_key(key) == text)


def _integer(text: str) -> int | None:
    """The integer whose canonical text it is."""
    if text[-1:].isdecimal():
        # Python makes no integer of thousands of digits.
        with suppress(ValueError):
            integer = int(text)
            return integer if str(integer) == text else None
    return None
