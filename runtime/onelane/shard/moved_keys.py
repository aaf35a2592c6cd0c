"""The state of a key as `Siblings.HandOver` carries it."""

from collections.abc import Iterable, Iterator

from onelane.state.entries import DictKey, KeyedEntry
from onelane.v1 import siblings_pb2


def moved_key(key: str, entries: Iterable[KeyedEntry]) -> siblings_pb2.MovedKey:
    """key: canonical text."""
    return siblings_pb2.MovedKey(key=key, entries=map(_write, entries))


def entries_from(moved: siblings_pb2.MovedKey) -> Iterator[KeyedEntry]:
    """The entries of a key as they came."""
    return map(_read, moved.entries)


def _write(entry: KeyedEntry) -> siblings_pb2.Entry:
    message = siblings_pb2.Entry(dict=entry.dict, value=entry.value, codec=entry.codec, version=entry.version)
    if isinstance(entry.key, str):
        message.text = entry.key
    elif isinstance(entry.key, bytes):
        message.raw = entry.key
    else:
        message.integer = str(int(entry.key))
    return message


def _read(entry: siblings_pb2.Entry) -> KeyedEntry:
    kind = entry.WhichOneof("key") or "text"
    key: DictKey = int(entry.integer) if kind == "integer" else getattr(entry, kind)
    return KeyedEntry(entry.dict, key, entry.value, entry.codec, entry.version)
