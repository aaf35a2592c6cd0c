"""A journal over a store of the test's, whose operations end when the test lets them."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onelane.errors import OnelaneError, UnreadableValue, UnwritableValue
from onelane.state.journal import Journal
from onelane.state.journal_metrics import JournalMetrics
from onelane.state.memory_store import MemoryStore
from onelane.state.store import Row, Store, StoreOptions
from onelane.telemetry.stats import Stats


class OneDict:
    """A durable dict of texts: the `DictsOfKeys` of a journal."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def rows_of(self, key: str, before: Mapping[str, Row]) -> dict[str, Row]:
        if key not in self.texts:
            return {}
        if not isinstance(self.texts[key], str):
            raise UnwritableValue("texts", key, "no text")
        return {"texts": Row("texts", self.texts[key].encode())}

    def install(self, key: str, rows: Sequence[Row]) -> Sequence[Row]:
        for row in rows:
            if row.value == b"unreadable":
                raise UnreadableValue("texts", key, "it is unreadable")
            self.texts[key] = row.value.decode()
        return rows

    def forget(self, key: str) -> None:
        self.texts.pop(key, None)


class SteppedQueue:
    """A store whose thread does one operation at each `step`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.asked: deque[tuple[Callable[[Store], Any], Any]] = deque()
        self.errors: list[BaseException | None] = []
        """What the next operations raise, in place of being done."""

    def submit(self, work: Callable[[Store], Any], done: Any) -> None:
        self.asked.append((work, done))

    def step(self) -> None:
        work, done = self.asked.popleft()
        if (error := self.errors.pop(0) if self.errors else None) is not None:
            done(None, error)
            return
        try:
            result = work(self.store)
        except Exception as raised:
            done(None, raised)
        else:
            done(result, None)


class SteppedJournal:
    """A journal, its dict, and its store."""

    def __init__(self, folder: Path, *, life: int = 1, epoch: int = 1) -> None:
        options = StoreOptions(app="a", shard="a-0", life=life, folder=folder)
        self.queue = SteppedQueue(MemoryStore(options))
        self.others = MemoryStore(replace(options, life=life + 1))
        """Of a later life."""
        self.dict = OneDict()
        self.in_turn: set[str] = set()
        self.left: list[tuple[str, str]] = []
        """What has left, in order: its name, and "" or the status of the error."""
        self.stats = Stats()
        self.journal = Journal(
            self.dict,
            self.queue,
            JournalMetrics("a-0", self.stats),
            epoch=lambda _: epoch,
            in_turn=self.in_turn.__contains__,
        )

    def leave(self, name: str) -> Callable[[OnelaneError | None], None]:
        return lambda error: self.left.append((name, "" if error is None else error.status))

    def stored(self, key: str) -> str:
        state = self.queue.store.read([key]).get(key)
        return state.rows[0].value.decode() if state is not None and state.rows else ""


async def next_step() -> None:
    """Wait until the journal has begun to write and to load what it was asked for."""
    for _ in range(2):
        await asyncio.sleep(0)
