"""Shakes the arena while players play: scales its apps, restarts them, and kills their shards, at random.

Every kind of change is made to every app before any is made again. Some shards are killed while a change is under way.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import anyio
from onelane.core.placement import Member, Placement

from services.arena.admin import Admin, AdminError
from services.arena.ledger import Crash, Ledger

APPS = ("lobby", "profile", "leaderboard")
WITH_ROOMS = "lobby"
MAX_SHARDS = 4
PAUSE_S = (0.1, 0.8)
"""Bounds of the time between two changes."""
KILL_AFTER_S = 0.3
"""A shard that is killed in a change is killed within this time."""
READY_S = 30.0
"""An app whose shards are not all ready after this time is at fault."""


class Step(NamedTuple):
    """One change of one app."""

    kind: str
    app: str


STEPS = [Step(kind, app) for kind in ("scale", "restart", "kill") for app in APPS]


class NotReady(Exception):
    """An app has not come back."""


class Shaker:
    """See the module."""

    def __init__(self, admin: Admin, ledger: Ledger, rng: random.Random, say: Callable[[str], object]) -> None:
        """say: is told each change in a line."""
        self._admin = admin
        self._ledger = ledger
        self._rng = rng
        self._say = say
        self.done: Counter[str] = Counter()
        """Kind of change → how many were made."""

    async def shake(self, until: anyio.Event) -> None:
        """Make one change after the other until `until` is set.

        Raises:
            NotReady: shards that were killed have not come back.
        """
        steps: list[Step] = []
        while not until.is_set():
            with anyio.move_on_after(self._rng.uniform(*PAUSE_S)):
                await until.wait()
                return
            if not steps:
                steps = self._rng.sample(STEPS, len(STEPS))
            await self._make(steps.pop())

    async def _make(self, step: Step) -> None:
        before = await self._placement(step.app)
        crash = None
        async with anyio.create_task_group() as tasks:
            if step.kind != "kill":
                tasks.start_soon(self._change, step, len(before.members))
            if step.kind == "kill" or self._rng.random() < 1 / 3:
                if step.kind != "kill":
                    await asyncio.sleep(self._rng.uniform(0, KILL_AFTER_S))
                crash = await self._kill(step.app, before)
        after = await self._wait_ready(step.app)
        if crash is not None:
            crash.placements.append(after)

    async def _change(self, step: Step, shards: int) -> None:
        path, what = f"/restart?app={step.app}", f"restart {step.app}"
        if step.kind == "scale":
            number = self._rng.choice([n for n in range(1, MAX_SHARDS + 1) if n != shards])
            path, what = f"/scale?app={step.app}&shards={number}", f"scale {step.app} {shards} → {number}"
        try:
            await self._admin.command(path)
        except AdminError as error:
            self._say(f"{what}: not done: {error}")
        else:
            self.done[step.kind] += 1
            self._say(what)

    async def _kill(self, app: str, before: Placement) -> Crash | None:
        """Kill a shard, and wait until its process is no more. None if all of them are between two processes."""
        shards = [shard for shard in await self._shards(app) if shard["pid"]]
        if not shards:
            return None
        victim = self._rng.choice(shards)
        crash = Crash(victim["name"], [before])
        if app == WITH_ROOMS:
            self._ledger.crashes.append(crash)
        with suppress(ProcessLookupError):
            os.kill(victim["pid"], signal.SIGKILL)
            self.done["kill"] += 1
            self._say(f"kill {victim['name']}")
        while any(shard["pid"] == victim["pid"] for shard in await self._shards(app)):  # noqa: ASYNC110 - asked by HTTP
            await asyncio.sleep(0.01)
        self._ledger.crashes_over = len(self._ledger.crashes)
        return crash

    async def _wait_ready(self, app: str) -> Placement:
        give_up_at = time.monotonic() + READY_S
        while any(shard["state"] != "ready" for shard in await self._shards(app)):
            if time.monotonic() > give_up_at:
                raise NotReady(f"{app} is not ready {READY_S:g} s after a change of its shards")
            await asyncio.sleep(0.05)
        return await self._placement(app)

    async def _shards(self, app: str) -> list[dict[str, Any]]:
        shards: list[dict[str, Any]] = (await self._admin.status())["apps"][app]["shards"]
        return shards

    async def _placement(self, app: str) -> Placement:
        members = (Member(shard["name"], shard["address"], "") for shard in await self._shards(app))
        return Placement(1, tuple(members))
