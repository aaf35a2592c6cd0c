"""OTLP over HTTP and gRPC, to a real receiver: every item arrives whole, or is counted as dropped."""

import asyncio
import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from onelane.telemetry.sinks.otlp.queue import (
    CLOSED,
    REFUSED,
)
from onelane.telemetry.sinks.otlp.sink import OtlpSink, interval_s
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Instrument, Point

from tests.bounds import BOUND_S
from tests.otlp_receiver import GrpcReceiver, HttpReceiver, OtlpReceiver
from tests.running_app import eventually
from tests.telemetry.sinks.test_seam import POINTS, RECORD, SOURCE, SPAN, SPAN_ID, TRACE_ID


@pytest.fixture(params=["http/protobuf", "grpc"])
def collector(request: pytest.FixtureRequest) -> Iterator[OtlpReceiver]:
    with GrpcReceiver() if request.param == "grpc" else HttpReceiver() as receiver:
        yield receiver


@pytest.fixture
def http_collector() -> Iterator[HttpReceiver]:
    """Of one protocol: what is sent is encoded alike for both."""
    with HttpReceiver() as receiver:
        yield receiver


_open: list[OtlpSink] = []


@pytest.fixture(autouse=True)
def all_closed() -> Iterator[None]:
    """Close all sinks, so that no exporter process outlives a failed test."""
    yield
    while _open:
        _open.pop().close(1.0)


def otlp(collector: OtlpReceiver, **more: str) -> OtlpSink:
    _open.append(OtlpSink(collector.environment | more))
    return _open[-1]


