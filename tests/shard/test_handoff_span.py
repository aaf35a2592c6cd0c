"""What one life hands over to another is one span in the trace of the change, however many messages it takes."""

from random import Random
from typing import Any

import pytest
from onelane.core.placement import Member
from onelane.core.trace_context import TraceContext
from onelane.shard.handoff_span import HandoffSpan
from onelane.telemetry.sampling import sampler_of
from onelane.telemetry.spans import MAX_EVENTS
from onelane.telemetry.tracer import Tracer
from onelane.testing import ManualClock

MOVE = TraceContext("1" * 32, "2" * 16, True)
TO = Member("echo-1", "127.0.0.1:1", "echo-1.sock", 2)


@pytest.fixture
def tracer() -> Tracer:
    return Tracer(shard="echo-0", sampler=sampler_of({}), clock=ManualClock(1.0), rng=Random(1))


def test_it_lasts_from_the_first_key_until_the_last_is_acknowledged(tracer: Tracer) -> None:
    span: Any = HandoffSpan(tracer, MOVE, TO)
    for _ in range(2):
        span.begin()
    span.acknowledged(2, 100)
    span.begin()
    span.acknowledged(1, 50)
    assert tracer.take() == []
    span.acknowledged(0, 20)
    span.end()
    [record] = tracer.take()
    assert (record.name, record.kind, record.trace_id, record.parent_id) == ("handoff", "INTERNAL", *MOVE[:2])
    assert record.attributes == {
        "onelane.handoff.to": "echo-1",
        "onelane.handoff.keys": 3,
        "onelane.handoff.size": 150,
        "onelane.handoff.batches": 2,
    }
    assert record.error == ""


def test_a_receiver_that_is_sent_no_key_has_none(tracer: Tracer) -> None:
    span = HandoffSpan(tracer, MOVE, TO)
    span.acknowledged(0, 20)
    span.end()
    assert tracer.take() == []


def test_without_a_trace_there_is_none(tracer: Tracer) -> None:
    span = HandoffSpan(tracer, None, TO)
    span.begin()
    span.repeated("UNAVAILABLE")
    span.acknowledged(1, 20)
    assert tracer.take() == []


def test_one_that_ends_early_says_why_and_how_often_it_was_tried(tracer: Tracer) -> None:
    span = HandoffSpan(tracer, MOVE, TO)
    span.begin()
    for _ in range(MAX_EVENTS + 10):
        span.repeated("UNAVAILABLE")
    span.end("life_died")
    [record] = tracer.take()
    assert (record.error, record.events is not None and len(record.events)) == ("life_died", MAX_EVENTS)
    assert record.events is not None
    assert record.events[0][:2] == ("onelane.handoff.repeated", {"rpc.response.status_code": "UNAVAILABLE"})
