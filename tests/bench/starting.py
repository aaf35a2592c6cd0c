"""What it takes until an app is ready, and what its shards then hold in memory while nobody calls."""

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from tests.running_app import echo, running


@dataclass(frozen=True, slots=True)
class Start:
    """One start of an app."""

    ready_s: float
    """From `onelane up` to its line that all is ready."""
    resident_kib: int
    """Of a shard, as `ps` shows it."""
    proportional_kib: int
    """The same, with pages that processes share counted by parts."""


def start(folder: Path, shards: int) -> Start:
    """Start an app of so many shards, and end it."""
    began = time.perf_counter()
    # Fresh processes: those of tests are forks of some that have imported everything.
    with running(Path(mkdtemp(dir=folder)), echo(shards), python=sys.executable) as app:
        ready_s = time.perf_counter() - began
        rollup = Path(f"/proc/{app.shards()[-1]['pid']}/smaps_rollup").read_text()
    return Start(ready_s, _kib(rollup, "Rss"), _kib(rollup, "Pss"))


def _kib(rollup: str, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", rollup, re.MULTILINE)
    assert match is not None
    return int(match[1])
