"""OpenTelemetry's metrics and trace APIs, in processes of one lane and of several."""

import asyncio
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import onelane
import pytest
from onelane.telemetry.collector.totals import Totals
from onelane.telemetry.otel.metrics import MAX_QUEUED_COUNTS, Bridge
from onelane.telemetry.stats import MAX_SERIES, Stats
from onelane.testing.clock import ManualClock
from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation

from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.running_app import ROOT, RunningApp, Scrape, eventually, running

meter = metrics.get_meter("tests")
# Created at the import of the module, as libraries do, before any lane exists.
early = meter.create_counter("tests.early", unit="{call}")


class Metered(echo_pb2_grpc.EchoServicer):
    """A service that uses OpenTelemetry's metrics API, on its lane and on a worker thread."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.there = meter.create_up_down_counter("tests.there")
        self.took = meter.create_histogram("tests.took", unit="s")
        self.size = meter.create_gauge("tests.size")
        self.seen = 0
        meter.create_observable_counter("tests.seen", callbacks=[self.observe])
        self.helper = shard.offload(object, name="helper")

    def observe(self, options: CallbackOptions) -> Iterable[Observation]:
        yield Observation(self.seen, {"kind": "call"})

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        self.seen += 1
        early.add(1, {"open": True, "room": 3})
        self.there.add(3)
        self.there.add(-1)
        self.took.record(0.25)
        self.size.set(self.shard.index + 1)
        await self.helper.run(lambda _: early.add(1, {"thread": "helper"}))
        with trace.get_tracer("tests").start_as_current_span("inner") as span:
            span.set_attribute("by", self.shard.name)
        return EchoReply(shard=self.shard.name)


TOML = """
[apps.metered]
services = ["tests.telemetry.otel.test_metrics:Metered"]
listen = "127.0.0.1:0"
shards = 2
"""


@pytest.fixture(scope="module", params=["processes", "inline"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    inline = ["--inline"] if request.param == "inline" else []
    with running(tmp_path_factory.mktemp("metered"), TOML, "--app-dir", str(ROOT), *inline) as cluster:
        yield cluster


@pytest.mark.slow
async def test_measurements_of_a_library_belong_to_the_shard_whose_code_recorded_them(cluster: RunningApp) -> None:
    where = Where(cluster, "metered")
    served = {"metered-0": 7, "metered-1": 13}
    # What other tests have called counts as well.
    before = cluster.scrape()
    for shard, calls in served.items():
        for key in islice(where.keys_of(shard), calls):
            assert (await where.shared.Unary(EchoRequest(key=key), timeout=BOUND_S)).shard == shard
    await where.close()
    for index, (shard, calls) in enumerate(served.items()):
        now = cluster.scrape()

        def more(name: str, now: Scrape = now, shard: str = shard, **labels: str) -> float:
            return now.metric(name, onelane_shard=shard, **labels) - before.metric(name, onelane_shard=shard, **labels)

        assert more("tests_early_total", open="true", room="3") == calls
        assert more("tests_early_total", thread="helper") == calls
        assert more("tests_there") == 2 * calls
        assert more("tests_took_seconds_count") == calls
        assert now.metric("tests_size", onelane_shard=shard) == index + 1
    # Callbacks are called at most once a second: what they tell of all calls is of later.
    in_all = cluster.metric("tests_early_total", thread="helper")
    await eventually(lambda: cluster.metric("tests_seen_total", kind="call") == in_all)


@pytest.mark.slow
async def test_a_span_of_the_api_belongs_to_the_shard_whose_code_started_it(cluster: RunningApp) -> None:
    trace_id = "6af7651916cd43dd8448eb211c80319c"
    metadata = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),)
    where = Where(cluster, "metered")
    for shard in ("metered-0", "metered-1"):
        for key in islice(where.keys_of(shard), 5):
            await where.shared.Unary(EchoRequest(key=key), metadata=metadata, timeout=BOUND_S)
    await where.close()
    await eventually(lambda: trace_id in cluster.get("/traces"))

    def inner() -> list[tuple[str, str]]:
        spans = json.loads(cluster.get(f"/traces/{trace_id}"))["spans"]
        return [(span["shard"], span["attributes"]["by"]) for span in spans if span["name"] == "inner"]

    await eventually(lambda: len(inner()) == 10)
    assert sorted(inner()) == [("metered-0", "metered-0")] * 5 + [("metered-1", "metered-1")] * 5


def counted(stats: Stats, name: str) -> float:
    totals = Totals()
    totals.add(stats.take())
    return totals.sum_of(name)


async def test_counts_of_another_thread_wait_for_the_tick_and_are_bounded() -> None:
    stats = Stats()
    bridge = Bridge(stats, ManualClock().now)
    key = ("counter", "calls", "", "")

    def count_much() -> None:
        for _ in range(MAX_QUEUED_COUNTS + 5):
            bridge.count(key, 1, None)

    await asyncio.to_thread(count_much)
    assert counted(stats, "calls") == MAX_QUEUED_COUNTS


def test_an_observed_counter_records_increases_and_a_fall_is_a_reset() -> None:
    stats, clock = Stats(), ManualClock()
    bridge = Bridge(stats, clock.now)
    values = iter([5, 8, 2])
    bridge.observe(("counter", "seen", "", ""), [lambda _: [Observation(next(values))]])
    for added in (5, 3, 2):
        assert counted(stats, "seen") == added
        assert counted(stats, "seen") == 0
        clock.advance(1.0)


def test_a_failing_callback_is_logged_once_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    stats, clock = Stats(), ManualClock()
    bridge, values = Bridge(stats, clock.now), iter([7, 8, 9])
    bridge.observe(("counter", "bad", "", ""), [lambda _: 1 / 0])
    bridge.observe(("gauge", "good", "", ""), [lambda _: [Observation(next(values))]])
    for value in (7, 8, 9):
        assert counted(stats, "good") == value
        clock.advance(1.0)
    (record,) = caplog.records
    assert "instrument=bad" in record.getMessage()


def test_a_name_of_another_kind_is_logged_and_records_nothing(caplog: pytest.LogCaptureFixture) -> None:
    stats = Stats()
    stats.gauge("depth").set(1)
    bridge = Bridge(stats, ManualClock().now)
    bridge.count(("counter", "depth", "", ""), 5, None)
    assert counted(stats, "depth") == 1
    assert "depth is a gauge already" in caplog.text


def test_values_that_are_not_numbers_are_logged_once_and_spoil_no_other(caplog: pytest.LogCaptureFixture) -> None:
    stats, clock = Stats(), ManualClock()
    bridge = Bridge(stats, clock.now)
    took = ("histogram", "took", "s", "")
    bridge.observe(("gauge", "odd", "", ""), [lambda _: [Observation(None), Observation(3, {"good": 1})]])  # type: ignore[arg-type]
    for value in (None, "x", float("nan"), float("inf"), object(), 0.5):
        bridge.count(took, value, {1: "mixed", "names": 2})  # type: ignore[arg-type, dict-item]
    clock.advance(1.0)
    totals = Totals()
    totals.add(stats.take())
    totals.add(stats.take())
    assert totals.buckets_of("took", (("1", "mixed"), ("names", 2))).count == 1
    assert totals.sum_of("odd", (("good", 1),)) == 3
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "took cannot count None, expected a finite number" in messages[0]
    assert "odd cannot count None, expected a finite number" in messages[1]


def test_two_callbacks_of_one_name_are_added_up_each_from_its_own_start() -> None:
    stats, clock = Stats(), ManualClock()
    bridge = Bridge(stats, clock.now)
    first, second = iter([5, 7]), iter([100, 101])
    bridge.observe(("counter", "seen", "", ""), [lambda _: [Observation(next(first))]])
    bridge.observe(("counter", "seen", "", ""), [lambda _: [Observation(next(second))]])
    assert counted(stats, "seen") == 105
    clock.advance(1.0)
    assert counted(stats, "seen") == 3


@pytest.mark.parametrize("kind", ["gauge", "up_down_counter"])
def test_a_series_ends_when_its_callback_reports_it_no_longer(kind: str) -> None:
    stats, clock, totals = Stats(), ManualClock(), Totals()
    bridge = Bridge(stats, clock.now)
    rounds = iter([["a", "b"], ["b"], ["a", "b"]])
    bridge.observe((kind, "open", "", ""), [lambda _: [Observation(4, {"pool": name}) for name in next(rounds)]])
    for open_connections in (8, 4, 8):
        totals.add(stats.take())
        assert totals.sum_of("open") == open_connections
        clock.advance(1.0)


def test_series_of_callbacks_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    stats, clock = Stats(), ManualClock()
    bridge = Bridge(stats, clock.now)
    bridge.observe(("counter", "seen", "", ""), [lambda _: [Observation(1, {"n": n}) for n in range(MAX_SERIES + 9)]])
    assert counted(stats, "seen") == MAX_SERIES
    assert f"seen cannot count more than {MAX_SERIES} series" in caplog.text
