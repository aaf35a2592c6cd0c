"""The state of a key as `Siblings.HandOver` carries it.

Promises: an entry whose key is of a kind that only a newer release knows is kept as it came, and written so again:
while an app is upgraded its keys may move to shards of the older release, and back.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from google.protobuf.unknown_fields import UnknownFieldSet

from onelane.state.entries import DictKey, KeyedEntry, UnknownKey, composite_of, composite_text
from onelane.v1 import siblings_pb2

_READERS: dict[str, Callable[[str], DictKey]] = {"integer": int, "composite": composite_of}


def moved_key(key: str, entries: Iterable[KeyedEntry]) -> siblings_pb2.MovedKey:
    """key: canonical text."""
    moved = siblings_pb2.MovedKey(key=key)
    put_entries(moved, entries)
    return moved


def put_entries(moved: siblings_pb2.MovedKey, entries: Iterable[KeyedEntry]) -> int:
    """Fill in the message of a key; returns the bytes of the values.

    `moved` may be in its batch already: a message that is put into another one is copied, with all values.
    """
    size = 0
    for name, spelled, value, codec, version in entries:
        if isinstance(spelled, str):
            moved.entries.add(dict=name, text=spelled, value=value, codec=codec, version=version)
        elif isinstance(spelled, UnknownKey):
            moved.entries.add().MergeFromString(spelled.entry)
        else:
            moved.entries.add(dict=name, value=value, codec=codec, version=version, **_spelling(spelled))
        size += len(value)
    return size


def entries_from(moved: siblings_pb2.MovedKey, *, release: str = "") -> Iterator[KeyedEntry]:
    """The entries of a key as they came. release: of the sender."""
    return map(partial(_read, release), moved.entries)


def _spelling(key: DictKey) -> dict[str, Any]:
    """A field of the message, and its value."""
    if isinstance(key, str):
        return {"text": key}
    if isinstance(key, tuple):
        return {"composite": composite_text(key)}
    return {"raw": key} if isinstance(key, bytes) else {"integer": str(int(key))}


def _read(release: str, entry: siblings_pb2.Entry) -> KeyedEntry:
    if text := entry.text:
        # Nearly every key.
        return KeyedEntry(entry.dict, text, entry.value, entry.codec, entry.version)
    kind = entry.WhichOneof("key")
    if kind is None:
        return _unknown(entry, f"field {_unknown_fields(entry)} of Entry", release)
    read = _READERS.get(kind)
    spelled = getattr(entry, kind)
    try:
        key: DictKey = spelled if read is None else read(spelled)
    except ValueError:
        return _unknown(entry, f"the {kind} {spelled!r:.100}", release)
    return KeyedEntry(entry.dict, key, entry.value, entry.codec, entry.version)


def _unknown(entry: siblings_pb2.Entry, kind: str, release: str) -> KeyedEntry:
    key = UnknownKey(kind, release, entry.SerializeToString())
    return KeyedEntry(entry.dict, key, entry.value, entry.codec, entry.version)


def _unknown_fields(entry: siblings_pb2.Entry) -> str:
    """The numbers of the fields that this release does not know: one of them has the key."""
    fields: Any = UnknownFieldSet(entry)
    return " or ".join(str(field.field_number) for field in fields) or "without a number"
