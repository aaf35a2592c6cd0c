"""One entry of a keyed dict as it leaves its process, and the spellings of a routing key.

A routing key is known by its canonical text (`core/keys`); a dict has it as the service wrote it. Several spellings
have one canonical text: 1, "1" and b"1". In a dict each is an entry of its own; all of them belong to that one routing
key, and move with it.
"""

from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from onelane.core.keys import canonical

DictKey = str | bytes | int
"""A routing key as a service writes it. A bool is the integer that it equals, as in any dict."""


@dataclass(frozen=True, slots=True)
class KeyedEntry:
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
    raw = text.encode() if "%" not in text else unquote_to_bytes(text)
    candidates: list[DictKey] = [raw.decode(errors="replace"), raw]
    if text.removeprefix("-").isdecimal():
        # Python makes no integer of thousands of digits.
        with suppress(ValueError):
            candidates.append(int(text))
    return tuple(key for key in candidates if canonical_key(key) == text)
