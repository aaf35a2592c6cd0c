"""Clients that count while keys move: failed calls, updates that are lost or doubled, and how long each key paused.

Half of the keys are called by clients that know the ring, half by stock clients. Each kind has a process of its own
(`tests.bench.counting`).
"""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

from tests.bench.counting import OURS, STOCK, Seen
from tests.running_app import RunningApp

KEYS = [f"key-{number}" for number in range(48)]
"""Each is counted by a task of its own, one call after the other."""
BEFORE_S, AFTER_S = 1.5, 0.5
ALL_OUT = {OURS: 0.0, STOCK: 0.02}
"""Seconds from an answer to the next call of its key: the machine has no processor left."""
MODERATE = {OURS: 0.01, STOCK: 0.02}
"""The machine has some left."""


@dataclass(frozen=True)
class Counted:
    """What all clients saw."""

    failed: int
    wrong: int
    calls: list[tuple[float, float, str]]
    """Unix time at its end, duration, key; in the order of their ends."""

    def per_s(self, keys: Collection[str], since: float, until: float) -> float:
        """Calls of these keys in that time."""
        return sum(since <= at < until and key in keys for at, _, key in self.calls) / (until - since)

    def pauses_s(self, since: float, until: float) -> list[float]:
        """The longest call of each key that was under way in that time, in order."""
        longest: dict[str, float] = {}
        for at, took, key in self.calls:
            if at >= since and at - took < until:
                longest[key] = max(took, longest.get(key, 0.0))
        return sorted(longest.values())


@dataclass(frozen=True)
class Change:
    """A change of placement, as the supervisor logs it: Unix times."""

    began: float
    over: float


def count_during(
    app: RunningApp, commands: Sequence[str], counts: dict[str, int], every_s: Mapping[str, float] = ALL_OUT
) -> Counted:
    """Count while the admin address is given these commands, one after the other. counts: the last of each key."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(
                _clients([kind, app.listen["echo"], str(seconds)], KEYS[number :: len(every_s)], counts)
            )
            for number, (kind, seconds) in enumerate(every_s.items())
        ]
        for process in clients:
            _read_line(process)
        time.sleep(BEFORE_S)
        for command in commands:
            _command(app, command)
            time.sleep(AFTER_S)
        seen = [Seen(**json.loads(process.communicate()[0])) for process in clients]
    for saw in seen:
        counts.update(saw.counts)
    calls = sorted(chain.from_iterable(saw.calls for saw in seen))
    return Counted(sum(saw.failed for saw in seen), sum(saw.wrong for saw in seen), calls)


def _clients(arguments: Sequence[str], keys: Sequence[str], counts: Mapping[str, int]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.bench.counting", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    print(json.dumps({key: counts.get(key, 0) for key in keys}), file=process.stdin, flush=True)
    return process


def _read_line(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    if process.stdout.readline() != "counting\n":
        raise RuntimeError("a process of clients ended before it counted")


def _command(app: RunningApp, path: str) -> None:
    request = urllib.request.Request(f"http://{app.admin}{path}", method="POST", headers={"X-Onelane": "1"})
    with urllib.request.urlopen(request, timeout=120):
        pass


def changes_of(app: RunningApp) -> list[Change]:
    """Those in the supervisor's log."""
    over = re.findall(r"^(\S+ \S+),(\d+) INFO .* change.over .*seconds=(\S+)$", app.log.read_text(), re.MULTILINE)
    ends = [(datetime.fromisoformat(at).timestamp() + int(ms) / 1000, float(seconds)) for at, ms, seconds in over]
    return [Change(at - seconds, at) for at, seconds in ends]
