"""`python -m tests.chaos [MINUTES] [--kills N] [--seed N] [--app plain|kept]`: runs of chaos, and a report of them.
`--machines`: of machines of a cluster, by `cluster_report`.

First shards of an app with durable state are killed, a hundred times unless told otherwise; then come runs of all
kinds for some minutes. Each run has a seed, from N on, and says what was done and seen. It ends at the first history
that is not linearizable, or call that failed where none may, with all that is known of it.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import cluster_report
from tests.chaos.outcome import Outcome
from tests.chaos.run import Arena, Load, arena, run
from tests.chaos.schedule import Schedule, changes, kills, restarts_and_scales
from tests.chaos.text import quantiles, words

LOADS = (Load(clients=8, pause_s=0.005), Load(clients=16, pause_s=0.0))
"""One that leaves room for new processes to start, and one that does not."""


@dataclass(frozen=True)
class Kind:
    """Of a run."""

    app: str
    schedule: Schedule
    with_crashes: bool = False
    may_fail: bool = False
    """Calls may: shards are killed, or their store is locked for longer than its patience, also by one that is
    frozen."""


KINDS = (
    Kind("plain", restarts_and_scales),
    Kind("kept", restarts_and_scales),
    Kind("plain", changes(8, harm=["freeze"])),
    Kind("kept", changes(8, harm=["freeze"]), may_fail=True),
    Kind("plain", changes(8, harm=["kill", "kill", "freeze"]), with_crashes=True, may_fail=True),
    Kind("kept", changes(8, harm=["kill", "kill", "freeze"]), with_crashes=True, may_fail=True),
    Kind("kept", changes(8, harm=["kill", "lock"]), with_crashes=True, may_fail=True),
)
KILLS = (
    Kind("kept", kills(5), with_crashes=True, may_fail=True),
    Kind("kept", changes(5, harm=["kill"]), with_crashes=True, may_fail=True),
)
"""Between changes of placement, and in them."""


@dataclass
class Report:
    """Of all runs."""

    runs: int = 0
    calls: int = 0
    failed: int = 0
    repeated: int = 0
    changes: Counter[str] = field(default_factory=Counter)
    harm: Counter[str] = field(default_factory=Counter)
    longest: list[float] = field(default_factory=list)
    """Of each key and change, where nothing else was done to the app."""

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.calls += outcome.calls
        self.failed += len(outcome.history.failures)
        self.repeated += outcome.history.repeated.total()
        self.changes += Counter(change.what.partition("?")[0][1:] for change in outcome.record.changes)
        self.harm += outcome.record.harm
        if not outcome.record.harm:
            self.longest += outcome.longest()

    def lines(self) -> list[str]:
        return [
            f"{self.runs} runs, {self.calls} calls, all histories linearizable: no acknowledged update was lost or "
            "doubled, but for plain state that a kill took along",
            f"changes: {words(self.changes)}; harm: {words(self.harm)}",
            f"calls that failed, in runs with kills, locks or frozen stores: {self.failed}",
            f"calls that were repeated by their id, which was to have them once: {self.repeated}",
            f"the longest call of each key in each change without harm, in ms: {quantiles(sorted(self.longest))}",
        ]


def say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


async def run_until(is_over: Callable[[], bool], apps: Arena, kinds: Sequence[Kind], seed: int, report: Report) -> int:
    """Runs of these kinds, in turn; the next seed."""
    while not is_over():
        kind, load = kinds[seed % len(kinds)], LOADS[seed // len(kinds) % len(LOADS)]
        outcome = await run(apps, kind.app, seed, kind.schedule, with_crashes=kind.with_crashes, load=load)
        report.add(outcome)
        say(*outcome.lines())
        if (outcome.history.failures or outcome.watchers.failures) and not kind.may_fail:
            raise AssertionError(f"seed {seed}: calls have failed, and nothing was killed or locked")
        seed += 1
    return seed


async def run_all(apps: Arena, options: argparse.Namespace, report: Report) -> None:
    kinds = [kind for kind in KINDS if options.app in (None, kind.app)]
    seed = await run_until(lambda: report.harm["kill"] >= options.kills, apps, KILLS, options.seed, report)
    until = time.monotonic() + options.minutes * 60
    await run_until(lambda: time.monotonic() > until, apps, kinds, seed, report)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=5.0)
    parser.add_argument("--kills", type=int, default=100, help="of shards with durable state, before all else")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--app", choices=("plain", "kept"), help="only with state in memory, or only with durable state"
    )
    parser.add_argument("--machines", action="store_true", help="only machines of a cluster, as root: see `failures`")
    parser.add_argument("--scenario", default="", help="with --machines: only those with this in their names")
    options = parser.parse_args(arguments)
    if options.machines:
        cluster_report.main(options.minutes, options.seed, options.scenario)
        return
    report = Report()
    with tempfile.TemporaryDirectory() as folder, arena(Path(folder)) as apps:
        try:
            asyncio.run(run_all(apps, options, report))
        except AssertionError as error:
            say(str(error))
            sys.exit(1)
    say(*report.lines())


if __name__ == "__main__":
    main(sys.argv[1:])
