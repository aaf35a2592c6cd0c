"""What is asked of the rows, always as a ratio within one run: this machine's microseconds are nobody else's."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench import rows as r
from tests.bench.rows import Row

HOT_PATH_LIMIT = 4.5
"""A shard's call beside the probe's: the price of being a server. What makes it dearer must say why here."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One thing asked. guard: to miss it fails the run, since it was reached before."""

    name: str
    measured: float
    limit: float
    at_least: bool = False
    guard: bool = False

    @property
    def asked(self) -> str:
        return f"at {'least' if self.at_least else 'most'} {self.limit:g}"

    @property
    def reached(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


class _Rows:
    """The rows, by name and shape."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {(row.name, row.shape): row for row in rows} | {(row.name, ""): row for row in rows}

    def ratio(self, name: str, other: str, shape: str = "") -> float:
        """How many times dearer `name` is."""
        return self.cost(name, shape) / self.cost(other, shape)

    def cost(self, name: str, shape: str = "") -> float:
        cost = self._rows[name, shape].cpu_us_per_call
        assert cost is not None
        return cost

    def faster(self, name: str, other: str) -> float:
        """How many times as many per second."""
        ours, theirs = self._rows[name, ""].calls_per_s, self._rows[other, ""].calls_per_s
        assert ours is not None
        assert theirs is not None
        return ours / theirs

    def kib(self, name: str) -> float:
        kib = self._rows[name, ""].kib
        assert kib is not None
        return kib


def goals(measured: Sequence[Row]) -> list[Goal]:
    """All of them."""
    rows = _Rows(measured)
    first, *_ = shapes = [f"{connections}x{streams}" for connections, streams in r.SHAPES]
    found = [
        Goal(f"{theirs} / native, {shape}", rows.ratio(theirs, r.NATIVE, shape), limit, at_least=True)
        for theirs, limits in ((r.RAW, (10, 8, 4)), (r.PYGRPC, (1.2, 1, 1.8)))
        for shape, limit in zip(shapes, limits, strict=True)
    ]
    costs = [rows.cost(f"{r.NATIVE}, {count} of {r.MANY[-1]} shards") for count in r.MANY]
    return [
        *found,
        Goal("native / probe (guard)", rows.ratio(r.NATIVE, r.PROBE, first), HOT_PATH_LIMIT, guard=True),
        Goal("native, forwarded / at home", rows.cost(r.NATIVE + r.AWAY, first) / rows.cost(r.NATIVE, first), 2.8),
        Goal("native, dearest of 1 to 8 shards / 1", max(costs) / costs[0], 1.1),
        Goal("native, cheapest of 1 to 8 shards / 1", min(costs) / costs[0], 0.9, at_least=True),
        Goal(
            "streamed messages: raw / native, CPU", rows.ratio(r.RAW + r.STREAM, r.NATIVE + r.STREAM), 8, at_least=True
        ),
        Goal(
            "streamed messages: native / raw, per s",
            rows.faster(r.NATIVE + r.STREAM, r.RAW + r.STREAM),
            8,
            at_least=True,
        ),
        Goal("1 MiB: raw / native", rows.ratio(r.RAW + r.BIG, r.NATIVE + r.BIG), 1.3, at_least=True),
        Goal("client: grpc.aio / dial", rows.ratio(r.CLIENTS["grpc.aio"], r.CLIENTS["dial"]), 4, at_least=True),
        Goal("KiB of an idle connection", rows.kib(r.IDLE), 16),
        Goal("grpcio, at home / raw", rows.ratio(r.GRPCIO, r.RAW, first), 1.15),
        Goal("grpcio, forwarded / raw", rows.cost(r.GRPCIO + r.AWAY, first) / rows.cost(r.RAW, first), 3.5),
        Goal("grpcio, 2 shards / 1 shard", rows.cost(r.GRPCIO + r.TWO, first) / rows.cost(r.GRPCIO, first), 1.1),
        Goal("reading a key, µs", rows.cost(r.KEY), 1),
    ]
