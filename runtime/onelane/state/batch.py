"""What one commit writes, and what leaves once it has ended."""

from collections.abc import Callable, Mapping

from onelane.errors import OnelaneError
from onelane.state.store import KeyWrite, RememberedAnswer, Row, StoredReminder

Leave = Callable[[OnelaneError | None], None]
"""Sends what has waited for a commit; with an error, what is sent in its place."""


class Change:
    """What a batch changes of one key."""

    __slots__ = ("answers", "dropped", "dropped_answers", "dropped_reminders", "epoch", "reminders", "rows")

    def __init__(self, epoch: int) -> None:
        """epoch: by which this life has claimed the key."""
        self.epoch = epoch
        self.rows: dict[str, Row] = {}
        self.dropped: set[str] = set()
        """Names of dicts."""
        self.answers: dict[str, RememberedAnswer] = {}
        """By their ids."""
        self.dropped_answers: list[str] = []
        self.reminders: dict[str, StoredReminder] = {}
        """By their ids."""
        self.dropped_reminders: set[str] = set()

    def write(self, row: Row) -> None:
        self.rows[row.dict_name] = row
        self.dropped.discard(row.dict_name)

    def drop(self, dict_name: str) -> None:
        self.rows.pop(dict_name, None)
        self.dropped.add(dict_name)

    def replace_reminders(self, before: Mapping[str, StoredReminder], after: Mapping[str, StoredReminder]) -> None:
        """Write the reminders of the key that are not as they were before. Both by their ids."""
        for name, reminder in after.items():
            if before.get(name) != reminder:
                self.reminders[name] = reminder
                self.dropped_reminders.discard(name)
        for name in before.keys() - after.keys():
            self.reminders.pop(name, None)
            self.dropped_reminders.add(name)


class Batch:
    """Changes of several keys that are written together."""

    __slots__ = ("began_at", "changes", "leaving")

    def __init__(self) -> None:
        self.changes: dict[str, Change] = {}
        self.leaving: list[tuple[str, Leave]] = []
        """The key that it rests on, and what leaves."""
        self.began_at = 0.0

    def change_of(self, key: str, epoch: int) -> Change:
        change = self.changes.get(key)
        if change is None:
            change = self.changes[key] = Change(epoch)
        return change

    def writes(self) -> list[KeyWrite]:
        return [
            KeyWrite(
                key,
                change.epoch,
                rows=tuple(change.rows.values()),
                answers=tuple(change.answers.values()),
                dropped_rows=tuple(change.dropped),
                dropped_answers=tuple(change.dropped_answers),
                reminders=tuple(change.reminders.values()),
                dropped_reminders=tuple(change.dropped_reminders),
            )
            for key, change in self.changes.items()
        ]
