"""The export queue, in time that is moved by hand."""

from itertools import pairwise
from random import Random
from typing import Any

import pytest
from onelane.telemetry.sinks.otlp.queue import (
    BACKOFF_CAP_S,
    MAX_BATCH_BYTES,
    MAX_CHUNK_BYTES,
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
