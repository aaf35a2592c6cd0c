"""Refused connections are counted each, and logged at most once a second for each reason."""

import pytest
from onelane.server.connection_counts import ConnectionCounts
from onelane.telemetry.stats import Stats
from onelane.testing.clock import ManualClock


def test_refusals_are_counted_by_reason_and_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    stats, clock = Stats(), ManualClock(now=5.0)
    counts = ConnectionCounts(stats, now=clock.now)
    for _ in range(3):
        counts.refused("peer", "ipv4:192.0.2.7:1")
    clock.advance(1.0)
    counts.refused("peer", "ipv4:192.0.2.7:9")
    counts.refused("full", "ipv4:192.0.2.8:9")
    assert [record.getMessage() for record in caplog.records] == [
        "connection.refused reason=peer peer=ipv4:192.0.2.7:1 more=0",
        "connection.refused reason=peer peer=ipv4:192.0.2.7:9 more=2",
        "connection.refused reason=full peer=ipv4:192.0.2.8:9 more=0",
    ]
    assert {point.attributes[0][1]: point.value for point in stats.take()} == {"peer": 4, "full": 1}
