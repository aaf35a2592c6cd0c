"""`make bench`: what a call costs, beside bare grpc.aio in the same run. `ARGS=--json` prints one JSON object."""

import json
import shutil
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from onelane import keys
from onelane.placement import Member, Placement
from rich.console import Console
from rich.table import Table

from tests.bench.load import Run, Target, median, run
from tests.cluster import ROOT, Cluster, echo, running
from tests.echo.v1.echo_pb2 import EchoRequest

SHAPE = (4, 16)
"""Connections, and streams on each."""


@contextmanager
def raw() -> Iterator[tuple[str, int]]:
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.raw"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


class Shards:
    """A running echo app, and where a key lives in it."""

    def __init__(self, cluster: Cluster) -> None:
        shards = cluster.shards()
        self.members = tuple(Member(s["name"], s["address"], "") for s in shards)
        self.placement = Placement(1, self.members)
        self.pids = [cluster.process.pid, *(s["pid"] for s in shards)]

    def key_of(self, member: Member) -> str:
        return next(k for k in map(str, range(10_000)) if self.placement.owner_of(k) == member)

    def at_home(self) -> list[Target]:
        return [Target(member.address, self.key_of(member)) for member in self.members]

    def away(self) -> list[Target]:
        here, other = self.members
        return [Target(here.address, self.key_of(other))]


def measure(calls: int, rounds: int, tell: Callable[[str], None]) -> dict[str, list[Run]]:
    """Every row, `rounds` times, alternating."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address, pid = stack.enter_context(raw())
        one, two = folder / "one", folder / "two"
        one.mkdir()
        two.mkdir()
        single = Shards(stack.enter_context(running(one, echo(1))))
        double = Shards(stack.enter_context(running(two, echo(2))))
        rows: dict[str, tuple[list[Target], list[int], int]] = {
            "raw grpc.aio + uvloop": ([Target(address, "k")], [pid], calls),
            "onelane, at home, 1 shard": (single.at_home(), single.pids, calls),
            "onelane, at home, 2 shards": (double.at_home(), double.pids, calls // 2),
            "onelane, forwarded": (double.away(), double.pids, calls // 2),
        }
        runs: dict[str, list[Run]] = {name: [] for name in rows}
        for number in range(-1, rounds):
            for name, (targets, pids, count) in rows.items():
                made = run(targets, pids, calls=count, connections=SHAPE[0], streams=SHAPE[1])
                if number >= 0:
                    runs[name].append(made)
            tell(f"round {number + 1} of {rounds}" if number >= 0 else "warm")
        return runs


def key_us() -> float:
    """Microseconds to read a key from a small message whose class is loaded, its parsing included."""
    data = EchoRequest(key="room-17", text="x" * 32).SerializeToString()
    rule = keys.field_key(EchoRequest.DESCRIPTOR, keys.annotated_paths(EchoRequest.DESCRIPTOR))
    return min(timeit.repeat(lambda: rule.read(EchoRequest.FromString(data)), number=20_000, repeat=7)) / 20_000 * 1e6


def rows_of(runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    shape = f"{SHAPE[0]}x{SHAPE[1]}"
    rows = []
    for name, measured in runs.items():
        middle = median(measured)
        rows.append(
            {
                "name": name,
                "shape": shape,
                "cpu_us_per_call": round(middle.cpu_us_per_call, 1),
                "calls_per_s": round(middle.calls_per_s),
                "p99_ms": round(middle.p99_ms, 2),
            }
        )
    cost = round(key_us(), 3)
    rows.append(
        {
            "name": "reading a key",
            "shape": "in process",
            "cpu_us_per_call": cost,
            "calls_per_s": round(1e6 / cost),
            "p99_ms": 0.0,
        }
    )
    return rows


def goals(rows: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """What is asked, what was measured, and the limit."""
    cost = {row["name"]: row["cpu_us_per_call"] for row in rows}
    bare = cost["raw grpc.aio + uvloop"]
    one, two = cost["onelane, at home, 1 shard"], cost["onelane, at home, 2 shards"]
    return [
        ("at home / raw", one / bare, 1.15),
        ("forwarded / raw", cost["onelane, forwarded"] / bare, 3.5),
        ("2 shards / 1 shard", two / one, 1.1),
        ("reading a key, µs", cost["reading a key"], 1.0),
    ]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--calls", default=12_000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(as_json: bool, calls: int, rounds: int) -> None:
    """Measure and print."""
    if shutil.which("h2load") is None:
        raise click.ClickException("h2load is missing: install Debian's nghttp2-client")
    rows = rows_of(measure(calls, rounds, lambda text: click.echo(text, err=True)))
    if as_json:
        click.echo(json.dumps({"rows": rows}))
        return
    table = Table(title=f"median of {rounds} alternating runs")
    for column in ("", "shape", "CPU µs per call", "calls/s", "p99 ms"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()))
    Console().print(table)
    for name, ratio, limit in goals(rows):
        click.echo(f"{name}: {ratio:.2f} (goal: at most {limit}) {'reached' if ratio <= limit else 'MISSED'}")


if __name__ == "__main__":
    main()
