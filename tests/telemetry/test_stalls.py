"""A lane stalled by its own code is distinguished from a starved machine, and neither floods the log."""

import pytest
from hypothesis import assume, given
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
    StarvedLimit,
    kind_of,
)


def evidence_of(
    *,
    own: float = 0.0,
    delay: float = 0.0,
    others: float = 0.0,
    state: str = "S",
    late: float = 0.0,
    stopped: float = 0.0,
    wakes: int = 0,
    has_cpu: bool = True,
    idle: bool = False,
    calls: int = 0,
) -> Evidence:
    """Of a stall of one second; each argument is a share of it."""
    before, after = Sample(10.0, 3.0, 2.0, 1.0), Sample(11.0, 3.0 + own, 2.0 + delay, 1.0 + others)
    return Evidence(before, after, state, late, stopped, wakes, has_cpu, idle, calls)


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        pytest.param(evidence_of(own=0.99, state="R"), COMPUTING, id="a loop"),
        pytest.param(evidence_of(own=0.6, late=0.9, state="R"), COMPUTING, id="C code that holds the interpreter"),
        pytest.param(evidence_of(own=0.9, calls=400, state="R"), CROWDED, id="many calls, each short"),
        pytest.param(evidence_of(own=0.9, calls=1, state="R"), COMPUTING, id="one long call"),
        pytest.param(evidence_of(state="S"), BLOCKED, id="time.sleep"),
        pytest.param(evidence_of(state="D"), BLOCKED, id="a disk"),
        pytest.param(evidence_of(others=1.0, state="S"), BLOCKED, id="a lock that a busy thread has"),
        pytest.param(evidence_of(own=0.1, delay=0.85, state="R"), STARVED, id="no CPU"),
        pytest.param(evidence_of(delay=0.85, state="R", late=0.85), STARVED, id="no CPU for the watchdog either"),
        pytest.param(
            evidence_of(state="S", late=0.95, idle=True), STARVED, id="a lane without work, and no CPU for the watchdog"
        ),
        pytest.param(evidence_of(state="S", late=0.95, stopped=0.95), STARVED, id="a process that was stopped"),
        pytest.param(
            evidence_of(own=0.01, state="R", late=0.95, stopped=0.95), STARVED, id="stopped, and its lane goes on first"
        ),
        pytest.param(
            evidence_of(own=0.1, delay=0.4, state="S", late=0.4, stopped=0.4),
            STARVED,
            id="stopped, and without a CPU as it goes on",
        ),
        pytest.param(evidence_of(state="S", late=0.4, stopped=0.4), BLOCKED, id="time.sleep, stopped for a part of it"),
        pytest.param(evidence_of(state="S", late=0.95), BLOCKED, id="time.sleep, while the watchdog had no CPU"),
        pytest.param(evidence_of(own=0.1, delay=0.3, state="R"), STARVED, id="ready, and not running"),
        pytest.param(
            evidence_of(own=0.01, state="R", late=0.6, has_cpu=False),
            STARVED,
            id="its first wait for a CPU lasts still",
        ),
        pytest.param(evidence_of(own=0.3, delay=0.1, state="R"), COMPUTING, id="a loop that has begun late"),
        pytest.param(
            evidence_of(others=0.95, late=0.9, state="S"), INTERPRETER, id="a helper in C code with the interpreter"
        ),
        pytest.param(evidence_of(others=0.95, wakes=3, state="S"), INTERPRETER, id="a helper that computes in Python"),
    ],
)
def test_the_kind_of_a_stall(evidence: Evidence, kind: str) -> None:
    assert kind_of(evidence) == kind


CPU_SHARE = 0.1
"""What each of ten gets of one CPU, where one of them is the thread in question and nine compute without end."""


