"""Players in the arena. They play until told to end; then what they were told is compared with what is there."""

import random
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import anyio
import grpc.aio
import onelane
from rich.console import Console

from services.arena.ledger import Ledger
from services.arena.players import Players
from services.arena.tally import Tally

LOUNGE_PAUSE_S = 0.1
"""Between two guests of a lounge."""
MAX_LINES = 20
"""Losses that are listed."""


@dataclass
class Game:
    """See the module."""

    seed: int
    """Of what the players do."""
    tables: int = 8
    """At each of them players play one game after the other."""
    lounges: int = 0
    """Rooms that fill slowly, watched by a guest, so that they are there when shards come and go."""
    think_s: float = 0.0
    """How long a player waits before each call, and a guest longer than else; with 0 players load the machine."""
    tally: Tally = field(default_factory=Tally)
    ledger: Ledger = field(default_factory=Ledger)
    until: anyio.Event = field(default_factory=anyio.Event)
    """Set when it ends."""
    spent_s: float = 0.0
    fault: str = ""
    """Why it could not be played to its end."""

    async def play(
        self, apps: Mapping[str, str], *beside: Callable[[], Coroutine[Any, Any, object]], seconds: float | None = None
    ) -> None:
        """Play for some seconds, or until `until` is set.

        apps: name → address. beside: what runs meanwhile, and ends with the game.
        """
        async with AsyncExitStack() as stack:
            channels = {
                app: await stack.enter_async_context(onelane.connect(address, reopen=True, marks=True))
                for app, address in apps.items()
            }
            players = Players(channels, self.tally, self.ledger, self.think_s)
            began = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                for run in beside:
                    tasks.start_soon(run)
                await self._play_until_the_end(players, seconds)
            self.spent_s = time.perf_counter() - began
            try:
                await players.audit()
            except grpc.aio.AioRpcError as error:
                self.fault = f"the arena does not answer any more: {error.code().name}: {error.details()}"

    async def _play_until_the_end(self, players: Players, seconds: float | None) -> None:
        async with anyio.create_task_group() as tasks:
            for n in range(self.tables):
                tasks.start_soon(players.play, f"room-{n}", random.Random(self.seed + n), self.until)
            for n in range(self.lounges):
                tasks.start_soon(players.lounge, f"lounge-{n}", LOUNGE_PAUSE_S + self.think_s, self.until)
            with anyio.move_on_after(seconds):
                await self.until.wait()
            self.until.set()

    def tell_calls(self, console: Console) -> None:
        """Print how many calls there were, how long they took, and which failed."""
        tally, total = self.tally, sum(self.tally.answered.values())
        p50, p99 = tally.percentile_ms(0.5), tally.percentile_ms(0.99)
        calls = f"{total:,} calls, {total / self.spent_s:,.0f} calls/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        console.print(calls, highlight=False)
        for error, count in tally.errors.items():
            console.print(f"error: {error} x {count}, first: {tally.details[error]}", highlight=False, soft_wrap=True)

    def tell_watchers(self, console: Console) -> None:
        """Print what the guests who watch lounges have seen."""
        watched = ", ".join(f"{why} x {count}" for why, count in self.tally.reopened.items()) or "never"
        console.print(f"watchers saw {self.tally.events:,} events; reopened: {watched}", highlight=False)

    def tell_losses(self, console: Console, *, killed: str = "shards") -> bool:
        """Print what is lost. killed: what was killed meanwhile, in plural. True if nothing is."""
        ledger, lost = self.ledger, list(self.ledger.lost())
        compared = f"{len(ledger.players)} players and {len(ledger.rooms)} open rooms compared"
        ended = f"{ledger.excused} rooms ended with {killed} that were killed"
        console.print(f"{compared}; {ended}", highlight=False, soft_wrap=True)
        for line in lost[:MAX_LINES]:
            console.print(f"LOST: {line}", highlight=False, soft_wrap=True)
        if len(lost) > MAX_LINES:
            console.print(f"LOST: and {len(lost) - MAX_LINES} more", highlight=False)
        if self.fault:
            console.print(f"FAILED: {self.fault}", highlight=False, soft_wrap=True)
        if not lost and not self.fault:
            console.print("nothing lost", highlight=False)
        return not lost and not self.fault
