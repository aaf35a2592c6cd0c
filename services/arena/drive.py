"""Drives the arena with simulated players through the public client, and shows a live table until it is stopped.

    python -m services.arena.drive [--for 10s] [--shake] [--think 0.2s]

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
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import click
from onelane.errors import first_of
from rich.console import Console
from rich.live import Live
from rich.table import Table

from services.arena.admin import Admin
from services.arena.game import Game
from services.arena.shake import NotReady, Shaker
from services.arena.tally import Tally

FILE = Path(__file__).with_name("onelane.toml")
ROOT = FILE.parent.parent.parent
LOUNGES = 16


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


async def read_addresses(
    output: asyncio.StreamReader, show: Callable[[str], object] = click.echo
) -> tuple[dict[str, str], str] | None:
    """Each app's address and the admin address, once all are ready; None if the process ends before that. show: is told
    each line."""
    apps: dict[str, str] = {}
    while line := (await output.readline()).decode():
        show(line.rstrip())
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
class Drive:
    """A run of the arena with players in it."""

    seconds: float | None
    """None until a signal."""
    shakes: bool
    console: Console
    game: Game
    metrics: str = ""
    """At the end."""

    async def run(self, file: Path) -> bool:
        """Play until a signal or for some seconds. True if nothing is lost, and totals agree."""
        starting = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end_on_signal, self.game.until, starting)
            async with arena(file, starting) as (apps, address):
                admin = Admin(address)
                beside = [partial(show, admin, self.game.tally, self.game.until, self.console)]
                beside += [partial(self._shake, admin)] if self.shakes else []
                await self.game.play(apps, *beside, seconds=self.seconds)
                self.metrics = await admin.read("/metrics")
            tasks.cancel_scope.cancel()
        return self._summarize()

    async def _shake(self, admin: Admin) -> None:
        game, say = self.game, partial(self.console.print, highlight=False, soft_wrap=True)
        say(f"shaking with seed {game.seed}")
        shaker = Shaker(admin, game.ledger, random.Random(game.seed), say)
        try:
            await shaker.shake(game.until)
        except NotReady as error:
            game.fault = str(error)
            game.until.set()
        changes = ", ".join(f"{count} x {kind}" for kind, count in sorted(shaker.done.items()))
        say(f"shaken with seed {game.seed}: {changes or 'not at all'}")

    def _summarize(self) -> bool:
        agree = summarize(self.game, self.metrics, self.console)
        if self.shakes:
            self.game.tell_watchers(self.console)
        else:
            self.console.print("totals agree" if agree else "totals DISAGREE", highlight=False)
        return self.game.tell_losses(self.console) and (agree or self.shakes)


def summarize(game: Game, metrics: str, console: Console) -> bool:
    """Print the players' counts beside those of /metrics. True if they agree."""
    table = Table(title=f"summary of {game.spent_s:.1f} s")
    for column in ("method", "players saw", "/metrics says"):
        table.add_column(column, justify="left" if column == "method" else "right")
    agree = True
    for method, answered in sorted(game.tally.answered.items()):
        exported_calls = exported(metrics, method)
        # The lobby reads records too.
        agree &= exported_calls == answered or method == "Profile/Get"
        table.add_row(method, f"{answered:,}", f"{exported_calls:,}")
    console.print(table)
    game.tell_calls(console)
    return agree


def read_seconds(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """A time as its seconds.

    Raises:
        click.BadParameter: it is none.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m)?", text)
    if not match:
        raise click.BadParameter(f"expected a time such as 10s or 2m, seen {text!r}")
    return float(match[1]) * (60 if match[2] == "m" else 1)


@click.command()
@click.option("--for", "seconds", callback=read_seconds, help="End by itself after a time such as 10s or 2m.")
@click.option("--seed", default=1, show_default=True, help="Seed of all random choices.")
@click.option("--shake", is_flag=True, help="Scale apps, restart them and kill shards at random meanwhile.")
@click.option("--think", callback=read_seconds, default="0s", help="What players wait before each call, such as 0.2s.")
@click.option("--file", type=click.Path(path_type=Path, exists=True), default=FILE, help="The arena's file.")
def main(seconds: float | None, seed: int, shake: bool, think: float, file: Path) -> None:
    """Run the arena and play in it."""
    try:
        game = Game(seed, lounges=LOUNGES if shake else 0, think_s=think)
        is_good = asyncio.run(Drive(seconds, shake, Console(), game).run(file))
    except BaseExceptionGroup as group:
        raise first_of(group) from None
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
