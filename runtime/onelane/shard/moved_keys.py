"""The state of a key as `Siblings.HandOver` carries it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from onelane.state.entries import DictKey, KeyedEntry, composite_of, composite_text
from onelane.v1 import siblings_pb2

_READERS: dict[str, Callable[[str], DictKey]] = {"integer": int, "composite": composite_of}


def moved_key(key: str, entries: Iterable[KeyedEntry]) -> siblings_pb2.MovedKey:
    """key: canonical text."""
    moved = siblings_pb2.MovedKey(key=key)
    for name, spelled, value, codec, version in entries:
        moved.entries.add(dict=name, value=value, codec=codec, version=version, **_spelling(spelled))
    return moved


def entries_from(moved: siblings_pb2.MovedKey) -> Iterator[KeyedEntry]:
    """The entries of a key as they came."""
    return map(_read, moved.entries)


def _spelling(key: DictKey) -> dict[str, Any]:
    """A field of the message, and its value."""
    if isinstance(key, str):
        return {"text": key}
    if isinstance(key, tuple):
        return {"composite": composite_text(key)}
    return {"raw": key} if isinstance(key, bytes) else {"integer": str(int(key))}


def _read(entry: siblings_pb2.Entry) -> KeyedEntry:
    kind = entry.WhichOneof("key") or "text"
    read = _READERS.get(kind)
    key: DictKey = getattr(entry, kind) if read is None else read(getattr(entry, kind))
    return KeyedEntry(entry.dict, key, entry.value, entry.codec, entry.version)
