"""`make bench`: what a call costs, beside others in the same run. `ARGS=--json` prints one JSON object."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click
from onelane.wire.build import running_build
from rich.console import Console
from rich.table import Table

from tests.bench import goals as call_goals
from tests.bench import machine_goals, machines, state, state_goals
from tests.bench.goals import Goal
from tests.bench.interpreted import PURE_PYTHON
from tests.bench.rows import Row, Setting, measure


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object with rows and goals.")
@click.option("--rounds", default=7, show_default=True, help="Runs of each row, after one that warms it.")
@click.option("--scale", default=1.0, show_default=True, help="How many calls, beside the usual number.")
@click.option("--only", type=click.Choice(["calls", "state", "machines"]), help="One part of it.")
def main(as_json: bool, rounds: int, scale: float, only: str | None) -> None:
    """Measure and print. Fails where a guard does."""
    if shutil.which("h2load") is None:
        raise click.ClickException("h2load is missing: install Debian's nghttp2-client")
    click.echo(f"onelane here: {running_build()}; its pure rows: {os.environ.get(PURE_PYTHON, 'none')}", err=True)
    setting = Setting(rounds, scale, lambda text: click.echo(text, err=True))
    sections = {
        "calls": (measure, call_goals.goals),
        "state": (state.measure, state_goals.goals),
        "machines": (machines.measure, machine_goals.goals),
    }
    parts = [section for name, section in sections.items() if only in (None, name)]
    rows: list[Row] = []
    try:
        for measured, _ in parts:
            rows.extend(measured(setting))
    except BaseException:
        # What was measured before took minutes of a quiet machine.
        _print(rows, (), rounds)
        raise
    asked = [goal for _, goals in parts for goal in goals(rows)]
    if as_json:
        reached = [asdict(goal) | {"reached": goal.reached} for goal in asked]
        click.echo(json.dumps({"rows": [asdict(row) for row in rows], "goals": reached}))
    else:
        _print(rows, asked, rounds)
    sys.exit(any(goal.guard and not goal.reached for goal in asked))


def _print(rows: Sequence[Row], asked: Sequence[Goal], rounds: int) -> None:
    table = Table(
        "server", "shape", title=f"median of {rounds} alternating runs; `call` is a message where it is streamed"
    )
    for column in ("CPU µs per call", "calls per core s", "calls/s", "p99 ms", "KiB", "count"):
        table.add_column(column, justify="right")
    for row in rows:
        per_core = None if row.cpu_us_per_call is None else round(1e6 / row.cpu_us_per_call)
        figures = (row.cpu_us_per_call, per_core, row.calls_per_s, row.p99_ms, row.kib, row.count)
        table.add_row(row.name, row.shape, *("" if figure is None else f"{figure:,}" for figure in figures))
    verdicts = Table("goal", "asked", title="goals")
    verdicts.add_column("measured", justify="right")
    verdicts.add_column("")
    for goal in asked:
        verdicts.add_row(goal.name, goal.asked, f"{goal.measured:.2f}", "reached" if goal.reached else "MISSED")
    # Lines are not broken where nobody watches.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(verdicts)


if __name__ == "__main__":
    main()
