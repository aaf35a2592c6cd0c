"""How the costs of a change grow with the number of lanes, and which of them is too much first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

from tests.simulation import costs
from tests.simulation.machines import Row

FAR = 10_000
"""Lanes."""
COLUMNS = [
    "of a change",
    "grows with lanes to the",
    f"at {FAR:,} lanes",
    "too much",
    "from so many lanes on",
]


@dataclass(frozen=True)
class Cost:
    """What a change costs, and what would be too much of it."""

    name: str
    of: Callable[[Row], float]
    limit: float
    unit: str
    why: str
    row: str = "comes"
    """Of a machine that does this."""


@dataclass(frozen=True)
class Growth:
    cost: Cost
    power: float
    """Of the number of lanes."""
    far: float
    """At `FAR` lanes."""
    breaks_at: float
    """Lanes with which the limit is reached."""


def lanes_of(row: Row) -> int:
    return row.size.machines * row.size.lanes


COSTS = (
    Cost(
        "stall of every lane", lambda row: row.outcome.stall_s, 0.05, "s", "the longest pause of a key that is wanted"
    ),
    Cost(
        "stall of every lane", lambda row: row.outcome.stall_s, 5.0, "s", "`unresponsive_s`: each lane counts as dead"
    ),
    Cost("entry in etcd", lambda row: row.outcome.etcd_bytes / 1e6, 1.5, "MB", "what etcd takes in one request"),
    Cost(
        "time of each lane for calls without keys",
        lambda row: 2 * costs.CALL_S * row.outcome.calls / lanes_of(row),
        0.05,
        "s",
        "the longest pause of a key that is wanted",
        # Of which nothing is sent: the calls with keys do not grow, and would hide how the others do.
        row="fails",
    ),
)


def growths(rows: Sequence[Row]) -> list[Growth]:
    """Of each cost, what is too much first at the top; by the two largest sizes of these rows, whose costs are taken to
    grow with a power of the lanes."""
    largest = {
        what: sorted((row for row in rows if row.what == what), key=lanes_of)[-2:] for what in ("comes", "fails")
    }
    if any(len(two) < 2 for two in largest.values()):
        return []
    return sorted((_growth(cost, *largest[cost.row]) for cost in COSTS), key=lambda growth: growth.breaks_at)


def _growth(cost: Cost, smaller: Row, larger: Row) -> Growth:
    power = log(cost.of(larger) / cost.of(smaller)) / log(lanes_of(larger) / lanes_of(smaller))
    far = cost.of(larger) * (FAR / lanes_of(larger)) ** power
    return Growth(cost, power, far, lanes_of(larger) * (cost.limit / cost.of(larger)) ** (1 / power))


def as_text(growth: Growth) -> str:
    cost = growth.cost
    too_much = f"{cost.limit:g} {cost.unit}: {cost.why}"
    cells = [cost.name, f"{growth.power:.2f}", f"{growth.far:.2g} {cost.unit}", too_much, f"{growth.breaks_at:,.0f}"]
    return f"| {' | '.join(cells)} |"
