"""The entries of the durable dicts as the rows of a store, and back."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from onelane.errors import UnreadableValue, UnwritableValue, caused
from onelane.state.declaration import ValueCodec
from onelane.state.entries import DictKey, KeyedEntry, UnknownKey, composite_of, composite_text, spellings
from onelane.state.keyed import KeyedDicts
from onelane.state.store import Row

REMEMBERED = 16_384
"""Keys whose spellings are remembered."""


class DurableEntries:
    """The `DictsOfKeys` of a journal. Owned by one lane."""

    def __init__(self, dicts: KeyedDicts) -> None:
        self._dicts = dicts
        self._spellings = lru_cache(REMEMBERED)(spellings)

    def rows_of(self, key: str, before: Mapping[str, Row]) -> dict[str, Row]:
        """See `onelane.state.journal.DictsOfKeys`."""
        rows: dict[str, Row] = {}
        for name, codec in self._dicts.durable.items():
            entries = self._dicts.entries(name)
            for spelling in self._spellings(key):
                if spelling not in entries:
                    continue
                if name in rows:
                    raise UnwritableValue(name, spelling, "the dict has it under another spelling as well")
                value = codec.encoded(spelling, entries[spelling])
                rows[name] = _row(name, value, spelling, codec, before.get(name))
        return rows

    def install(self, key: str, rows: Sequence[Row]) -> list[Row]:
        """See `onelane.state.journal.DictsOfKeys`."""
        rows = [row for row in rows if row.dict_name in self._dicts.durable]
        # All are read before the first is put.
        values = [
            (row.dict_name, entry.key, self._dicts.durable[row.dict_name].read(entry))
            for row, entry in zip(rows, map(_readable_entry, rows), strict=True)
        ]
        for name, spelling, value in values:
            self._dicts.entries(name)[spelling] = value
        if values or self._dicts.is_owed_arrival(key):
            self._dicts.arrived(key)
        return rows

    def forget(self, key: str) -> None:
        """See `onelane.state.journal.DictsOfKeys`."""
        for name in self._dicts.durable:
            self.remove(name, key)

    def remove(self, name: str, key: str) -> None:
        """Remove the entry of a key from one dict, as the service would."""
        entries = self._dicts.entries(name)
        for spelling in self._spellings(key):
            entries.pop(spelling, None)


def _row(name: str, value: bytes, spelling: DictKey, codec: ValueCodec, before: Row | None) -> Row:
    """The row of a value; the one before where it has not changed."""
    spelled, codec_name, version = _spelled(spelling), codec.codec.name, codec.declaration.version
    if (
        before is not None
        and before.value == value
        and before.version == version
        and before.codec == codec_name
        and before.spelled == spelled
    ):
        return before
    return Row(name, value, spelled, codec_name, version)


def row_of(entry: KeyedEntry) -> Row:
    """An entry as a store has it."""
    return Row(entry.dict, entry.value, _spelled(entry.key), entry.codec, entry.version)


def entry_of(row: Row) -> KeyedEntry:
    """The entry that `row_of` has written.

    Raises:
        ValueError: a newer release has written it, or it is damaged.
    """
    return KeyedEntry(row.dict_name, key_of(row), row.value, row.codec, row.version)


def _readable_entry(row: Row) -> KeyedEntry:
    try:
        return entry_of(row)
    except ValueError as error:
        reason = f"its key is spelled in a way that this release does not know: {error}"
        raise caused(UnreadableValue(row.dict_name, row.spelled, reason), error) from error


def _spelled(key: DictKey | UnknownKey) -> bytes:
    assert not isinstance(key, UnknownKey)
    if isinstance(key, tuple):
        return b"t" + composite_text(key).encode()
    if isinstance(key, bytes):
        return b"b" + key
    return b"s" + key.encode() if isinstance(key, str) else b"i%d" % key


def key_of(row: Row) -> DictKey:
    """The key of an entry, as its dict has it. Raises what `entry_of` raises."""
    kind, text = row.spelled[:1], row.spelled[1:]
    if kind == b"t":
        return composite_of(text.decode())
    if kind not in (b"i", b"b", b"s"):
        raise ValueError(f"it begins with {kind!r}")
    return int(text) if kind == b"i" else text if kind == b"b" else text.decode()
