"""Drives the arena with simulated players through the public client, and shows a live table until it is stopped.

    python -m services.arena.drive [--for 10s]

Starts `onelane up` on the arena's file, plays, prints a summary that it checks against /metrics, and leaves no
process behind. Exit code 0 only if every total agrees.
"""

import asyncio
import contextlib
import json
import random
import re
import signal
import sys
import time
import urllib.request
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
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

from services.arena.v1 import leaderboard_pb2, leaderboard_pb2_grpc, lobby_pb2, lobby_pb2_grpc

FILE = Path(__file__).with_name("onelane.toml")
ROOT = FILE.parent.parent.parent
ROOMS = 8
PLAYERS = 4


@dataclass
class Tally:
    """The calls of all players, counted at the client."""

    answered: Counter[str] = field(default_factory=Counter)
    """Method → calls answered OK."""
    errors: Counter[str] = field(default_factory=Counter)
    """Method, status and details → calls that failed."""
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=5000))
    """Durations of the latest calls answered OK."""

    async def call(self, method: str, call: Any) -> Any:
        """The response of `call`, counted.

        Raises:
            grpc.aio.AioRpcError: the call failed.
        """
        began = time.perf_counter()
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            self.errors[f"{method}: {error.code().name}: {error.details()}"] += 1
            raise
        self.seconds.append(time.perf_counter() - began)
        self.answered[method] += 1
        return response

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def play(lobby: Any, boards: Any, tally: Tally, room: str, rng: random.Random, until: anyio.Event) -> None:
    """Play games in one room, one after the other, until `until` is set."""
    game = 0
    while not until.is_set():
        game += 1
        room_id = f"{room}-{game}"
        players = [f"{room}-player-{n}" for n in range(PLAYERS)]
        try:
            for player in players:
                await tally.call("Lobby/Join", lobby.Join(lobby_pb2.JoinRequest(room_id=room_id, player=player)))
            for player in rng.choices(players, k=6):
                say = lobby_pb2.SayRequest(room_id=room_id, player=player, text="well played")
                await tally.call("Lobby/Say", lobby.Say(say))
            finish = lobby_pb2.FinishRequest(room_id=room_id, winner=rng.choice(players), board="world")
            await tally.call("Lobby/Finish", lobby.Finish(finish))
            await tally.call("Leaderboard/Top", boards.Top(leaderboard_pb2.TopRequest(board="world", limit=3)))
        except grpc.aio.AioRpcError:
            # The tally has counted the error. The game is abandoned, and the next one begins.
            await asyncio.sleep(0.05)


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


async def get(admin: str, path: str) -> str:
    def read() -> str:
        with urllib.request.urlopen(f"http://{admin}{path}", timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    return await asyncio.to_thread(read)


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


async def show(admin: str, tally: Tally, until: anyio.Event, console: Console) -> None:
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
            status = json.loads(await get(admin, "/status"))
            now, total = time.perf_counter(), sum(tally.answered.values())
            live.update(table(status, tally, (total - answered) / (now - then), before, now - then), refresh=True)
            before = {s["name"]: s["calls"] for app in status["apps"].values() for s in app["shards"]}
            answered, then = total, now


async def end_on_signal(until: anyio.Event, starting: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            until.set()
            starting.cancel()


async def drive(file: Path, seconds: float | None, seed: int, console: Console) -> bool:
    """Play until a signal or for `seconds`. True if the players' totals and /metrics agree."""
    tally, until, starting = Tally(), anyio.Event(), anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end_on_signal, until, starting)
        async with arena(file, starting) as (apps, admin):
            began = time.perf_counter()
            await _play(apps, admin, tally, until, seconds, seed, console)
            spent = time.perf_counter() - began
            metrics = await get(admin, "/metrics")
        tasks.cancel_scope.cancel()
    return summarize(tally, metrics, spent, console)


async def _play(
    apps: dict[str, str],
    admin: str,
    tally: Tally,
    until: anyio.Event,
    seconds: float | None,
    seed: int,
    console: Console,
) -> None:
    async with onelane.connect(apps["lobby"]) as lobbies, onelane.connect(apps["leaderboard"]) as leaderboards:
        lobby, boards = lobby_pb2_grpc.LobbyStub(lobbies), leaderboard_pb2_grpc.LeaderboardStub(leaderboards)
        async with anyio.create_task_group() as players:
            for n in range(ROOMS):
                players.start_soon(play, lobby, boards, tally, f"room-{n}", random.Random(seed + n), until)
            players.start_soon(show, admin, tally, until, console)
            with anyio.move_on_after(seconds):
                await until.wait()
            until.set()


def summarize(tally: Tally, metrics: str, spent: float, console: Console) -> bool:
    """Print the players' counts beside those of /metrics. True if they agree."""
    table = Table(title=f"summary of {spent:.1f} s")
    for column in ("method", "players saw", "/metrics says"):
        table.add_column(column, justify="left" if column == "method" else "right")
    agree = True
    for method, answered in sorted(tally.answered.items()):
        exported_calls = exported(metrics, method)
        agree &= exported_calls == answered
        table.add_row(method, f"{answered:,}", f"{exported_calls:,}")
    console.print(table)
    total = sum(tally.answered.values())
    p50, p99 = tally.percentile_ms(0.5), tally.percentile_ms(0.99)
    console.print(f"{total:,} calls, {total / spent:,.0f} calls/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms", highlight=False)
    for error, count in tally.errors.items():
        console.print(f"error: {error} x {count}", highlight=False)
    console.print("totals agree" if agree else "totals DISAGREE", highlight=False)
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
@click.option("--seed", default=1, show_default=True, help="Seed of the players' random choices.")
@click.option("--file", type=click.Path(path_type=Path, exists=True), default=FILE, help="The arena's file.")
def main(seconds: float | None, seed: int, file: Path) -> None:
    """Run the arena and play in it."""
    try:
        agree = asyncio.run(drive(file, seconds, seed, Console()))
    except BaseExceptionGroup as group:
        raise first_of(group) from None
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
