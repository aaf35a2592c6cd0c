"""The exporter process: one result for each batch, retryable or final as OTLP's specification says."""

import socket
import threading
from collections.abc import Iterator

import pytest
from onelane.telemetry.sinks.otlp.encode import Encoder
from onelane.telemetry.sinks.otlp.exporter import Sender, sender_for, serve
from onelane.telemetry.sinks.otlp.pipe import (
    FAILED,
    METRICS,
    RETRY,
    SENT,
    TRACES,
    ExportResult,
    pack_points,
    read_frame,
    write_frame,
)
from onelane.telemetry.sinks.otlp.target import target_of
from onelane.telemetry.spans import SpanRecord, pack_spans
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.otlp_receiver import GrpcReceiver, HttpReceiver, OtlpReceiver
from tests.telemetry.sinks.test_seam import POINTS, SPAN


def sender_to(receiver: OtlpReceiver) -> Sender:
    target = target_of(receiver.environment, TRACES)
    assert target is not None
    return sender_for(TRACES, target)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_http_status_of_a_busy_collector_is_retryable(status: int) -> None:
    with HttpReceiver() as collector:
        collector.answer = status
        assert sender_to(collector).send(b"") == ExportResult(RETRY, f"HTTP {status}")


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500])
def test_any_other_http_error_is_final(status: int) -> None:
    with HttpReceiver() as collector:
        collector.answer = status
        assert sender_to(collector).send(b"") == ExportResult(FAILED, f"HTTP {status}")


def test_a_redirect_is_final_and_its_location_is_the_reason() -> None:
    with HttpReceiver() as collector:
        collector.answer = 307
        assert sender_to(collector).send(b"") == ExportResult(FAILED, f"HTTP 307 to {collector.url}/elsewhere")


def test_a_refused_connection_is_retryable() -> None:
    # Bound and not listening, so that no other process can take the port.
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sock.getsockname()[1]}"}
        target = target_of(environment, TRACES)
        assert target is not None
        assert sender_for(TRACES, target).send(b"").status == RETRY


@pytest.mark.parametrize(
    ("recovers", "is_away", "status"),
    [(True, False, RETRY), (False, False, FAILED), (None, True, RETRY), (None, False, SENT)],
    ids=["exhausted with RetryInfo", "exhausted without", "unavailable", "ok"],
)
def test_a_grpc_status_is_retryable_or_final(recovers: bool | None, is_away: bool, status: str) -> None:
    with GrpcReceiver() as collector:
        collector.recovers, collector.is_away = recovers, is_away
        assert sender_to(collector).send(b"").status == status


@pytest.mark.parametrize("kind", [HttpReceiver, GrpcReceiver])
def test_items_that_a_collector_rejects_are_in_the_result(kind: type[HttpReceiver | GrpcReceiver]) -> None:
    with kind() as collector:
        collector.rejects = 2
        assert sender_to(collector).send(b"") == ExportResult(SENT, "", 2)


class RecordingSender:
    """Keeps the requests, and answers each with the next of `results`, or raises it."""

    def __init__(self, *results: ExportResult | Exception) -> None:
        self.requests: list[bytes] = []
        self._results: Iterator[ExportResult | Exception] = iter(results)

    def send(self, request: bytes) -> ExportResult:
        self.requests.append(request)
        result = next(self._results)
        if isinstance(result, Exception):
            raise result
        return result


def served(signal_name: str, sender: Sender, *batches: object) -> list[ExportResult]:
    """The results of these batches, from `serve` in a thread as in the process."""
    local, remote = socket.socketpair()
    thread = threading.Thread(target=serve, args=(remote, signal_name, Encoder("i", 0), sender))
    with local, remote:
        thread.start()
        results = []
        for batch in batches:
            write_frame(local, batch)
            answer = read_frame(local)
            assert answer is not None
            results.append(ExportResult(*answer))
        local.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        assert not thread.is_alive()
    return results


def spans_batch(*spans: SpanRecord) -> list[tuple[str, str, bytes]]:
    return [("lobby", "lobby-0", pack_spans(spans))]


def test_each_batch_has_a_result_and_an_error_in_one_ends_no_other() -> None:
    sender = RecordingSender(ExportResult(RETRY, "away"), RuntimeError("odd"), ExportResult(SENT))
    results = served(TRACES, sender, *[spans_batch(SPAN)] * 3)
    assert results == [ExportResult(RETRY, "away"), ExportResult(FAILED, "RuntimeError('odd')"), ExportResult(SENT)]
    assert len(ExportTraceServiceRequest.FromString(sender.requests[0]).resource_spans) == 1


def test_a_malformed_batch_fails_and_sends_nothing() -> None:
    sender = RecordingSender()
    (result,) = served(TRACES, sender, 7)
    assert result.status == FAILED
    assert sender.requests == []


def test_spans_that_cannot_be_encoded_count_as_rejected() -> None:
    odd = SpanRecord("no hex", "2" * 16, "", "odd", "SERVER", 1)
    results = served(TRACES, RecordingSender(ExportResult(SENT, "", 1)), spans_batch(odd, SPAN))
    assert results == [ExportResult(SENT, "1 items of a batch cannot be encoded as OTLP", 2)]


def test_metrics_are_encoded_from_packed_points() -> None:
    sender = RecordingSender(ExportResult(SENT))
    assert served(METRICS, sender, pack_points(POINTS)) == [ExportResult(SENT)]
    (resource,) = ExportMetricsServiceRequest.FromString(sender.requests[0]).resource_metrics
    names = {metric.name for metric in resource.scope_metrics[0].metrics}
    assert names == {point.instrument.name for point in POINTS}
