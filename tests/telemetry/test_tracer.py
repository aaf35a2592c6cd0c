"""A tracer starts spans in the trace of their parent, samples roots, and buffers ended spans for the tick."""

import threading
from random import Random
from typing import Any

import pytest
from onelane.core.trace_context import UNSAMPLED, TraceContext
from onelane.telemetry.sampling import DEFAULT_TRACES_PER_S, NEVER, RATE_LIMITED, Sampler, sampler_of
from onelane.telemetry.spans import PackedSpans, SpanRecord
from onelane.telemetry.tracer import MAX_ENDED_SPANS, PACKED_SPANS, Tracer, context_of
from onelane.testing.clock import ManualClock
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased


def tracer(sampler: Sampler, *, clock: ManualClock | None = None, **options: Any) -> Tracer:
    return Tracer(shard="a-0", sampler=sampler, clock=clock or ManualClock(), rng=Random(1), **options)


def test_an_unsampled_span_propagates_its_parent() -> None:
    parent = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", False)
    assert tracer(sampler_of({})).start("x", "SERVER", parent) is parent


def test_a_child_stays_in_its_trace_with_an_id_of_its_own() -> None:
    parent = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True, "vendor=1")
    child = tracer(sampler_of({})).start("x", "SERVER", parent)
    assert isinstance(child, SpanRecord)
    assert (child.context.trace_id, child.parent_id) == (parent.trace_id, parent.span_id)
    assert child.context.tracestate == "vendor=1"
    assert child.context.span_id != parent.span_id


@pytest.mark.parametrize("parent_based", [True, False])
def test_a_child_of_an_unsampled_call_is_not_sampled(parent_based: bool) -> None:
    assert tracer(Sampler(parent_based, 0.5)).start("inner", "CLIENT", UNSAMPLED) is UNSAMPLED


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 1.0])
def test_roots_are_sampled_as_the_sdk_would_sample_their_ids(ratio: float) -> None:
    shard_tracer, sdk = tracer(Sampler(True, ratio), records_all=True), TraceIdRatioBased(ratio)
    for _ in range(300):
        root = shard_tracer.start("x", "SERVER", None)
        assert isinstance(root, SpanRecord)
        decided = sdk.should_sample(None, int(root.trace_id, 16), "x").decision
        assert root.sampled is decided.is_sampled()  # type: ignore[no-untyped-call]
        assert (len(root.trace_id), len(root.span_id), root.parent_id) == (32, 16, "")


def test_without_a_configured_sampler_some_traces_per_second_are_recorded() -> None:
    clock = ManualClock()
    shard_tracer = tracer(sampler_of({"OTEL_TRACES_SAMPLER": RATE_LIMITED}), clock=clock)

    def recorded() -> int:
        return sum(isinstance(shard_tracer.start("x", "SERVER", None), SpanRecord) for _ in range(100))

    assert recorded() == DEFAULT_TRACES_PER_S
    clock.advance(0.5)
    shard_tracer.take()
    assert recorded() == DEFAULT_TRACES_PER_S / 2


FLAGGED = TraceContext("0" * 31 + "1", "b7ad6b7169203331", True)
"""As of a client that wants to be recorded: a ratio sampler would take its trace id, too."""


@pytest.mark.parametrize("sampler", [RATE_LIMITED, "parentbased_always_off", "parentbased_traceidratio"])
def test_so_many_flags_of_clients_are_followed_in_a_second_and_the_others_counted(sampler: str) -> None:
    clock = ManualClock()
    variables = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": "0.0"}
    shard_tracer = tracer(sampler_of(variables), clock=clock, remote_per_s=20.0)

    def spans_of(calls: int) -> int:
        followed = [shard_tracer.start("x", "SERVER", shard_tracer.follow(FLAGGED)) for _ in range(calls)]
        return sum(isinstance(span, SpanRecord) for span in followed)

    assert (spans_of(1000), shard_tracer.unfollowed) == (20, 980)
    clock.advance(0.5)
    shard_tracer.take()
    assert (spans_of(1000), shard_tracer.unfollowed) == (10, 980 + 990)


