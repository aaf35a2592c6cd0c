"""What is asked of the rows of state."""

from collections.abc import Sequence
from statistics import median

from tests.bench import http_peers, once
from tests.bench import state as s
from tests.bench.goals import Goal
from tests.bench.rows import Row

SHAPES = {name: f"{connections}x{streams}" for name, (connections, streams) in s.AT_ONCE.items()}


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Those whose rows were measured."""
    by_name = {(row.name, row.shape): row for row in rows}
    return [*_moved(by_name), *_durable(by_name)]


Rows = dict[tuple[str, str], Row]


def _moved(rows: Rows) -> list[Goal]:
    bare, moving = rows[s.BARE, "4x16"], rows[s.MOVING, "4x16"]
    dearer = median(b - a for a, b in zip(bare.cpu_us_runs, moving.cpu_us_runs, strict=True))
    return [
        Goal("keyed that moves - a bare dict, µs", dearer, 0.2),
        Goal(s.FAILED, _figure(rows[s.FAILED, s.CLIENTS].count), 0),
        Goal(s.WRONG, _figure(rows[s.WRONG, s.CLIENTS].count), 0),
        Goal(f"{s.PAUSE}, p99 ms", _figure(rows[s.PAUSE, s.CLIENTS].p99_ms), 50),
        *_filled(rows, s.CLIENTS),
        *_filled(rows, s.MODERATE),
    ]


def _filled(rows: Rows, shape: str) -> list[Goal]:
    before, beside = (_figure(rows[name, shape].calls_per_s) for name in (s.BEFORE, s.BESIDE))
    return [
        Goal(f"{s.SECONDS}, {shape}", _figure(rows[s.SECONDS, shape].count), 5),
        Goal(f"{s.BESIDE} / before, {shape}", beside / before, 0.8, at_least=True),
    ]


def _durable(rows: Rows) -> list[Goal]:
    few, many = SHAPES["64 in flight"], SHAPES["256 in flight"]
    asked = [
        Goal(f"durable / in memory, {name}, per s", _faster(rows, s.SQLITE, s.MEMORY, shape), 0.6, at_least=True)
        for name, shape in SHAPES.items()
    ]
    asked.append(Goal("durable, 256 in flight, p99 ms", _figure(rows[s.SQLITE, many].p99_ms), 10))
    asked.append(Goal("a repeat / the first call, CPU", _cheaper(rows, s.ONCE, s.REPEATED, once.SHAPE), 0.7))
    if (s.FLUSHES, few) in rows:
        asked.append(Goal("flushes per durable call, 64 in flight", _figure(rows[s.FLUSHES, few].count), 0.05))
    for peer in (s.AIOSQLITE, s.ASYNCPG, http_peers.RESTATE, http_peers.WORKERD):
        if (peer, few) in rows:
            asked.append(Goal(f"durable / {peer}, per s", _faster(rows, s.SQLITE, peer, few), 8, at_least=True))
            asked.append(Goal(f"{peer} / durable, CPU", _cheaper(rows, s.SQLITE, peer, few), 5, at_least=True))
    return asked


def _faster(rows: Rows, name: str, other: str, shape: str) -> float:
    """How many times as many per second."""
    return _figure(rows[name, shape].calls_per_s) / _figure(rows[other, shape].calls_per_s)


def _cheaper(rows: Rows, name: str, other: str, shape: str) -> float:
    """How many times the CPU of `name` the other uses."""
    runs = zip(rows[name, shape].cpu_us_runs, rows[other, shape].cpu_us_runs, strict=True)
    return median(other_us / us for us, other_us in runs)


def _figure(figure: float | None) -> float:
    assert figure is not None
    return figure
