"""The lives of a machine that a test looks at, and a time that it moves."""

import asyncio
from collections.abc import Callable

from onelane.core.lease import Fence

from tests.cluster.coordination.memory import MemoryCoordination


class ScriptedLives:
    """One life for each lease."""

    def __init__(self) -> None:
        self.fences: dict[int, Fence] = {}
        """Of the lives that run, by their lease."""
        self.ended: list[int] = []
        self.may_end = asyncio.Event()
        """Their end waits for it."""
        self.may_end.set()

    async def start(self, lease_id: int, until: float) -> None:
        self.fences[lease_id] = Fence(lease_id, until)

    def extend(self, lease_id: int, until: float) -> None:
        self.fences = {key: fence.extended(lease_id, until) for key, fence in self.fences.items()}

    async def end(self, lease_id: int) -> None:
        await self.may_end.wait()
        self.fences.pop(lease_id, None)
        self.ended.append(lease_id)

    def serving(self, now: float) -> list[int]:
        return [lease_id for lease_id, fence in self.fences.items() if fence.may_serve(now)]


class ScriptedTime:
    """The clock of machines and of their store."""

    def __init__(self, store: MemoryCoordination) -> None:
        self._store = store
        self._moved = asyncio.Event()

    def now(self) -> float:
        return self._store.now

    async def sleep_until(self, at: float) -> None:
        while self.now() < at:
            await self._moved.wait()

    async def advance(self, seconds: float, step_s: float = 0.25) -> None:
        """By small steps, each of which everybody sees."""
        for _ in range(round(seconds / step_s)):
            self._store.advance(step_s)
            self._moved.set()
            self._moved = asyncio.Event()
            await rest()


async def rest() -> None:
    """Let all that can run now run: nothing here waits for anything but this time and this store."""
    for _ in range(60):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - it is asked of another process
        await asyncio.sleep(0.005)
