"""The export queue, in time that is moved by hand."""

from itertools import pairwise
from random import Random
from typing import Any

import pytest
from onelane.telemetry.sinks.otlp.queue import (
    BACKOFF_BASE_S,
    BACKOFF_CAP_S,
    CLOSED,
    MAX_BATCH_BYTES,
    MAX_CHUNK_BYTES,
    QUEUE_FULL,
    REFUSED,
    Chunk,
    ExportQueue,
    QueueLimits,
    chunks,
    queue_limits_of,
)
from onelane.telemetry.sinks.otlp.sink import MAX_QUEUED_SPANS
from onelane.telemetry.spans import PackedSpans, SpanRecord, pack_spans

from tests.telemetry.sinks.test_seam import SPAN, SPAN_ID, TRACE_ID

SOURCE = ("lobby", "lobby-0")
DELAY_S = 1.0


def test_in_an_outage_of_30_s_nothing_is_lost_and_each_pause_before_a_retry_is_bounded() -> None:
    """50 spans arrive per second meanwhile; the limits are the defaults."""
    queue = ExportQueue(queue_limits_of({}, "OTEL_BSP", max_items=MAX_QUEUED_SPANS, delay_s=DELAY_S), Random(1))
    attempts: list[float] = []
    arrived: list[bytes] = []
    for number in range(60 * 50):
        now = number / 50
        if now < 40:
            queue.put(Chunk(SOURCE, b"%d" % number, 1), now)
        due_at = queue.due_at()
        if due_at is None or due_at > now:
            continue
        batch = queue.begin_batch()
        if now < 30:
            attempts.append(now)
            queue.retry_batch(now)
        else:
            arrived += [chunk.packed for chunk in batch]
            queue.acknowledge(now)
    assert arrived == [b"%d" % number for number in range(40 * 50)]
    assert not queue.dropped
    pauses = [later - earlier for earlier, later in pairwise(attempts)]
    assert len(pauses) >= 30 / BACKOFF_CAP_S - 1
    assert max(pauses) <= BACKOFF_CAP_S + 0.02


@pytest.mark.parametrize("make", [list, lambda spans: PackedSpans(pack_spans(spans))])
def test_too_many_or_too_large_items_are_split_into_several_batches(make: Any) -> None:
    def big(size: int) -> SpanRecord:
        record = SpanRecord(TRACE_ID, SPAN_ID, "", f"{size}", "SERVER", 1_000)
        record.set_attribute("text", "x" * size)
        return record

    spans = [*(big(n) for n in range(1500)), *(big(300_000 + n) for n in range(8)), big(5 << 20), SPAN]
    all_chunks = list(chunks(("lobby", "lobby-0"), make(spans), pack_spans, 512))
    assert [span.name for chunk in all_chunks for span in PackedSpans(chunk.packed)] == [span.name for span in spans]
    assert all(chunk.count == len(PackedSpans(chunk.packed)) <= 512 for chunk in all_chunks)
    assert [chunk.count for chunk in all_chunks if len(chunk.packed) > MAX_CHUNK_BYTES] == [1]
    queue = ExportQueue(QueueLimits(10_000, 2048, 1.0), Random(1))
    for chunk in all_chunks:
        queue.put(chunk, 0.0)
    batches = []
    while queue.due_at() is not None:
        batches.append(list(queue.begin_batch()))
        queue.acknowledge(0.0)
    assert [chunk for batch in batches for chunk in batch] == all_chunks
    assert all(len(batch) == 1 or sum(len(chunk.packed) for chunk in batch) <= MAX_BATCH_BYTES for batch in batches)


def chunk(name: str, count: int = 1) -> Chunk:
    return Chunk(SOURCE, name.encode(), count)


def queue_of(max_items: int = 10, batch_items: int = 4) -> ExportQueue:
    return ExportQueue(QueueLimits(max_items, batch_items, DELAY_S), Random(1))


def test_a_batch_is_due_after_the_delay_or_at_once_when_it_is_full() -> None:
    queue = queue_of()
    assert queue.due_at() is None
    queue.put(chunk("a"), 5.0)
    queue.put(chunk("b", 2), 5.5)
    assert queue.due_at() == 5.0 + DELAY_S
    queue.put(chunk("c"), 5.6)
    assert queue.due_at() == 5.0


def test_a_full_queue_drops_its_oldest_items_and_counts_them() -> None:
    queue = queue_of(max_items=4)
    for name in ("a", "b", "c"):
        queue.put(chunk(name, 2), 0.0)
    assert queue.begin_batch() == [chunk("b", 2), chunk("c", 2)]
    assert (queue.waiting, queue.dropped) == (4, {QUEUE_FULL: 2})


def test_a_retried_batch_is_first_again_and_the_pause_grows_until_one_is_acknowledged() -> None:
    queue = queue_of(batch_items=1)
    queue.put(chunk("a"), 0.0)
    queue.put(chunk("b"), 0.0)
    pauses = []
    for _ in range(12):
        assert queue.begin_batch() == [chunk("a")]
        queue.retry_batch(100.0)
        due_at = queue.due_at()
        assert due_at is not None
        pauses.append(due_at - 100.0)
    assert max(pauses) > 4 * BACKOFF_BASE_S
    assert max(pauses) <= BACKOFF_CAP_S
    queue.begin_batch()
    queue.acknowledge(100.0)
    assert (queue.due_at(), queue.begin_batch()) == (100.0, [chunk("b")])
    queue.retry_batch(100.0)
    due_at = queue.due_at()
    assert due_at is not None
    assert 100.0 < due_at <= 100.0 + BACKOFF_BASE_S


def test_refused_rejected_and_unsent_items_are_counted_by_their_reason() -> None:
    queue = queue_of(batch_items=3)
    for name in ("a", "b", "c"):
        queue.put(chunk(name, 3), 0.0)
    queue.begin_batch()
    queue.drop_batch(0.0)
    queue.begin_batch()
    queue.acknowledge(0.0, rejected=2)
    assert queue.dropped == {REFUSED: 5}
    assert queue.close() == 3
    assert queue.dropped == {REFUSED: 5, CLOSED: 3}
    assert (queue.waiting, queue.due_at()) == (0, None)


@pytest.mark.parametrize(
    ("variables", "limits"),
    [
        ({}, QueueLimits(100, 100, 2.0)),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "5000", "OTEL_BSP_SCHEDULE_DELAY": "250"}, QueueLimits(5000, 2048, 0.25)),
        ({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "7"}, QueueLimits(100, 7, 2.0)),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "many", "OTEL_BSP_SCHEDULE_DELAY": ""}, QueueLimits(100, 100, 2.0)),
        ({"OTEL_BLRP_MAX_QUEUE_SIZE": "5"}, QueueLimits(100, 100, 2.0)),
    ],
)
def test_limits_are_those_of_the_variables_or_the_defaults(variables: dict[str, str], limits: QueueLimits) -> None:
    assert queue_limits_of(variables, "OTEL_BSP", max_items=100, delay_s=2.0) == limits
