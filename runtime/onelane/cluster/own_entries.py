"""The entries of a machine under its lease, its record and its candidacy, as it knows them itself: by the view of its
watch, or as it has written them after that. Pure.

Promises: where nobody else has written the record, its next one is one transaction, without a read.
"""

from dataclasses import dataclass, replace

from onelane.cluster.coordination import Put, StoredEntry, Unchanged
from onelane.cluster.machines import ClusterKeys, ClusterView, MachineRecord, record_bytes


@dataclass(frozen=True, slots=True)
class OwnEntries:
    """Of one lease."""

    keys: ClusterKeys
    lease_id: int
    written: StoredEntry | None = None
    """The record as it was written last, which the watch may not have shown yet."""

    def wanted(self, record: MachineRecord) -> tuple[Put, Put]:
        """What the entries are to say."""
        return (
            Put(self.keys.machine(record.name), record_bytes(record), self.lease_id),
            Put(self.keys.candidate(self.lease_id), record.name.encode(), self.lease_id),
        )

    def agree_with(self, record: MachineRecord, view: ClusterView) -> bool:
        """Whether they say what they are to say."""
        return all(_says(self._known(put.key, view), put) for put in self.wanted(record))

    def update(self, record: MachineRecord, view: ClusterView) -> tuple[Unchanged, Put] | None:
        """What writes the record alone, on condition that it is as it is known. None: others have removed or written
        the entries, which are to be read first."""
        put, candidacy = self.wanted(record)
        before = self._known(put.key, view)
        if before is None or before.lease_id != self.lease_id or not _says(self._known(candidacy.key, view), candidacy):
            return None
        return Unchanged(put.key, before.changed), put

    def updated(self, put: Put, revision: int) -> "OwnEntries":
        """The record was written, in this revision."""
        # When it came to be does not matter here.
        return replace(self, written=StoredEntry(put.key, put.value, revision, revision, put.lease_id))

    def _known(self, key: str, view: ClusterView) -> StoredEntry | None:
        written = self.written
        if written is not None and written.key == key and written.changed > view.snapshot.revision:
            return written
        return view.snapshot.entries.get(key)


def _says(entry: StoredEntry | None, put: Put) -> bool:
    return entry is not None and (entry.lease_id, entry.value) == (put.lease_id, put.value)
