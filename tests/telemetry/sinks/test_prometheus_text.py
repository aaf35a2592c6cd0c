"""The text formats of Prometheus, read again by Prometheus's own parsers."""

from typing import Any

import pytest
from onelane.telemetry.histogram import Buckets
from onelane.telemetry.sinks.prometheus import PrometheusSink
from onelane.telemetry.stats import Instrument, Point
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.telemetry.sinks.test_seam import POINTS, SPAN_ID, TRACE_ID


def test_prometheus_reads_what_prometheus_writes() -> None:
    sink = PrometheusSink({})
    sink.points(POINTS)
    text, content_type = sink.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    families = {f.name: f for f in text_string_to_metric_families(text.decode())}
    (calls,) = families["onelane_calls"].samples
    assert (calls.name, calls.value, calls.labels["rpc_method"]) == ("onelane_calls_total", 7, "a/B")
    assert families["onelane_queue_depth"].samples[0].value == 3
    assert families["there"].type == "gauge"
    took = {(s.name, s.labels.get("le", "")): s.value for s in families["took_seconds"].samples}
    assert [took["took_seconds_bucket", le] for le in ("0.25", "0.5", "1.0", "2.0", "8.0", "16.0")] == [
        0,
        1,
        2,
        3,
        3,
        4,
    ]
    assert (took["took_seconds_count", ""], took["took_seconds_sum", ""]) == (4, 12)


def test_names_that_are_alike_in_prometheus_are_one_family_and_one_series(caplog: pytest.LogCaptureFixture) -> None:
    sink = PrometheusSink({})
    odd = (("9lives", "x"), ("le", "y"), ("room.size", "1"), ("room_size", "2"))
    points = [
        Point(Instrument("jobs.done"), "counter", (("a.b", "1"),), 1),
        Point(Instrument("jobs_done"), "counter", (("a_b", "1"),), 2),
        Point(Instrument("jobs-done"), "gauge", (), 9),
        Point(Instrument("9jobs", "1"), "counter", odd, 3),
        Point(Instrument("full", "1"), "gauge", (), 0.5),
        Point(Instrument("took", "s"), "histogram", odd, Buckets.of([0.5])),
    ]
    for _ in range(2):
        sink.points(points)
        text, _ = sink.render()
    families = {f.name: f for f in text_string_to_metric_families(text.decode())}
    assert [(s.labels, s.value) for s in families["jobs_done"].samples] == [({"a_b": "1"}, 3)]
    assert families["_9jobs"].samples[0].labels == {"_9lives": "x", "le": "y", "room_size": "1;2"}
    assert families["full_ratio"].samples[0].value == 0.5
    assert {s.labels["exported_le"] for s in families["took_seconds"].samples} == {"y"}
    assert [record.getMessage() for record in caplog.records] == [
        "prometheus.left_out the gauge jobs-done has the Prometheus name jobs_done, as has the counter jobs.done"
    ]


def test_openmetrics_has_the_trace_of_a_value_beside_its_bucket() -> None:
    sink = PrometheusSink({})
    sink.points(POINTS)
    text, content_type = sink.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    read: Any = openmetrics.text_string_to_metric_families
    families = {f.name: f for f in read(text.decode())}
    by_bound = {s.labels.get("le"): s.exemplar for s in families["took_seconds"].samples if s.exemplar}
    assert list(by_bound) == ["2.0"]
    assert by_bound["2.0"].labels == {"trace_id": TRACE_ID, "span_id": SPAN_ID}
    assert by_bound["2.0"].value == 1.5
