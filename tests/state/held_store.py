"""A store in memory whose operations a test holds up, or makes fail."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from onelane.errors import StoreUnavailable
from onelane.state.memory_store import MemoryStore
from onelane.state.store import DueReminder, KeyState, KeyWrite, StoreOptions

from tests.bounds import BOUND_S


class StoreControl:
    """What all stores of one test do; it is the function that makes them, too."""

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.may_go.set()
        self.may_load = threading.Event()
        self.may_load.set()
        self.may_list = threading.Event()
        """Reminders."""
        self.may_list.set()
        self.loads = 0
        """How many have begun."""
        self.lists = 0
        """How often reminders were asked for."""
        self.commits: list[int] = []
        """The number of keys of each commit that has begun."""
        self.has_begun = threading.Condition()
        """Notified of a commit."""
        self.failing: set[str] = set()
        """Of `load` and `commit`."""

    def __call__(self, options: StoreOptions) -> "HeldStore":
        return HeldStore(options, self)

    async def committing(self, count: int = 1) -> None:
        """Wait until so many commits have begun, which they do on a thread."""
        await asyncio.to_thread(self._wait_commits, count)

    def _wait_commits(self, count: int) -> None:
        with self.has_begun:
            assert self.has_begun.wait_for(lambda: len(self.commits) >= count, BOUND_S)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block no commit ends."""
        self.may_go.clear()
        try:
            yield
        finally:
            self.may_go.set()

    @contextmanager
    def fails(self, *operations: str) -> Iterator[None]:
        self.failing |= set(operations)
        try:
            yield
        finally:
            self.failing -= set(operations)


class HeldStore(MemoryStore):
    def __init__(self, options: StoreOptions, control: StoreControl) -> None:
        super().__init__(options)
        self._control = control

    def load(self, keys: Sequence[str], **more: Any) -> dict[str, KeyState]:
        self._control.loads += 1
        assert self._control.may_load.wait(BOUND_S)
        self._check_works("load")
        return super().load(keys, **more)

    def commit(self, writes: Sequence[KeyWrite], **more: Any) -> None:
        with self._control.has_begun:
            self._control.commits.append(len(writes))
            self._control.has_begun.notify_all()
        assert self._control.may_go.wait(BOUND_S)
        self._check_works("commit")
        super().commit(writes, **more)

    def reminders(self, **more: Any) -> list[DueReminder]:
        self._control.lists += 1
        due = super().reminders(**more)
        assert self._control.may_list.wait(BOUND_S)
        return due

    def _check_works(self, operation: str) -> None:
        if operation in self._control.failing:
            raise StoreUnavailable("memory", "the test has it fail")
