"""Every sink takes the same points, spans and log records."""

import pytest
from onelane.plugins import load_plugin
from onelane.telemetry.histogram import Buckets, Exemplar
from onelane.telemetry.logs import LogRecord
from onelane.telemetry.sinks import Sink
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Instrument, Point

from tests.otlp_receiver import HttpReceiver

SOURCE = (("onelane.app", "lobby"), ("onelane.shard", "lobby-0"))
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
EXAMPLE = Exemplar(1.5, TRACE_ID, SPAN_ID, 1_700_000_000_000_000_000)
POINTS = [
    Point(Instrument("onelane.calls", "{call}"), "counter", (*SOURCE, ("rpc.method", "a/B")), 7),
    Point(Instrument("onelane.queue.depth", "{job}"), "gauge", SOURCE, 3.0),
    Point(Instrument("there", "{client}"), "up_down_counter", SOURCE, 2.0),
    Point(Instrument("took", "s"), "histogram", SOURCE, Buckets.of([0.5, 1.0, 1.5, 9.0], (EXAMPLE,))),
]
SPAN = SpanRecord(TRACE_ID, SPAN_ID, "00f067aa0ba902b7", "a/B", "SERVER", 1_000, True, True)
SPAN.end_ns, SPAN.tracestate, SPAN.status, SPAN.error = 2_000, "vendor=1", "INTERNAL", "INTERNAL"
RECORD = LogRecord(5_000, 13, "WARNING", "services.lobby", "full", TRACE_ID, SPAN_ID, {"code.line.number": "3"})


@pytest.mark.parametrize("name", ["prometheus", "otlp"])
def test_every_sink_takes_all_signals_and_closes(name: str) -> None:
    with HttpReceiver() as collector:
        sink: Sink = load_plugin("onelane.sinks", name)(collector.environment)
        sink.points(POINTS)
        sink.spans("lobby", "lobby-0", [SPAN])
        sink.logs("lobby", "lobby-0", [RECORD])
        assert not any(sink.losses().values())
        sink.close(10.0)
