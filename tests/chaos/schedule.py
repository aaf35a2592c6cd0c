"""What is done to an app while clients call it: changes of its placement, one after another, and harm meanwhile.

All chances come from the seed; when exactly something happens is up to the machine.
"""

import asyncio
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode

from onelane.cli import admin_client
from onelane.core.placement import Member, Placement
from onelane.errors import OnelaneError

from tests.history.operations import Lose, Operation
from tests.running_app import RunningApp, eventually, is_running

SETTLED_S = 60.0


@dataclass(frozen=True, slots=True)
class Change:
    """A change of placement that was carried out."""

    what: str
    began_at: float
    ended_at: float
    fault: str = ""


@dataclass
class Record:
    """What was done to one app."""

    changes: list[Change] = field(default_factory=list)
    harm: Counter[str] = field(default_factory=Counter)
    losses: list[Operation] = field(default_factory=list)
    """For the history: what each kill may have taken along, of keys that are not durable."""


class Disturber:
    """See the module. One app."""

    def __init__(self, running: RunningApp, app: str, keys: Sequence[str], seed: int, *, durable: Path | None) -> None:
        """durable: the folder of its files, where its state is durable."""
        self._running = running
        self._app = app
        self._keys = keys
        self._durable = durable
        self._rng = Random(f"changes/{seed}")
        self._harm_rng = Random(f"harm/{seed}")
        self.record = Record()
        self._shards = 2
        self._pins: dict[str, str] = {}
        self._is_changing = False

    # Changes, one after another

    async def scale(self, shards: int) -> None:
        await self._command(f"/scale?{urlencode({'app': self._app, 'shards': shards})}")
        self._shards = shards

    async def restart(self) -> None:
        await self._command(f"/restart?{urlencode({'app': self._app})}")

    async def pin(self) -> None:
        key, shard = self._rng.choice(self._keys), f"{self._app}-{self._rng.randrange(self._shards)}"
        self._pins[key] = shard
        await self._command(f"/pin?{urlencode({'key': key, 'shard': shard})}")

    async def unpin(self) -> None:
        if self._pins:
            key = self._rng.choice(sorted(self._pins))
            del self._pins[key]
            await self._command(f"/unpin?{urlencode({'key': key, 'app': self._app})}")

    async def change_somehow(self) -> None:
        do = self._rng.choice([self._scale_somehow, self._scale_somehow, self.restart, self.pin, self.unpin])
        await do()

    async def _scale_somehow(self) -> None:
        await self.scale(self._rng.choice([n for n in (2, 3, 4) if n != self._shards]))

    async def _command(self, path: str) -> None:
        began_at, fault, self._is_changing = time.monotonic(), "", True
        try:
            await asyncio.wait_for(asyncio.to_thread(admin_client.command, self._running.admin, path), SETTLED_S)
        except OnelaneError as error:
            fault = str(error)
        self._is_changing = False
        self.record.changes.append(Change(path, began_at, time.monotonic(), fault))

    # Harm, at any moment

    async def harm_somehow(self, kinds: Sequence[str]) -> None:
        kind = self._harm_rng.choice(kinds)
        done: Callable[[], Awaitable[None]] = getattr(self, kind)
        await done()

    async def harm_until(self, over: asyncio.Event, kinds: Sequence[str], every_s: float) -> None:
        while kinds and not over.is_set():
            await self.harm_somehow(kinds)
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), self._harm_rng.random() * 2 * every_s)

    async def pause(self, seconds: float) -> None:
        """Let the clients go on for a random time, `seconds` on average."""
        await asyncio.sleep(self._harm_rng.random() * 2 * seconds)

    async def kill(self) -> None:
        """End the process of a shard at once, as a lack of memory does."""
        status = await asyncio.to_thread(self._running.status)
        row = status["apps"][self._app]
        shard = self._harm_rng.choice(row["shards"])
        if not shard["pid"]:
            return
        number, began_at = self.record.harm["kill"], time.monotonic()
        try:
            os.kill(shard["pid"], signal.SIGKILL)
        except ProcessLookupError:
            return
        self.record.harm["kill"] += 1
        await eventually(lambda: not is_running(shard["pid"]))
        if self._durable is None:
            await self._note_loss(number, shard["name"], row, began_at)
        await self._settled()

    async def _note_loss(self, number: int, name: str, before: dict[str, Any], began_at: float) -> None:
        """While a change is under way, before or after, any key may have been the shard's."""
        dead_at = time.monotonic()
        was_changing = self._is_changing or before["change"]
        row = (await asyncio.to_thread(self._running.status))["apps"][self._app]
        is_changing = was_changing or self._is_changing or row["change"] or row["epoch"] != before["epoch"]
        lost = [key for key in self._keys if is_changing or self._owner(row, key) == name]
        self.record.losses += [Operation(key, Lose(number), began_at, dead_at) for key in lost]

    def _owner(self, row: dict[str, Any], key: str) -> str:
        members = tuple(Member(shard["name"], shard["address"], "") for shard in row["shards"])
        return self._pins.get(key) or Placement(row["epoch"], members).owner_of(key).name

    async def _settled(self) -> None:
        """Wait until all shards are ready."""
        async with asyncio.timeout(SETTLED_S):
            await eventually(lambda: all(row["state"] == "ready" for row in self._running.shards(self._app)))

    async def freeze(self) -> None:
        """Stop the process of a shard for a second, as a machine that swaps does."""
        shard = self._harm_rng.choice(await asyncio.to_thread(self._running.shards, self._app))
        if shard["pid"] and is_running(shard["pid"]):
            os.kill(shard["pid"], signal.SIGSTOP)
            self.record.harm["freeze"] += 1
            await asyncio.sleep(1)
            if is_running(shard["pid"]):
                os.kill(shard["pid"], signal.SIGCONT)

    async def lock(self) -> None:
        """Lock a store for a second, as a backup does."""
        assert self._durable is not None
        file = self._harm_rng.choice(sorted(self._durable.rglob("*.sqlite")))
        held = sqlite3.connect(file, isolation_level=None, timeout=5)
        try:
            held.execute("BEGIN IMMEDIATE")
            self.record.harm["lock"] += 1
            await asyncio.sleep(1)
            held.rollback()
        except sqlite3.OperationalError:
            pass
        finally:
            held.close()


Schedule = Callable[[Disturber], Awaitable[None]]


def changes(count: int, *, harm: Sequence[str] = (), every_s: float = 1.0) -> Schedule:
    """So many changes, one after another, and harm of these kinds meanwhile, about once in `every_s`."""

    async def carry_out(app: Disturber) -> None:
        over = asyncio.Event()
        harming = asyncio.create_task(app.harm_until(over, harm, every_s))
        try:
            for _ in range(count):
                await app.change_somehow()
        finally:
            over.set()
            await harming

    return carry_out


def kills(count: int, *, every_s: float = 0.5) -> Schedule:
    """So many deaths of shards, each at a random moment after all were ready."""

    async def carry_out(app: Disturber) -> None:
        for _ in range(count):
            await app.pause(every_s)
            await app.kill()

    return carry_out


async def restarts_and_scales(app: Disturber) -> None:
    """What a deployment does."""
    await app.restart()
    for shards in (4, 3, 2):
        await app.scale(shards)
