"""Every refusal is counted by its reason; the log has one line a second of each reason."""

import pytest
from onelane.lane.refusals import Refusals
from onelane.telemetry.stats import Stats
from onelane.testing.listener import MemoryCall


def test_a_flood_of_refusals_is_counted_and_logged_once_a_second_for_each_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [5.0]
    stats = Stats()
    refusals = Refusals("echo-0", stats, now=lambda: now[0])
    call = MemoryCall("/t.T/M", (), trusted=False, deadline_s=None)
    for _ in range(1000):
        refusals.add(call, "late")
    refusals.add(call, "full")
    now[0] += 0.9
    refusals.add(call, "late")
    now[0] += 0.2
    refusals.add(call, "late")
    counts = {dict(point.attributes)["onelane.reason"]: point.value for point in stats.take()}
    assert counts == {"late": 1002, "full": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "call.refused method=t.T/M shard=echo-0 reason=late peer=memory more=0",
        "call.refused method=t.T/M shard=echo-0 reason=full peer=memory more=0",
        "call.refused method=t.T/M shard=echo-0 reason=late peer=memory more=1000",
    ]
