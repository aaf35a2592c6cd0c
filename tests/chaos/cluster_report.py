"""Runs of all scenarios of machines of a cluster, again and again for some minutes, and a report of them."""

import asyncio
import itertools
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.cluster_run import ClusterOutcome, machines_up, run
from tests.chaos.failures import Scenario
from tests.chaos.scenarios import ALL

LEASE_S = 6
SHARDS = 2
"""Of each machine."""


@dataclass
class ClusterReport:
    """Of all runs."""

    runs: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)

    def add(self, outcome: ClusterOutcome) -> None:
        self.runs[outcome.scenario] += 1
        self.calls[outcome.scenario] += len(outcome.history.operations)
        self.failed[outcome.scenario] += len(outcome.history.failures)
        for what, took in outcome.record.seconds.items():
            self.seconds[outcome.scenario, what].append(took)

    def lines(self) -> list[str]:
        """For people, as a table of Markdown."""
        rows = [
            f"| {name} | {count} | {self.calls[name]} | {self.failed[name]} | {self._took(name)} |"
            for name, count in self.runs.items()
        ]
        return ["| scenario | runs | calls | failed | seconds |", "|---|---|---|---|---|", *rows, *self.faults]

    def _took(self, scenario: str) -> str:
        took = {what: seconds for (name, what), seconds in self.seconds.items() if name == scenario}
        return ", ".join(f"{what}: {min(each):.1f} to {max(each):.1f}" for what, each in took.items())


def say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


async def run_all(
    folder: Path, scenarios: Sequence[Scenario], minutes: float, seed: int, report: ClusterReport
) -> None:
    """Each of them in turn, with the next seed; machines are other ones after a fault."""
    until, seeds = time.monotonic() + minutes * 60, itertools.count(seed)
    while time.monotonic() < until:
        async with machines_up(folder, lease_s=LEASE_S, etcd_members=3, shards=SHARDS, with_tls=True) as machines:
            for number in seeds:
                try:
                    outcome = await run(machines, scenarios[number % len(scenarios)], number)
                except AssertionError as error:
                    report.faults.append(str(error).splitlines()[0])
                    say(str(error))
                    break
                report.add(outcome)
                say(*outcome.lines())
                if time.monotonic() > until:
                    break


def main(minutes: float, seed: int, wanted: str) -> None:
    """Ends with 1 where there was a fault. wanted: the name of a scenario, or a part of the names of several."""
    report = ClusterReport()
    named = [scenario for scenario in ALL if wanted == scenario.name]
    scenarios = named or [scenario for scenario in ALL if wanted in scenario.name]
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run_all(Path(folder), scenarios, minutes, seed, report))
    say(*report.lines())
    sys.exit(1 if report.faults else 0)
