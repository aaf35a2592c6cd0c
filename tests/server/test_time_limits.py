"""Which connection is cut off, sent away or pinged, and why; as a table of times."""

from dataclasses import dataclass

import pytest
from onelane.config import App
from onelane.server.time_limits import TimeLimits

LIMITS = TimeLimits.of(
    App(
        services=("a:B",),
        listen="127.0.0.1:0",
        preface_s=10,
        headers_s=10,
        first_request_s=300,
        message_s=60,
        keepalive_s=7200,
        ping_timeout_s=20,
        max_idle_s=1000,
        max_age_s=10_000,
    )
)


@dataclass
class _Standing:
    """A connection that was opened at 100 s and has made its first request."""

    opened_at: float = 100.0
    heard_at: float = 100.0
    framed_at: float = 100.0
    pinged_at: float = 0.0
    asked_at: float = 0.0
    has_request: bool = True
    has_settings: bool = True
    has_calls: bool = True
    is_reached: bool = True


@pytest.mark.parametrize(
    ("connection", "now", "expected"),
    [
        (_Standing(has_settings=False, has_request=False), 109, ""),
        (_Standing(has_settings=False, has_request=False), 111, "preface"),
        (_Standing(pinged_at=200), 219, ""),
        (_Standing(pinged_at=200), 221, "ping"),
        (_Standing(pinged_at=200, heard_at=201), 221, ""),
        (_Standing(asked_at=200, heard_at=199), 209, ""),
        (_Standing(asked_at=200, heard_at=199), 211, "headers"),
        (_Standing(asked_at=200, heard_at=205, is_reached=False), 211, "headers"),
        # Its machine has not acknowledged the ping: a telephone in a tunnel.
        (_Standing(asked_at=200, heard_at=199, is_reached=False), 211, ""),
        (_Standing(asked_at=200, heard_at=201, framed_at=201), 211, ""),
        (_Standing(has_request=False), 399, ""),
        (_Standing(has_request=False), 401, "first_request"),
        (_Standing(has_calls=False), 1101, "idle"),
        (_Standing(), 1101, ""),
        (_Standing(heard_at=10_100), 10_101, "age"),
    ],
)
def test_a_connection_ends_for_the_reason_of_its_limit(connection: _Standing, now: float, expected: str) -> None:
    assert (LIMITS.breach(connection, now) or LIMITS.goodbye(connection, now)) == expected


def test_a_client_is_asked_for_its_frames_once_for_all_that_it_has_sent() -> None:
    assert not LIMITS.is_question_due(_Standing(), 1000)
    assert not LIMITS.is_question_due(_Standing(heard_at=105), 109)
    assert LIMITS.is_question_due(_Standing(heard_at=105), 111)
    assert not LIMITS.is_question_due(_Standing(heard_at=105, asked_at=111), 113)


def test_all_connections_are_looked_at_some_times_within_the_shortest_limit() -> None:
    assert LIMITS.sweep_s == 2.5
