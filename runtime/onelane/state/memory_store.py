"""A store in memory, for tests: all lives of an app in this process that name the same folder share it."""

import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from onelane.errors import Fenced, StoreRefused
from onelane.state.store import (
    NEVER_WRITTEN,
    PAGE,
    DueReminder,
    KeyState,
    KeyWrite,
    Stamp,
    StoreCounts,
    StoreOptions,
    check_distinct,
)


@dataclass(slots=True)
class _Entry:
    claim: Stamp
    touched: float
    state: KeyState


@dataclass(slots=True)
class _Memory:
    """What is stored for one app."""

    entries: dict[str, _Entry] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemoryStore:
    """See `Store`. It outlives its `close`, as a file does, but not the process."""

    holds_all = True
    _memories: ClassVar[dict[tuple[Path, str], _Memory]] = {}

    def __init__(self, options: StoreOptions) -> None:
        self._life = options.life
        self._memory = self._memories.setdefault((options.folder, options.app), _Memory())

    def open(self) -> None:
        pass

    def probe(self) -> None:
        pass

    def load(self, keys: Sequence[str], *, epoch: int, at: float) -> dict[str, KeyState]:
        check_distinct(keys)
        with self._memory.lock:
            return {key: self._claim(key, stamp, at).state for key, stamp in self._check(dict.fromkeys(keys, epoch))}

    def read(self, keys: Sequence[str]) -> dict[str, KeyState]:
        with self._memory.lock:
            return {key: self._memory.entries[key].state for key in keys if key in self._memory.entries}

    def commit(self, writes: Sequence[KeyWrite], *, at: float) -> None:
        check_distinct(write.key for write in writes)
        with self._memory.lock:
            stamps = self._check({write.key: write.epoch for write in writes})
            for write, (key, stamp) in zip(writes, stamps, strict=True):
                entry = self._claim(key, stamp, at)
                entry.state = _changed(entry.state, write, stamp)

    def newest(self) -> Stamp:
        with self._memory.lock:
            return max((entry.claim for entry in self._memory.entries.values()), default=NEVER_WRITTEN)

    def keys(self, *, after: str = "", limit: int = PAGE) -> list[str]:
        with self._memory.lock:
            return self._sorted(after)[:limit]

    def idle_keys(self, dict_name: str, *, before: float, after: str = "", limit: int = PAGE) -> list[str]:
        with self._memory.lock:
            entries = ((key, self._memory.entries[key]) for key in self._sorted(after))
            idle = [key for key, entry in entries if entry.touched < before and _has_row(entry.state, dict_name)]
            return idle[:limit]

    def reminders(
        self, *, before: float, after: tuple[float, str, str] | None = None, limit: int = PAGE
    ) -> list[DueReminder]:
        with self._memory.lock:
            states = [entry.state for entry in self._memory.entries.values()]
        due = [DueReminder(r.due, state.key, r) for state in states for r in state.reminders if r.due < before]
        due = [reminder for reminder in due if after is None or reminder.place > after]
        return sorted(due, key=lambda reminder: reminder.place)[:limit]

    def forget(self, *, answers_before: float, claims_before: float, limit: int = PAGE) -> int:
        with self._memory.lock:
            entries = self._memory.entries
            old = [(entry, a) for entry in entries.values() for a in entry.state.answers if a.at < answers_before]
            for entry, answer in old[:limit]:
                entry.state = replace(entry.state, answers=tuple(a for a in entry.state.answers if a != answer))
            empty = [key for key, e in entries.items() if e.touched < claims_before and _is_empty(e.state)]
            for key in empty[:limit]:
                del entries[key]
            return len(old[:limit]) + len(empty[:limit])

    def counts(self) -> StoreCounts:
        with self._memory.lock:
            states = [entry.state for entry in self._memory.entries.values()]
        rows = [row for state in states for row in state.rows]
        return StoreCounts(
            len(states),
            dict(Counter(row.dict_name for row in rows)),
            sum(len(state.answers) for state in states),
            sum(len(state.reminders) for state in states),
            sum(len(row.value) for row in rows),
        )

    def backup(self, path: Path) -> None:
        raise StoreRefused("memory", seen="a store without files", expected="the store sqlite")

    def close(self) -> None:
        pass

    def _check(self, epochs: dict[str, int]) -> list[tuple[str, Stamp]]:
        """The stamps to write. Raises Fenced if a key has a higher one."""
        stamps = [(key, Stamp(epoch, self._life)) for key, epoch in epochs.items()]
        entries = self._memory.entries
        if fenced := [key for key, stamp in stamps if key in entries and entries[key].claim > stamp]:
            raise Fenced(fenced)
        return stamps

    def _claim(self, key: str, stamp: Stamp, at: float) -> _Entry:
        entry = self._memory.entries.setdefault(key, _Entry(stamp, at, KeyState(key, NEVER_WRITTEN)))
        entry.claim, entry.touched = stamp, at
        return entry

    def _sorted(self, after: str) -> list[str]:
        keys = sorted(self._memory.entries)
        return keys[bisect_right(keys, after) :]


def _changed(state: KeyState, write: KeyWrite, stamp: Stamp) -> KeyState:
    def merged(before: tuple[Any, ...], dropped: tuple[str, ...], added: tuple[Any, ...], name: str) -> list[Any]:
        values = {getattr(value, name): value for value in before}
        for dropped_name in dropped:
            values.pop(dropped_name, None)
        return [*(values | {getattr(value, name): value for value in added}).values()]

    rows = merged(state.rows, write.dropped_rows, write.rows, "dict_name")
    answers = merged(state.answers, write.dropped_answers, write.answers, "id")
    reminders = merged(state.reminders, write.dropped_reminders, write.reminders, "id")
    return KeyState(
        write.key,
        stamp,
        tuple(sorted(rows, key=lambda row: row.dict_name)),
        tuple(sorted(answers, key=lambda answer: (answer.at, answer.id))),
        tuple(sorted(reminders, key=lambda reminder: (reminder.due, reminder.id))),
    )


def _has_row(state: KeyState, dict_name: str) -> bool:
    return any(row.dict_name == dict_name for row in state.rows)


def _is_empty(state: KeyState) -> bool:
    return not (state.rows or state.answers or state.reminders)
