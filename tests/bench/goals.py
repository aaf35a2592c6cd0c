"""What is asked of the rows, as ratios within one run: this machine's microseconds are nobody else's.

A ratio is the median of the ratios of runs that followed each other, so what changes slowly falls out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench import records
from tests.bench import rows as r
from tests.bench.rows import Row

HOT_PATH_LIMIT = 4.5
"""A shard's call beside the probe's: the price of being a server. What makes it dearer must say why here."""

OVERLOAD_P99_MS = 700
"""Of what is answered: the half second that a burst may take, then rounds of `max_late_s`."""
OVERLOAD_KIB = 32 * 1024

_SHAPES = [f"{connections}x{streams}" for connections, streams in r.SHAPES]
FIRST = "4x16"
"""The shape of what is measured in one alone."""


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

    def has(self, name: str) -> bool:
        return (name, "") in self._rows

    def ratio(self, name: str, other: str, shape: str = "") -> float:
        """How many times dearer `name` is."""
        onelane_runs, other_runs = self._rows[name, shape].cpu_us_runs, self._rows[other, shape].cpu_us_runs
        return median(a / b for a, b in zip(onelane_runs, other_runs, strict=True))

    def faster(self, name: str, other: str, shape: str = "") -> float:
        """How many times as many per second."""
        return _known(self._rows[name, shape].calls_per_s) / _known(self._rows[other, shape].calls_per_s)

    def there_and_back_us(self, name: str, shape: str) -> float:
        """How long one takes, where they follow each other."""
        return 1e6 / _known(self._rows[name, shape].calls_per_s)

    def cost(self, name: str) -> float:
        return _known(self._rows[name, ""].cpu_us_per_call)

    def p99(self, name: str) -> float:
        return _known(self._rows[name, ""].p99_ms)

    def kib(self, name: str) -> float:
        return _known(self._rows[name, ""].kib)

    def count(self, name: str) -> float:
        return _known(self._rows[name, ""].count)

    def growth(self, name: str) -> list[float]:
        """The cost over each number of shards beside that over one."""
        first, *more = (f"{name}, {count} of {r.MANY[-1]}" for count in r.MANY)
        return [self.ratio(other, first) for other in more]


def _known(figure: float | None) -> float:
    assert figure is not None
    return figure


def goals(measured: Sequence[Row]) -> list[Goal]:
    """All of them."""
    rows = _Rows(measured)
    return [
        *_native(rows),
        *_others(rows),
        *_interpreted(rows),
        *_telemetry(rows),
        *_shards(rows),
        *_grpcio(rows),
        *_offload(rows),
        *_lane(rows),
        *_starting(rows),
    ]


def _native(rows: _Rows) -> list[Goal]:
    shapes = _SHAPES
    stream, raw_stream = r.NATIVE + r.STREAM, r.RAW + r.STREAM
    return [
        *(
            Goal(f"{peer} / native, {shape}", rows.ratio(peer, r.NATIVE, shape), limit, at_least=True)
            for peer, limits in ((r.RAW, (15, 10, 7)), (r.PYGRPC, (1.2, 1, 1.8)))
            for shape, limit in zip(shapes, limits, strict=True)
        ),
        Goal("native / probe (guard)", rows.ratio(r.NATIVE, r.PROBE, shapes[0]), HOT_PATH_LIMIT, guard=True),
        *(Goal(f"plain def / async, {shape}", rows.ratio(r.PLAIN, r.NATIVE, shape), 0.85) for shape in shapes),
        Goal("streamed messages: raw / native, CPU", rows.ratio(raw_stream, stream), 12, at_least=True),
        Goal("streamed messages: native / raw, per s", rows.faster(stream, raw_stream), 8, at_least=True),
        Goal("1 MiB: raw / native", rows.ratio(r.RAW + r.BIG, r.NATIVE + r.BIG), 2, at_least=True),
        Goal("TLS: raw / native", rows.ratio(r.RAW + r.SECURE, r.NATIVE + r.SECURE), 6, at_least=True),
        Goal("client: grpc.aio / dial", rows.ratio(r.CLIENTS["grpc.aio"], r.CLIENTS["dial"]), 8, at_least=True),
        Goal("KiB of an idle connection", rows.kib(r.IDLE), 12),
    ]


def _others(rows: _Rows) -> list[Goal]:
    """Beside servers that are no Python, where they could be built."""
    limits = {r.GO: (0.55, 0.65, 0.45), r.GO_ONE: (0.8, 0.9, 0.75), r.TONIC: (1.7, 1.6, 1.3)}
    return [
        Goal(f"native / {peer}, {shape}", rows.ratio(r.NATIVE, peer, shape), limit)
        for peer in limits
        if rows.has(peer)
        for shape, limit in zip(_SHAPES, limits[peer], strict=True)
    ]


def _interpreted(rows: _Rows) -> list[Goal]:
    """What is compiled now may cost those nothing who run the same source without a compiler."""
    if not rows.has(r.EARLIER):
        return []
    return [
        Goal(f"not compiled: native / commit 4135c3d, {shape}", rows.ratio(r.PURE, r.EARLIER, shape), 1.0)
        for shape in _SHAPES
    ]


def _telemetry(rows: _Rows) -> list[Goal]:
    off, some, everything = (f"{r.NATIVE}, {name}" for name in r.TRACED)

    def beside_sdk(peer: str, onelane_row: str, limit: float) -> Goal:
        return Goal(f"{peer} / {onelane_row}", rows.cost(peer) / rows.cost(onelane_row), limit, at_least=True)

    return [
        Goal("1 % traced / off", rows.ratio(some, off), 1.05),
        Goal("all traced / off", rows.ratio(everything, off), 1.5),
        Goal("a sampled span, µs", rows.cost(records.SPAN), 3),
        Goal("an unsampled call, µs", rows.cost(records.UNSAMPLED), 0.3),
        Goal("a count, µs", rows.cost(records.COUNT), 0.15),
        Goal("a histogram's point, µs", rows.cost(records.POINT), 0.3),
        # Of the SDK's usual 15, 5 and 5 µs.
        beside_sdk(records.SDK_SPAN, records.SPAN, 5),
        beside_sdk(records.SDK_UNSAMPLED, records.UNSAMPLED, 16),
        beside_sdk(records.SDK_POINT, records.POINT, 16),
    ]


def _shards(rows: _Rows) -> list[Goal]:
    growth = rows.growth(r.NATIVE)
    beside = [onelane / probe for onelane, probe in zip(growth, rows.growth(r.PROBE), strict=True)]
    return [
        *(
            Goal(f"native, forwarded / at home, {shape}", rows.ratio(r.NATIVE + r.AWAY, r.NATIVE, shape), limit)
            for shape, limit in zip(_SHAPES, (1.9, 1.6, 2.8), strict=True)
        ),
        Goal("native, 2 to 8 shards / 1, dearest", max(growth), 1.1),
        Goal("native, 2 to 8 shards / 1, cheapest", min(growth), 0.9, at_least=True),
        Goal("the same beside as many probes, dearest", max(beside), 1.1),
    ]


def _starting(rows: _Rows) -> list[Goal]:
    limits_s = {2: 0.6, 32: 3.5}
    return [
        *(Goal(f"{name}, s", rows.count(name), limits_s[shards]) for shards, name in r.STARTS.items()),
        Goal("KiB of an idle shard", rows.kib(r.RESIDENT), 38 * 1024),
    ]


def _lane(rows: _Rows) -> list[Goal]:
    return [
        Goal("reading a key, µs", rows.cost(r.KEY), 1),
        Goal("a turn that nobody contends, µs", rows.cost(r.TURN), 0.7),
        Goal("overload: goodput / what it can do", rows.faster(r.FLOODED, r.PEAK), 0.9, at_least=True),
        Goal("overload: p99 of the answered, ms", rows.p99(r.FLOODED), OVERLOAD_P99_MS),
        Goal("overload: KiB that memory grows by", rows.kib(r.FLOODED), OVERLOAD_KIB),
    ]


def _grpcio(rows: _Rows) -> list[Goal]:
    return [
        Goal("grpcio, at home / raw", rows.ratio(r.GRPCIO, r.RAW, FIRST), 1.15),
        Goal("grpcio, forwarded / raw", rows.ratio(r.GRPCIO + r.AWAY, r.RAW, FIRST), 3.5),
        Goal("grpcio, 2 shards / 1 shard", rows.ratio(r.GRPCIO + r.TWO, r.GRPCIO, FIRST), 1.1),
    ]


def _offload(rows: _Rows) -> list[Goal]:
    return [
        Goal("offload, there and back, µs", rows.there_and_back_us(r.OFFLOAD, r.ONE), 25),
        Goal("offload, there and back on one core, µs", rows.there_and_back_us(r.OFFLOAD, r.ONE_CORE), 25),
        Goal("offload / run_in_executor, per s", rows.faster(r.OFFLOAD, r.EXECUTOR, r.THOUSAND), 3, at_least=True),
    ]
