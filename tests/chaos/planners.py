"""Clients that set reminders and forget some of them, and what must have become of each in the end."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio

from tests.chaos.clients import once, stock_channel
from tests.chaos.text import quantiles
from tests.chaos.v1 import agenda_pb2_grpc
from tests.chaos.v1.agenda_pb2 import Plan, Planned

PLANNERS, PAUSE_S = 2, 0.05
MAX_AFTER_S = 1.5
FORGOTTEN = 0.2
"""The part of the reminders that their client forgets again, if they have not run."""
OVER_S = 30.0
"""All must have run by then, after the last change: also those whose runs have failed, with their back-off."""
CLOCK_S = 0.005
"""The resolution of the due time."""


@dataclass(frozen=True, slots=True)
class Fate:
    """Of one reminder, as its client knows it."""

    key: str
    due_at: float
    """In Unix time, at the earliest."""
    runs: range
    """How often it may have run."""


NEVER, ONCE, PERHAPS = range(1), range(1, 2), range(2)


@dataclass
class Planners:
    """See the module. One app with durable state."""

    keys: Sequence[str]
    seed: int
    target: str
    file: Path
    """Of the lines that runs write; see `service.RUNS_FILE`."""
    fates: dict[str, Fate] = field(default_factory=dict)
    """By the names of the reminders."""
    late: list[float] = field(default_factory=list)
    """Seconds from the due time of each reminder to its run, sorted."""
    repeated: int = 0
    """Reminders whose run was begun more than once, and counted once."""
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        for number in range(PLANNERS):
            self._tasks.append(asyncio.create_task(self._plan_on(Random(f"plans/{self.seed}/{number}"))))

    async def stop(self) -> None:
        """Wait for what is under way."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _plan_on(self, rng: Random) -> None:
        async with stock_channel(self.target, retrying=False) as channel:
            stub: Any = agenda_pb2_grpc.AgendaStub(channel)
            while not self._stop.is_set():
                await self._plan(stub, rng)
                await asyncio.sleep(PAUSE_S)

    async def _plan(self, stub: Any, rng: Random) -> None:
        name = f"{self.seed}-{len(self.fates)}"
        plan = Plan(key=rng.choice(self.keys), name=name, after_s=rng.random() * MAX_AFTER_S)
        due_at = time.time() + plan.after_s
        # Until it is answered, it may be set or not.
        self.fates[name] = Fate(plan.key, due_at, PERHAPS)
        if await _asked(stub.Remind, plan) is None:
            return
        self.fates[name] = Fate(plan.key, due_at, ONCE)
        if rng.random() < FORGOTTEN:
            await asyncio.sleep(plan.after_s * 2 * rng.random())
            reply = await _asked(stub.Forget, plan)
            runs = PERHAPS if reply is None else NEVER if reply.was_set else ONCE
            self.fates[name] = Fate(plan.key, due_at, runs)

    # In the end

    async def check(self) -> None:
        """Raise AssertionError unless each reminder has run as often as it must, and not before its time."""
        async with stock_channel(self.target, retrying=True) as channel:
            runs = await self._all_runs(agenda_pb2_grpc.AgendaStub(channel))
        lines = await asyncio.to_thread(self._lines)
        faults = [fault for name, fate in self.fates.items() if (fault := self._fault(name, fate, runs, lines))]
        faults += [f"reminder {name} was never set" for name in runs.keys() - self.fates.keys()]
        assert not faults, "\n".join(faults[:8])
        self.late.sort()

    def lines(self) -> list[str]:
        """For people."""
        forgotten = sum(fate.runs == NEVER for fate in self.fates.values())
        return [
            f"  reminders: {len(self.fates)} set, {forgotten} forgotten in time, {len(self.late)} run; {self.repeated} "
            f"begun more than once and counted once; after their time, in ms: {quantiles(self.late)}"
        ]

    async def _all_runs(self, stub: Any) -> dict[str, int]:
        """How often each reminder has run, once none is set any more."""
        runs: dict[str, int] = {}
        until = time.monotonic() + OVER_S
        for key in self.keys:
            while (planned := await _asked(stub.Runs, Plan(key=key))) is None or planned.names:
                assert time.monotonic() < until, f"{key} is unavailable, or its reminders do not run: {planned}"
                await asyncio.sleep(0.05)
            runs |= planned.runs
        return runs

    def _lines(self) -> dict[str, list[float]]:
        lines: dict[str, list[float]] = {}
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            name, at = line.split()
            lines.setdefault(name, []).append(float(at))
        return lines

    def _fault(self, name: str, fate: Fate, runs: dict[str, int], lines: dict[str, list[float]]) -> str:
        count, began = runs.get(name, 0), lines.get(name, [])
        if count not in fate.runs:
            return f"reminder {name} of {fate.key} has run {count} times, expected {[*fate.runs]}; it began at {began}"
        if len(began) < count:
            return f"reminder {name} of {fate.key} has not done what it does outside of its state"
        if began and began[0] < fate.due_at - CLOCK_S:
            return f"reminder {name} of {fate.key} has run {fate.due_at - began[0]:.3f} s too early"
        if count:
            self.late.append(began[0] - fate.due_at)
            self.repeated += len(began) > 1
        return ""


async def _asked(method: Callable[[Plan], Any], plan: Plan) -> Planned | None:
    """The answer; None where nobody knows what has become of the call."""
    try:
        planned: Planned = await once(method, plan, Counter())
    except grpc.aio.AioRpcError:
        return None
    return planned