@pytest.mark.slow
def test_otlp_carries_points_with_their_shard_as_the_resource(http_collector: HttpReceiver) -> None:
    sink = otlp(http_collector, OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test")
    sink.points(POINTS)
    sink.close(20.0)
    (resource,) = http_collector.metrics[-1].resource_metrics
    identity = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert (identity["service.name"], identity["onelane.shard"]) == ("lobby", "lobby-0")
    assert identity["service.instance.id"].endswith("/lobby-0")
    assert identity["deployment.environment.name"] == "test"
    assert http_collector.sum("onelane.calls", **{"rpc.method": "a/B"}) == 7
    by_name = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
    assert by_name["onelane.calls"].sum.is_monotonic
    assert not by_name["there"].sum.is_monotonic
    took = by_name["took"].exponential_histogram.data_points[0]
    assert (took.scale, took.count, took.sum, took.zero_count) == (5, 4, 12, 0)
    assert sum(took.positive.bucket_counts) == 4
    # 0.5 is the upper bound of its bucket: (2^((i)/32), 2^((i+1)/32)].
    assert 2 ** ((took.positive.offset + 1) / 32) == 0.5
    assert took.exemplars[0].trace_id.hex() == TRACE_ID


@pytest.mark.slow
def test_otlp_carries_spans_whole(http_collector: HttpReceiver) -> None:
    sink = otlp(http_collector)
    sink.spans("lobby", "lobby-0", [SPAN])
    sink.close(20.0)
    (span,) = http_collector.spans()
    assert (span.trace_id.hex(), span.span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert (span.parent_span_id.hex(), span.trace_state) == (SPAN.parent_id, "vendor=1")
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1_000, 2_000)
    assert (span.status.code, span.status.message) == (2, "INTERNAL")
    assert span.flags == 0x301


@pytest.mark.slow
def test_a_text_that_utf8_cannot_encode_spoils_no_other_span(http_collector: HttpReceiver) -> None:
    odd = SpanRecord("1" * 32, "2" * 16, "", "a/B\ud800", "SERVER", 1_000)
    odd.set_attribute("who", ["\udfff", 1])
    odd.add_event("\ud801", {"x": "\ud802"}, 5)
    sink = otlp(http_collector)
    sink.spans("lobby", "lobby-0", [odd, SPAN])
    sink.logs("lobby", "lobby-0", [RECORD._replace(text="\ud800 left")])
    sink.close(20.0)
    assert [span.name for span in http_collector.spans()] == ["a/B?", "a/B"]
    assert http_collector.logs[0].resource_logs[0].scope_logs[0].log_records[0].body.string_value == "? left"


@pytest.mark.slow
async def test_a_span_that_cannot_be_encoded_counts_as_refused(http_collector: HttpReceiver) -> None:
    sink = otlp(http_collector, OTEL_BSP_SCHEDULE_DELAY="20")
    sink.spans("lobby", "lobby-0", [SpanRecord("1" * 32, "2" * 16, "", "odd", "SERVER", -1), SPAN])
    await eventually(lambda: sink.losses() == {("spans", REFUSED): 1})
    # It is counted as it is packed, before those beside it have come.
    await eventually(lambda: [span.name for span in http_collector.spans()] == ["a/B"])


@pytest.mark.slow
async def test_items_that_a_collector_rejects_are_counted(collector: OtlpReceiver) -> None:
    collector.rejects = 2
    sink = otlp(collector, OTEL_BSP_SCHEDULE_DELAY="20", OTEL_BLRP_SCHEDULE_DELAY="20")
    sink.spans("lobby", "lobby-0", [SPAN] * 3)
    sink.logs("lobby", "lobby-0", [RECORD] * 3)
    await eventually(lambda: sink.losses() == {("spans", REFUSED): 2, ("logs", REFUSED): 2})
    assert len(collector.spans()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("recovers", [True, False])
async def test_resource_exhausted_is_retried_only_with_retry_info(recovers: bool) -> None:
    with GrpcReceiver() as collector:
        collector.recovers = recovers
        sink = otlp(collector, OTEL_BSP_SCHEDULE_DELAY="20")
        sink.spans("lobby", "lobby-0", [SPAN] * 3)
        await eventually(lambda: collector.refusals)
        if recovers:
            collector.recovers = None
            await eventually(lambda: len(collector.spans()) == 3)
        else:
            await eventually(lambda: sink.losses() == {("spans", REFUSED): 3})


@pytest.mark.slow
async def test_a_redirect_is_not_followed_and_nothing_counts_as_sent() -> None:
    with HttpReceiver() as collector:
        collector.answer = 302
        sink = otlp(collector, OTEL_BSP_SCHEDULE_DELAY="20")
        sink.spans("lobby", "lobby-0", [SPAN] * 3)
        await eventually(lambda: sink.losses() == {("spans", REFUSED): 3})
        assert collector.refusals == 1


@pytest.mark.slow
def test_points_that_arrive_during_an_export_are_sent_at_the_end(collector: OtlpReceiver) -> None:
    sink = otlp(collector, OTEL_METRIC_EXPORT_INTERVAL="1")
    sink.points(POINTS)
    while not collector.metrics:
        threading.Event().wait(0.001)
    last = Point(Instrument("last"), "counter", SOURCE, 1)
    sink.points([*POINTS, last])
    sink.close(20.0)
    assert collector.sum("last") == 1


@pytest.mark.parametrize("interval", ["", "soon", "0", "-5", "nan"])
def test_an_invalid_interval_falls_back_to_the_default(interval: str) -> None:
    assert interval_s({"OTEL_METRIC_EXPORT_INTERVAL": interval}) == interval_s({}) == 60.0


@pytest.mark.slow
def test_otlp_carries_log_records_with_their_trace(http_collector: HttpReceiver) -> None:
    sink = otlp(http_collector)
    sink.logs("lobby", "lobby-0", [RECORD])
    sink.close(20.0)
    (record,) = [
        record
        for request in http_collector.logs
        for resource in request.resource_logs
        for record in resource.scope_logs[0].log_records
    ]
    assert (record.body.string_value, record.severity_text, record.severity_number) == ("full", "WARNING", 13)
    assert (record.trace_id.hex(), record.span_id.hex(), record.time_unix_nano) == (TRACE_ID, SPAN_ID, 5_000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [HttpReceiver, GrpcReceiver])
async def test_otlp_goes_over_tls_with_headers_and_gzip(
    kind: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with kind(cert=ca.issue_cert("127.0.0.1")) as collector:
        more = {
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "ca.pem"),
            "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=secret",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }
        sink = otlp(collector, **more)
        sink.spans("lobby", "lobby-0", [SPAN])
        sink.close(20.0)
        assert [span.name for span in collector.spans()] == ["a/B"]
        assert collector.headers["x-api-key"] == "secret"
        # A certificate of another CA is refused.
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        distrusting = otlp(collector, **more, OTEL_BSP_SCHEDULE_DELAY="20", OTEL_EXPORTER_OTLP_TIMEOUT="1")
        distrusting.spans("lobby", "lobby-0", [SPAN])
        await eventually(lambda: "otlp.failing signal=spans" in caplog.text)
        distrusting.close(0.1)
        assert distrusting.losses() == {("spans", CLOSED): 1}
        assert len(collector.spans()) == 1


@pytest.mark.slow
async def test_spans_queued_for_an_unreachable_collector_are_sent_when_it_is_back(collector: OtlpReceiver) -> None:
    collector.is_away = True
    sink = otlp(collector, OTEL_BSP_SCHEDULE_DELAY="20")
    sink.spans("lobby", "lobby-0", [SPAN] * 3)
    await eventually(lambda: collector.refusals)
    sink.spans("lobby", "lobby-0", [SPAN] * 4)
    collector.is_away = False
    await eventually(lambda: len(collector.spans()) == 7)
    assert not any(sink.losses().values())
    sink.close(20.0)


@pytest.mark.slow
async def test_a_batch_that_a_collector_refuses_for_good_is_dropped_and_counted() -> None:
    with HttpReceiver() as collector:
        collector.answer = 400
        sink = otlp(collector, OTEL_BSP_SCHEDULE_DELAY="20")
        sink.spans("lobby", "lobby-0", [SPAN] * 3)
        await eventually(lambda: sink.losses().get(("spans", REFUSED)) == 3)
        sink.close(20.0)


@pytest.mark.slow
async def test_an_exporter_process_that_dies_is_restarted_and_no_span_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def keep(*arguments: Any, **named: Any) -> Any:
        started.append(popen(*arguments, **named))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", keep)
    with HttpReceiver() as collector:
        collector.is_away = True
        sink = otlp(collector, OTEL_BSP_SCHEDULE_DELAY="20")
        sink.spans("lobby", "lobby-0", [SPAN] * 3)
        await eventually(lambda: collector.refusals)
        started[0].kill()
        # Until it has ended it may send what it has once more.
        await asyncio.to_thread(started[0].wait, BOUND_S)
        collector.is_away = False
        await eventually(lambda: len(collector.spans()) >= 3)
        sink.close(20.0)
    assert len(started) == 2
    assert not any(sink.losses().values())


@pytest.mark.slow
async def test_an_exporter_process_that_cannot_be_started_is_tried_again_and_no_span_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither at first nor after its end; as where descriptors, processes or memory are used up for a while."""
    refusals: list[int] = []
    popen = subprocess.Popen

    def refuse(*_: Any, **__: Any) -> Any:
        refusals.append(len(os.listdir("/proc/self/fd")))
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with HttpReceiver() as collector:
        sink = otlp(collector, OTEL_BSP_SCHEDULE_DELAY="20")
        sink.spans("lobby", "lobby-0", [SPAN] * 3)
        await eventually(lambda: "cannot be started: [Errno 11] Resource temporarily unavailable" in caplog.text)
        monkeypatch.setattr(subprocess, "Popen", popen)
        await eventually(lambda: len(collector.spans()) >= 3)
        sink.close(20.0)
    assert not any(sink.losses().values())
    # Nothing of a failed start stays open.
    assert len(set(refusals)) == 1