@pytest.mark.parametrize(
    ("alone", "kind", "beside_nine", "kind_beside"),
    [
        pytest.param(
            evidence_of(state="R", late=0.95, stopped=0.95),
            STARVED,
            evidence_of(own=0.02, delay=0.18, state="R", late=0.9, stopped=0.8),
            STARVED,
            id="stopped",
        ),
        pytest.param(
            evidence_of(own=0.3, delay=0.0, state="R", late=0.65, stopped=0.65),
            STARVED,
            evidence_of(own=0.06, delay=0.54, state="R", late=0.8, stopped=0.4),
            STARVED,
            id="stopped for a part of it, and computes then",
        ),
        pytest.param(
            evidence_of(own=1.0, state="R"),
            COMPUTING,
            evidence_of(own=CPU_SHARE, delay=1 - CPU_SHARE, state="R", late=0.6, has_cpu=False),
            STARVED,
            id="computes",
        ),
        pytest.param(
            evidence_of(own=1.0, state="R", late=0.95),
            COMPUTING,
            evidence_of(own=0.6, delay=0.4, state="R", late=0.95),
            COMPUTING,
            id="computes in C code with the interpreter kept, and nine others of less weight",
        ),
        pytest.param(
            evidence_of(others=1.0, state="S", late=0.95),
            INTERPRETER,
            evidence_of(others=CPU_SHARE, delay=0.7, state="R", late=0.95, has_cpu=False),
            STARVED,
            id="waits for another thread with the interpreter",
        ),
        pytest.param(
            evidence_of(state="S"),
            BLOCKED,
            evidence_of(delay=0.05, state="S", late=0.6),
            BLOCKED,
            id="waits in the kernel",
        ),
        pytest.param(
            evidence_of(state="S", late=0.95),
            BLOCKED,
            evidence_of(delay=0.05, state="S", late=0.95),
            BLOCKED,
            id="waits in the kernel, with the interpreter kept",
        ),
    ],
)
def test_the_kind_of_a_stall_alone_and_beside_nine_processes_that_compute_on_its_cpu(
    alone: Evidence, kind: str, beside_nine: Evidence, kind_beside: str
) -> None:
    assert (kind_of(alone), kind_of(beside_nine)) == (kind, kind_beside)


@given(stopped=st.floats(0.0, 1.0), delay=st.floats(0.0, 1.0), own=st.floats(0.0, 1.0), blocked=st.floats(0.0, 1.0))
def test_a_lane_that_was_stopped_or_had_no_cpu_for_the_better_part_is_starved_whatever_it_did_else(
    stopped: float, delay: float, own: float, blocked: float
) -> None:
    """Never taken for one that computes or blocks, for which its process may be replaced."""
    total = stopped + delay + own + blocked
    assume(total > 0.1 and stopped + delay > 0.51 * total)
    late = (stopped + delay) / total
    for state in "RS":
        seen = evidence_of(own=own / total, delay=delay / total, stopped=stopped / total, state=state, late=late)
        assert kind_of(seen) == STARVED


def test_five_a_minute_are_logged_and_then_how_many_were_suppressed() -> None:
    limit = LogLimit()
    assert [limit.allow(float(n)) for n in range(8)] == [True] * MAX_LOGGED + [False] * 3
    assert limit.take_suppressed(LOG_PERIOD_S - 0.1) == 0, "the limit is still reached"
    assert (limit.take_suppressed(LOG_PERIOD_S), limit.take_suppressed(LOG_PERIOD_S)) == (3, 0)
    assert limit.allow(LOG_PERIOD_S)


# Times whose sums are exact: else a minute later may be a little less than a minute later.
@given(st.lists(st.integers(0, 30 * 64).map(lambda steps: steps / 64), max_size=60))
def test_no_minute_exceeds_the_limit_and_every_stall_is_counted(steps: list[float]) -> None:
    limit, now, logged, suppressed = LogLimit(), 0.0, [], 0
    for step in steps:
        now += step
        suppressed += limit.take_suppressed(now)
        if limit.allow(now):
            logged.append(now)
    assert all(later - earlier >= LOG_PERIOD_S for earlier, later in zip(logged, logged[MAX_LOGGED:], strict=False))
    assert len(logged) + suppressed + limit.take_suppressed(now + LOG_PERIOD_S) == len(steps)


def test_without_a_cpu_the_first_of_a_minute_is_told_and_each_that_is_twice_as_long_as_the_last_told() -> None:
    limit = StarvedLimit()
    times = [(0.0, 0.1), (1.0, 0.15), (2.0, 0.1), (3.0, 2.1), (4.0, 4.1), (5.0, 4.2), (64.9, 0.1), (65.0, 0.1)]
    assert [limit.allow(now, seconds) for now, seconds in times] == [0, None, None, 2, None, 1, None, 1]
