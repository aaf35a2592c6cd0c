"""What is asked of the rows of many machines."""

from collections.abc import Sequence
from statistics import median

from onelane.core.cluster_settings import ClusterSettings

from tests.bench import machines as m
from tests.bench.goals import Goal
from tests.bench.rows import SHAPES, Row
from tests.cluster.xds.stock_clients import COMMANDS

CHANGE_MS = 300
SUCCESSION_S = ClusterSettings.lease_s + 1


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Those whose rows were measured."""
    runs = {(row.name, row.shape): row.cpu_us_runs for row in rows}
    counts = {row.name: row.count for row in rows if row.count is not None}
    shapes = [f"{connections}x{streams}" for connections, streams in SHAPES]
    limits = {
        **dict.fromkeys((m.PINNED, m.LEFT, m.JOINED), CHANGE_MS),
        m.SUCCEEDED: SUCCESSION_S,
        m.STANDING: 2,
        m.CALLED: 2,
        **{m.STANDING_FORWARDS.format(client): 0 for client in COMMANDS},
        **{m.FORWARDS_AFTER.format(client): 1 for client in COMMANDS},
    }
    return [
        *(
            Goal(f"{m.CLUSTERED} / {beside}, {shape}", _ratio(runs, beside, shape), 1.05)
            for beside in (m.ALONE, m.APART)
            for shape in shapes
            if (m.CLUSTERED, shape) in runs
        ),
        *(Goal(name, counts[name], limit) for name, limit in limits.items() if name in counts),
    ]


def _ratio(runs: dict[tuple[str, str], tuple[float, ...]], beside: str, shape: str) -> float:
    """The median of runs that followed each other."""
    pairs = zip(runs[m.CLUSTERED, shape], runs[beside, shape], strict=True)
    return median(clustered / other for clustered, other in pairs)