def test_a_sampler_without_parents_overrules_the_flag_of_a_client_also_for_the_calls_that_follow() -> None:
    for name, sampled in (("always_off", False), ("always_on", True)):
        shard_tracer = tracer(sampler_of({"OTEL_TRACES_SAMPLER": name}))
        trace = context_of(shard_tracer.start("x", "SERVER", shard_tracer.follow(FLAGGED)))
        assert trace is not None
        assert (trace.trace_id, trace.sampled) == (FLAGGED.trace_id, sampled)
    assert tracer(NEVER).follow(FLAGGED) is FLAGGED, "without tracing the flag is passed on"


def test_where_every_trace_is_sampled_no_flag_of_a_client_is_refused() -> None:
    shard_tracer = tracer(sampler_of({}), remote_per_s=1.0)
    assert {shard_tracer.follow(FLAGGED) for _ in range(100)} == {FLAGGED}
    assert shard_tracer.unfollowed == 0


def recorded(shard_tracer: Tracer, parent: TraceContext | None = None) -> SpanRecord:
    record = shard_tracer.start("a/B", "SERVER", parent)
    assert isinstance(record, SpanRecord)
    return record


SERVER_FAILURES = ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"]


@pytest.mark.parametrize("status", ["OK", "CANCELLED", "NOT_FOUND", "RESOURCE_EXHAUSTED", *SERVER_FAILURES])
def test_a_status_is_an_error_of_a_client_span_and_some_are_of_a_server_span(status: str) -> None:
    shard_tracer = tracer(sampler_of({}))
    server_span, client_span = recorded(shard_tracer), recorded(shard_tracer)
    shard_tracer.end_call(server_span, status=status, server=True)
    shard_tracer.end_call(client_span, status=status, server=False)
    assert server_span.status == client_span.status == status
    assert server_span.error == (status if status in SERVER_FAILURES else "")
    assert client_span.error == ("" if status in ("OK", "CANCELLED") else status)
    assert shard_tracer.take() == [server_span, client_span]


def test_a_status_ok_that_a_handler_set_overrides_the_error_of_its_call() -> None:
    shard_tracer = tracer(sampler_of({}))
    record = recorded(shard_tracer)
    record.is_ok = True
    shard_tracer.end_call(record, status="INTERNAL", server=True)
    assert (record.error, record.status) == ("", "INTERNAL")


def test_an_error_that_a_handler_described_is_kept_and_has_the_status_as_its_type() -> None:
    shard_tracer = tracer(sampler_of({}))
    record = recorded(shard_tracer)
    record.error = "the table is locked"
    shard_tracer.end_call(record, status="INTERNAL", server=True)
    assert (record.error, record.attributes) == ("the table is locked", {"error.type": "INTERNAL"})


def test_a_span_ends_at_the_time_of_the_clock_or_at_the_one_named() -> None:
    clock = ManualClock()
    shard_tracer = tracer(sampler_of({}), clock=clock)
    first, second = recorded(shard_tracer), recorded(shard_tracer)
    clock.advance(2.0)
    shard_tracer.end(first, attributes={"rows": 2})
    shard_tracer.end(second, at_ns=first.start_ns + 5)
    assert (first.end_ns - first.start_ns, first.attributes) == (2_000_000_000, {"rows": 2})
    assert second.end_ns - second.start_ns == 5


def test_ended_spans_are_bounded_and_dropped_ones_are_counted() -> None:
    shard_tracer = tracer(sampler_of({}))
    record = recorded(shard_tracer)
    for _ in range(MAX_ENDED_SPANS + 2):
        shard_tracer.end_call(record, status="OK", server=True)
    shard_tracer.end(record)
    assert len(shard_tracer.take()) == MAX_ENDED_SPANS
    assert shard_tracer.dropped == 3
    assert shard_tracer.take() == []


