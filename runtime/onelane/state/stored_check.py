"""Whether the code that is about to be deployed reads all that is stored."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from onelane.errors import UnreadableValue
from onelane.state.declaration import ValueCodec
from onelane.state.durable_entries import entry_of
from onelane.state.json_values import head_of
from onelane.state.store import Row


class StoredCheck:
    """Decodes entries as a lane does that loads their keys, and counts."""

    def __init__(self, rows: Iterable[tuple[str, Row]], codecs: Mapping[str, ValueCodec]) -> None:
        self._rows = rows
        self._codecs = codecs
        self.read = self.failed = 0
        self.undeclared: Counter[str] = Counter()
        """Dict that this release does not have → its entries, which a shard leaves in the store."""

    def unreadable(self) -> Iterator[dict[str, Any]]:
        """Check all; yields what is known of each entry that cannot be read, and why."""
        for key, row in self._rows:
            codec = self._codecs.get(row.dict_name)
            if codec is None:
                self.undeclared[row.dict_name] += 1
            elif reason := _reason(codec, row):
                self.failed += 1
                yield head_of(key, row) | {"reason": reason}
            else:
                self.read += 1


def _reason(codec: ValueCodec, row: Row) -> str:
    try:
        codec.read(entry_of(row))
    except UnreadableValue as error:
        return str(error)
    except ValueError as error:
        return f"keyed {row.dict_name!r}: the spelling {row.spelled!r} of its key is damaged: {error}"
    return ""
