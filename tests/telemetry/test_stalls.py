"""A stalled lane is told from a starved machine, and neither floods the log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.telemetry.stalls import (
    BLOCKED,
    COMPUTING,
    CROWDED,
    INTERPRETER,
    LOG_PERIOD_S,
    MAX_LOGGED,
    STARVED,
    Evidence,
    LogLimit,
    Sample,
    kind_of,
)


def seen(
    *,
    own: float = 0.0,
    delay: float = 0.0,
    others: float = 0.0,
    state: str = "S",
    late: float = 0.0,
    wakes: int = 0,
    idle: bool = False,
    calls: int = 0,
) -> Evidence:
    """Of a stall of one second; the shares of it that each had."""
    return Evidence(
        Sample(10.0, 3.0, 2.0, 1.0), Sample(11.0, 3.0 + own, 2.0 + delay, 1.0 + others), state, late, wakes, idle, calls
    )


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        pytest.param(seen(own=0.99, state="R"), COMPUTING, id="a loop"),
        pytest.param(seen(own=0.6, late=0.9, state="R"), COMPUTING, id="C code that keeps the interpreter"),
        pytest.param(seen(own=0.9, calls=400, state="R"), CROWDED, id="many calls, each short"),
        pytest.param(seen(own=0.9, calls=1, state="R"), COMPUTING, id="one long call"),
        pytest.param(seen(state="S"), BLOCKED, id="time.sleep"),
        pytest.param(seen(state="D"), BLOCKED, id="a disk"),
        pytest.param(seen(others=1.0, state="S"), BLOCKED, id="a lock that a busy thread has"),
        pytest.param(seen(own=0.1, delay=0.85, state="R"), STARVED, id="no CPU"),
        pytest.param(seen(delay=0.85, state="R", late=0.85), STARVED, id="no CPU for anybody"),
        pytest.param(seen(state="S", late=0.95, idle=True), STARVED, id="a process that was stopped"),
        pytest.param(seen(state="S", late=0.95), BLOCKED, id="time.sleep, while the watchdog had no CPU"),
        pytest.param(seen(own=0.1, delay=0.3, state="R"), STARVED, id="ready, and not running"),
        pytest.param(seen(others=0.95, late=0.9, state="S"), INTERPRETER, id="a helper in C code with the interpreter"),
        pytest.param(seen(others=0.95, wakes=3, state="S"), INTERPRETER, id="a helper that computes in Python"),
    ],
)
def test_the_kind_of_a_stall(evidence: Evidence, kind: str) -> None:
    assert kind_of(evidence) == kind


def test_five_a_minute_are_told_and_then_how_many_were_not() -> None:
    limit = LogLimit()
    assert [limit.allow(float(n)) for n in range(8)] == [True] * MAX_LOGGED + [False] * 3
    assert limit.take_suppressed(LOG_PERIOD_S - 0.1) == 0, "there is no room yet to say so"
    assert (limit.take_suppressed(LOG_PERIOD_S), limit.take_suppressed(LOG_PERIOD_S)) == (3, 0)
    assert limit.allow(LOG_PERIOD_S)


@given(st.lists(st.floats(0.0, 30.0), max_size=60))
def test_no_minute_has_more_than_its_limit_and_none_goes_uncounted(steps: list[float]) -> None:
    limit, now, told, untold = LogLimit(), 0.0, [], 0
    for step in steps:
        now += step
        untold += limit.take_suppressed(now)
        if limit.allow(now):
            told.append(now)
    assert all(later - earlier >= LOG_PERIOD_S for earlier, later in zip(told, told[MAX_LOGGED:], strict=False))
    assert len(told) + untold + limit.take_suppressed(now + LOG_PERIOD_S) == len(steps)
