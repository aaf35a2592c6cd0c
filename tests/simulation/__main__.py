"""`python -m tests.simulation [--machines N,N,…] [--lanes N] [--keys N] [--points N] [--seed N]`: table, growth.

keys: of each machine.
"""

import argparse
import gc
import sys
from collections.abc import Sequence

from onelane.core.placement import POINTS

from tests.simulation import growth
from tests.simulation.machines import Row, Size, rows

COLUMNS = ["machines, lanes of each", "keys", "a machine", "keys moved", "time", "their pause: median, p99, longest"]
COLUMNS += ["stall of every lane", "calls", "MB", "skew before, after", "entry in etcd"]


def as_text(row: Row) -> str:
    size, outcome = row.size, row.outcome
    pauses = outcome.pauses or [outcome.seconds]
    # The keys of a machine that fails are served again where the change is over.
    parts = [pauses[min(len(pauses) - 1, int(len(pauses) * part))] for part in (0.5, 0.99, 1.0)]
    cells = [
        f"{size.machines}, {size.lanes}",
        f"{size.keys:,}",
        row.what,
        f"{row.moved:,}",
        f"{outcome.seconds:.2f} s",
        ", ".join(f"{part * 1000:,.0f}" for part in parts) + " ms",
        f"{outcome.stall_s * 1000:,.0f} ms",
        f"{outcome.calls:,}",
        f"{outcome.bytes / 1e6:,.0f}",
        f"{row.skew_before:.2f}, {row.skew_after:.2f}",
        f"{outcome.etcd_bytes / 1e3:,.0f} KB",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--machines", default="3,10,30,100", help="several sizes, one after the other")
    parser.add_argument("--lanes", type=int, default=10, help="of each machine")
    parser.add_argument("--keys", type=int, default=100_000, help="of each machine")
    parser.add_argument("--points", type=int, default=POINTS, help="of each lane on the ring")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    # A million events have no cycles, and to look for them takes half of the time.
    gc.disable()
    _write_head(COLUMNS)
    every_row: list[Row] = []
    for machines in map(int, asked.machines.split(",")):
        for row in rows(Size(machines, asked.lanes, asked.keys * machines, asked.points), asked.seed):
            sys.stdout.write(f"{as_text(row)}\n")
            sys.stdout.flush()
            every_row.append(row)
    sys.stdout.write("\n")
    _write_head(growth.COLUMNS)
    for line in map(growth.as_text, growth.growths(every_row)):
        sys.stdout.write(f"{line}\n")


def _write_head(columns: Sequence[str]) -> None:
    sys.stdout.write(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n")


if __name__ == "__main__":
    main()
