"""Drives the arena with simulated players through the public client, and shows a live table until it is stopped.

    python -m services.arena.drive [--for 10s] [--shake]

Starts `onelane up` on the arena's file, plays, compares what the players were told with what the services say at the
end, prints a summary, and leaves no process behind. Exit code 0 only if nothing is lost and every total agrees with
/metrics. With --shake, shards come, go and are killed meanwhile; the counts of a process since its last report end with
it, so then no total is compared.
"""

import asyncio
import contextlib
import random
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import click
import grpc.aio
import onelane
from onelane.errors import first_of
from rich.console import Console
from rich.live import Live
from rich.table import Table

from services.arena.admin import Admin
from services.arena.ledger import Ledger
from services.arena.players import Players
from services.arena.shake import NotReady, Shaker
from services.arena.tally import Tally

FILE = Path(__file__).with_name("onelane.toml")
ROOT = FILE.parent.parent.parent
TABLES = 8
LOUNGES = 16
LOUNGE_PAUSE_S = 0.1
"""Between two guests of a lounge."""
MAX_LINES = 20
"""Losses that are listed."""


@contextlib.asynccontextmanager
async def arena(file: Path, starting: anyio.CancelScope) -> AsyncIterator[tuple[dict[str, str], str]]:
    """Run the three apps; yields each app's address and the admin address. starting: cancels their start.

    Raises:
        click.ClickException: the apps did not start, or a signal came first. They share this process's stderr, and
            have written the reason there.
    """
    command = [sys.executable, "-m", "onelane", "up", str(file), "--app-dir", str(ROOT)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    try:
        addresses = None
        with starting:
            addresses = await read_addresses(process.stdout)
        if starting.cancelled_caught:
            raise click.ClickException("ended before the arena had started")
        if addresses is None:
            raise click.ClickException(
                f"the arena did not start, and says why above (exit code {await process.wait()})"
            )
        yield addresses
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()


async def read_addresses(output: asyncio.StreamReader) -> tuple[dict[str, str], str] | None:
    """Each app's address and the admin address, once all are ready; None if the process ends before that."""
    apps: dict[str, str] = {}
    while line := (await output.readline()).decode():
        click.echo(line.rstrip())
        if app := re.match(r"onelane: (\S+) ready on (\S+)", line):
            apps[app[1]] = app[2]
        elif admin := re.match(r"onelane: ready, admin on http://(\S+)", line):
            return apps, admin[1]
    return None


def exported(metrics: str, method: str) -> int:
    """Calls of `method` answered OK by the arena, as /metrics says."""
    rows = [line for line in metrics.splitlines() if line.startswith("onelane_calls_total")]
    wanted = (f'rpc_method="arena.v1.{method}"', 'rpc_response_status_code="OK"')
    return sum(int(float(row.rpartition(" ")[2])) for row in rows if all(label in row for label in wanted))


def table(status: dict[str, Any], tally: Tally, rate: float, before: dict[str, int], seconds: float) -> Table:
    p50, p99 = tally.percentile_ms(0.5), tally.percentile_ms(0.99)
    errors = sum(tally.errors.values())
    caption = f"{rate:,.0f} calls/s by players · p50 {p50:.1f} ms · p99 {p99:.1f} ms · {errors} errors"
    table = Table(title="arena", caption=caption)
    for column in ("shard", "state", "calls/s", "calls", "forwarded"):
        table.add_column(column, justify="left" if column in ("shard", "state") else "right")
    for app in status["apps"].values():
        for shard in app["shards"]:
            speed = (shard["calls"] - before.get(shard["name"], 0)) / seconds
            row = (shard["name"], shard["state"], f"{speed:,.0f}", f"{shard['calls']:,}", f"{shard['forwarded']:,}")
            table.add_row(*row)
    return table


async def show(admin: Admin, tally: Tally, until: anyio.Event, console: Console) -> None:
    """Redraw the live table once a second; without a terminal there is none."""
    if not console.is_terminal:
        await until.wait()
        return
    before: dict[str, int] = {}
    answered, then = 0, time.perf_counter()
    with Live(console=console, auto_refresh=False) as live:
        while not until.is_set():
            with anyio.move_on_after(1.0):
                await until.wait()
            status = await admin.status()
            now, total = time.perf_counter(), sum(tally.answered.values())
            live.update(table(status, tally, (total - answered) / (now - then), before, now - then), refresh=True)
            before = {s["name"]: s["calls"] for app in status["apps"].values() for s in app["shards"]}
            answered, then = total, now


async def end_on_signal(until: anyio.Event, starting: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            until.set()
            starting.cancel()


@dataclass
class Game:
    """A run of the arena, and what its players were told."""

    seconds: float | None
    """None until a signal."""
    seed: int
    shakes: bool
    console: Console
    tally: Tally = field(default_factory=Tally)
    ledger: Ledger = field(default_factory=Ledger)
    until: anyio.Event = field(default_factory=anyio.Event)
    """Set when it ends."""
    spent_s: float = 0.0
    metrics: str = ""
    """At the end."""
    fault: str = ""
    """Why it could not be played to its end."""

    async def run(self, file: Path) -> bool:
        """Play until a signal or for some seconds. True if nothing is lost, and totals agree."""
        starting = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end_on_signal, self.until, starting)
            async with arena(file, starting) as (apps, address):
                admin = Admin(address)
                await self._play(apps, admin)
                self.metrics = await admin.read("/metrics")
            tasks.cancel_scope.cancel()
        return self._summarize()

    async def _play(self, apps: dict[str, str], admin: Admin) -> None:
        async with contextlib.AsyncExitStack() as stack:
            channels = {
                app: await stack.enter_async_context(onelane.connect(address, reopen=True, marks=True))
                for app, address in apps.items()
            }
            players = Players(channels, self.tally, self.ledger)
            began = time.perf_counter()
            await self._play_until_the_end(players, admin)
            self.spent_s = time.perf_counter() - began
            try:
                await players.audit()
            except grpc.aio.AioRpcError as error:
                self.fault = f"the arena does not answer any more: {error.code().name}: {error.details()}"

    async def _play_until_the_end(self, players: Players, admin: Admin) -> None:
        async with anyio.create_task_group() as tasks:
            for n in range(TABLES):
                tasks.start_soon(players.play, f"room-{n}", random.Random(self.seed + n), self.until)
            tasks.start_soon(show, admin, self.tally, self.until, self.console)
            if self.shakes:
                for n in range(LOUNGES):
                    tasks.start_soon(players.lounge, f"lounge-{n}", LOUNGE_PAUSE_S, self.until)
                tasks.start_soon(self._shake, admin)
            with anyio.move_on_after(self.seconds):
                await self.until.wait()
            self.until.set()

    async def _shake(self, admin: Admin) -> None:
        say = partial(self.console.print, highlight=False, soft_wrap=True)
        say(f"shaking with seed {self.seed}")
        shaker = Shaker(admin, self.ledger, random.Random(self.seed), say)
        try:
            await shaker.shake(self.until)
        except NotReady as error:
            self.fault = str(error)
            self.until.set()
        changes = ", ".join(f"{count} x {kind}" for kind, count in sorted(shaker.done.items()))
        say(f"shaken with seed {self.seed}: {changes or 'not at all'}")

    def _summarize(self) -> bool:
        agree = summarize(self.tally, self.metrics, self.spent_s, self.console)
        if self.shakes:
            watched = ", ".join(f"{why} x {count}" for why, count in self.tally.reopened.items()) or "never"
            self.console.print(f"watchers saw {self.tally.events:,} events; reopened: {watched}", highlight=False)
        else:
            self.console.print("totals agree" if agree else "totals DISAGREE", highlight=False)
        return self._tell_losses() and (agree or self.shakes)

    def _tell_losses(self) -> bool:
        """Print what is lost. True if it is nothing."""
        ledger, lost = self.ledger, list(self.ledger.lost())
        compared = f"{len(ledger.players)} players and {len(ledger.rooms)} open rooms compared"
        ended = f"{ledger.excused} rooms ended with shards that were killed"
        self.console.print(f"{compared}; {ended}", highlight=False, soft_wrap=True)
        for line in lost[:MAX_LINES]:
            self.console.print(f"LOST: {line}", highlight=False, soft_wrap=True)
        if len(lost) > MAX_LINES:
            self.console.print(f"LOST: and {len(lost) - MAX_LINES} more", highlight=False)
        if self.fault:
            self.console.print(f"FAILED: {self.fault}", highlight=False, soft_wrap=True)
        if not lost and not self.fault:
            self.console.print("nothing lost", highlight=False)
        return not lost and not self.fault


def summarize(tally: Tally, metrics: str, spent: float, console: Console) -> bool:
    """Print the players' counts beside those of /metrics. True if they agree."""
    table = Table(title=f"summary of {spent:.1f} s")
    for column in ("method", "players saw", "/metrics says"):
        table.add_column(column, justify="left" if column == "method" else "right")
    agree = True
    for method, answered in sorted(tally.answered.items()):
        exported_calls = exported(metrics, method)
        # The lobby reads records too.
        agree &= exported_calls == answered or method == "Profile/Get"
        table.add_row(method, f"{answered:,}", f"{exported_calls:,}")
    console.print(table)
    total = sum(tally.answered.values())
    p50, p99 = tally.percentile_ms(0.5), tally.percentile_ms(0.99)
    console.print(f"{total:,} calls, {total / spent:,.0f} calls/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms", highlight=False)
    for error, count in tally.errors.items():
        console.print(f"error: {error} x {count}, first: {tally.details[error]}", highlight=False, soft_wrap=True)
    return agree


def _seconds(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m)?", text)
    if not match:
        raise click.BadParameter(f"expected a time such as 10s or 2m, seen {text!r}")
    return float(match[1]) * (60 if match[2] == "m" else 1)


@click.command()
@click.option("--for", "seconds", callback=_seconds, help="End by itself after a time such as 10s or 2m.")
@click.option("--seed", default=1, show_default=True, help="Seed of all random choices.")
@click.option("--shake", is_flag=True, help="Scale apps, restart them and kill shards at random meanwhile.")
@click.option("--file", type=click.Path(path_type=Path, exists=True), default=FILE, help="The arena's file.")
def main(seconds: float | None, seed: int, shake: bool, file: Path) -> None:
    """Run the arena and play in it."""
    try:
        is_good = asyncio.run(Game(seconds, seed, shake, Console()).run(file))
    except BaseExceptionGroup as group:
        raise first_of(group) from None
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