@pytest.mark.parametrize("number", [1, PACKED_SPANS - 1, PACKED_SPANS, 2 * PACKED_SPANS + 1])
def test_ended_spans_leave_packed_each_once_and_in_the_order_of_their_ends(number: int) -> None:
    shard_tracer = tracer(sampler_of({}))
    records = [recorded(shard_tracer) for _ in range(number)]
    for index, record in enumerate(records):
        shard_tracer.end_call(record, status="OK" if index % 3 else "INTERNAL", server=True)
    batches = [PackedSpans(packed) for packed in shard_tracer.take_packed()]
    assert [span.span_id for batch in batches for span in batch] == [record.span_id for record in records]
    assert [*map(len, batches)] == [PACKED_SPANS] * (number // PACKED_SPANS) + [number % PACKED_SPANS] * (
        number % PACKED_SPANS > 0
    )
    assert shard_tracer.take_packed() == []


def test_spans_that_other_threads_end_are_packed_by_the_tracers_own_thread_alone() -> None:
    """Two threads that pack at once would send some spans twice, and others not at all."""
    shard_tracer = tracer(sampler_of({}))
    records = [recorded(shard_tracer) for _ in range(2 * PACKED_SPANS + 1)]

    def end(spans: list[SpanRecord]) -> None:
        for span in spans:
            shard_tracer.end(span)

    worker = threading.Thread(target=end, args=(records[:-1],))
    worker.start()
    worker.join()
    end(records[-1:])
    batches = [PackedSpans(packed) for packed in shard_tracer.take_packed()]
    assert [len(batch) for batch in batches] == [len(records)]


def test_once_the_ended_spans_have_left_there_is_room_for_as_many() -> None:
    shard_tracer = tracer(sampler_of({}))
    record = recorded(shard_tracer)
    for _ in range(2):
        for _ in range(MAX_ENDED_SPANS):
            shard_tracer.end_call(record, status="OK", server=True)
        assert sum(len(PackedSpans(packed)) for packed in shard_tracer.take_packed()) == MAX_ENDED_SPANS
    assert shard_tracer.dropped == 0


def test_a_linked_span_is_sampled_as_the_span_that_it_links_to_and_stays_in_a_sampled_trace() -> None:
    shard_tracer = tracer(sampler_of({}))
    linked, parent = TraceContext("a" * 32, "b" * 16, True), TraceContext("c" * 32, "d" * 16, True)
    root = shard_tracer.start_linked("deliver", "CONSUMER", linked, None)
    child = shard_tracer.start_linked("deliver", "CONSUMER", linked, parent)
    assert isinstance(root, SpanRecord)
    assert isinstance(child, SpanRecord)
    assert root.sampled
    assert root.parent_id == ""
    assert root.trace_id not in (linked.trace_id, parent.trace_id)
    assert (child.trace_id, child.parent_id) == (parent.trace_id, parent.span_id)
    assert root.links == child.links == [(linked.trace_id, linked.span_id, "", {})]


def test_an_idle_tracer_records_not_even_the_child_of_a_sampled_parent() -> None:
    idle = tracer(NEVER)
    parent = TraceContext("0" * 31 + "1", "0" * 15 + "2", True)
    assert idle.idle
    assert idle.start("x", "SERVER", parent) is parent
    idle.end_call(parent, status="INTERNAL", server=True)
    assert idle.take() == []


def test_a_tracer_that_records_all_marks_unsampled_spans() -> None:
    shard_tracer = tracer(NEVER, records_all=True)
    assert recorded(shard_tracer).sampled is False
    assert recorded(shard_tracer, TraceContext("0" * 31 + "1", "0" * 15 + "2", False)).sampled is False
    # A trace without an id began in a call that records nothing.
    assert shard_tracer.start("x", "SERVER", UNSAMPLED) is UNSAMPLED


def test_a_call_inside_a_span_carries_its_context() -> None:
    record = recorded(tracer(sampler_of({})))
    assert context_of(record) == TraceContext(record.trace_id, record.span_id, True)
    assert context_of(UNSAMPLED) is UNSAMPLED
    assert context_of(None) is None
