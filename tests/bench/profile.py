"""Where a native shard spends its time under load, as a table: `python -m tests.bench.profile`.

py-spy samples the shard's lane from outside. self: the function was on top of the stack; total: it was on it. What
happens in C (ngh2, protobuf, a system call) counts as self time of the Python function that called it; uvloop's own
work, its reading and polling, as that of `Runner.run`.
"""

import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from tests.bench.load import Load, body_of, start
from tests.bench.shards import shards
from tests.otlp_receiver import HttpReceiver
from tests.running_app import ROOT

RATE = 500
"""Samples a second."""
ENDLESS = 100_000_000
"""Calls, of which those are made that fit in."""


LANE = "Runner.run"
"""On the stack of the lane's thread alone; of the others py-spy takes waits for work."""


def record(seconds: int, load: Load) -> str:
    """py-spy's folded stacks of a shard under load."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        app = stack.enter_context(shards(folder, 1, "native", stack.enter_context(HttpReceiver()).url))
        (target,) = app.at_home()
        client = start(target, body_of(target, load, folder / "body"), load)
        stack.callback(client.communicate)
        stack.callback(client.kill)
        out = folder / "stacks"
        program = [
            str(Path(sys.executable).with_name("py-spy")),
            "record",
            "--format",
            "raw",
            "--function",
            "--rate",
            str(RATE),
            "--output",
            str(out),
        ]
        program += ["--duration", str(seconds), "--pid", str(app.shard_pids[0])]
        subprocess.run(program, check=True, capture_output=True)
        return out.read_text()


def fold(stacks: str) -> tuple[Counter[str], Counter[str]]:
    """Samples by function: on top of the stack, and anywhere on it."""
    top: Counter[str] = Counter()
    anywhere: Counter[str] = Counter()
    for line in stacks.splitlines():
        if LANE not in line:
            continue
        frames, _, count = line.rpartition(" ")
        names = [_name(frame) for frame in frames.split(";")]
        top[names[-1]] += int(count)
        for name in set(names):
            anywhere[name] += int(count)
    return top, anywhere


def _name(frame: str) -> str:
    """A frame without what is the same for all of a package."""
    for before in (f"{ROOT}/runtime/", f"{ROOT}/"):
        frame = frame.replace(before, "")
    return frame


@click.command()
@click.option("--seconds", default=10, show_default=True)
@click.option("--method", default="Unary", show_default=True, help="Unary is async, Plain a plain def.")
@click.option("--shape", nargs=2, type=int, default=(4, 16), show_default=True, help="Connections, streams on each.")
@click.option("--top", "lines", default=40, show_default=True, help="Functions to print.")
def main(seconds: int, method: str, shape: tuple[int, int], lines: int) -> None:
    """Measure and print."""
    load = Load(ENDLESS, *shape, method=method)
    top, anywhere = fold(record(seconds, load))
    samples = sum(top.values())
    click.echo(f"{method}, {load.shape}, {samples} samples of the lane in {seconds} s")
    click.echo(" self %  total %  function")
    for name, count in top.most_common(lines):
        click.echo(f"{100 * count / samples:7.1f} {100 * anywhere[name] / samples:8.1f}  {name}")


if __name__ == "__main__":
    main()
