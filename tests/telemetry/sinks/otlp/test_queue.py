"""What waits to be exported, in time that is moved by hand."""

from itertools import pairwise
from random import Random

from onelane.telemetry.sinks.otlp.queue import BACKOFF_CAP_S, Chunk, ExportQueue, queue_limits_of
from onelane.telemetry.sinks.otlp.sink import MAX_QUEUED_SPANS

SOURCE = ("lobby", "lobby-0")
DELAY_S = 1.0


def test_in_an_outage_of_30_s_nothing_is_lost_and_each_pause_before_a_retry_is_bounded() -> None:
    """50 spans a second come meanwhile; the bounds are those of a supervisor that was told nothing."""
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
