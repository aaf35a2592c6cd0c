"""A deadline expires never early and at most one slot late; one timer serves many deadlines."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.core.deadlines import GRAIN_S, Deadlines
from onelane.testing.clock import ManualAlarm, ManualClock

ROUNDING_S = 1e-6
"""More than the rounding error of the times in these tests."""


class Loop(ManualClock):
    """A manual clock with an event loop's `call_later`, which counts the timers that it sets."""

    def __init__(self, now: float = 0.0) -> None:
        super().__init__(now)
        self.timers: list[ManualAlarm] = []

    def call_later(self, delay: float, callback: Callable[[], object]) -> ManualAlarm:
        alarm = self.call_at(self.now() + delay, callback)
        self.timers.append(alarm)
        return alarm


class Job:
    """Remembers when it expired, and may do something then."""

    def __init__(self, loop: Loop, then: Callable[[], object] = lambda: None) -> None:
        self.expired_at: list[float] = []
        self._loop = loop
        self._then = then

    def expire(self) -> None:
        self.expired_at.append(self._loop.now())
        self._then()


def deadlines_of(loop: Loop) -> Deadlines:
    return Deadlines(loop.now, loop.call_later)


times = st.floats(0, 1e6) | st.integers(0, 3_000_000).map(lambda slot: slot * GRAIN_S)
"""Any moment of eleven days, and the ends of slots."""


@given(start=times, delays=st.lists(st.floats(-1, 10) | st.integers(0, 2500).map(lambda n: n * GRAIN_S), max_size=20))
def test_a_deadline_is_never_early_and_at_most_one_slot_late(start: float, delays: list[float]) -> None:
    loop = Loop(start)
    deadlines = deadlines_of(loop)
    jobs = [(start + delay, Job(loop)) for delay in delays]
    for deadline_at, job in jobs:
        deadlines.add(deadline_at, job)
    loop.advance(11)
    for deadline_at, job in jobs:
        (expired_at,) = job.expired_at
        assert deadline_at <= expired_at <= max(deadline_at, start) + GRAIN_S + ROUNDING_S


@given(
    start=times,
    delays=st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=20),
)
def test_a_deadline_that_was_removed_never_expires_and_the_others_do(
    start: float, delays: list[tuple[float, bool]]
) -> None:
    loop = Loop(start)
    deadlines = deadlines_of(loop)
    jobs = [(Job(loop), is_removed) for _, is_removed in delays]
    slots = [deadlines.add(start + delay, job) for (delay, _), (job, _) in zip(delays, jobs, strict=True)]
    for slot, (job, is_removed) in zip(slots, jobs, strict=True):
        if is_removed:
            deadlines.remove(slot, job)
    loop.advance(2)
    assert [len(job.expired_at) for job, _ in jobs] == [0 if is_removed else 1 for _, is_removed in jobs]


def test_many_deadlines_have_one_timer() -> None:
    loop = Loop()
    deadlines = deadlines_of(loop)
    for n in range(1000):
        deadlines.add(1.0 + n * GRAIN_S / 10, Job(loop))
    assert len(loop.timers) == 1


def test_an_earlier_deadline_takes_the_place_of_the_timer() -> None:
    loop = Loop()
    deadlines = deadlines_of(loop)
    late, early = Job(loop), Job(loop)
    deadlines.add(5.0, late)
    deadlines.add(1.0, early)
    assert [timer.is_cancelled for timer in loop.timers] == [True, False]
    loop.advance(2)
    assert (len(early.expired_at), len(late.expired_at)) == (1, 0)
    loop.advance(4)
    assert len(late.expired_at) == 1


def test_slots_whose_deadlines_were_all_removed_set_no_timer() -> None:
    loop = Loop()
    deadlines = deadlines_of(loop)
    job = Job(loop)
    for n in range(100):
        deadlines.remove(deadlines.add(1.0 + n, job), job)
    loop.advance(200)
    assert len(loop.timers) == 1


def test_removing_what_has_expired_does_nothing() -> None:
    loop = Loop()
    deadlines = deadlines_of(loop)
    job = Job(loop)
    slot = deadlines.add(1.0, job)
    loop.advance(2)
    deadlines.remove(slot, job)
    assert len(job.expired_at) == 1


@pytest.mark.parametrize("slot", [2001, 2005, 2009])
def test_a_slot_whose_end_divides_to_less_than_its_number_expires(slot: int) -> None:
    """In floats 2001 · 0.004 / 0.004 is a little less than 2001."""
    assert int(slot * GRAIN_S / GRAIN_S) < slot
    loop = Loop()
    job = Job(loop)
    deadlines_of(loop).add((slot - 0.5) * GRAIN_S, job)
    loop.advance(slot * GRAIN_S + 1)
    assert job.expired_at == [slot * GRAIN_S]
    assert len(loop.timers) == 1


def test_a_deadline_that_is_added_by_an_expiry_delays_no_other() -> None:
    loop = Loop()
    deadlines = deadlines_of(loop)
    last, second = Job(loop), Job(loop)
    first = Job(loop, then=lambda: deadlines.add(9.0, last))
    deadlines.add(1.0, first)
    deadlines.add(2.0, second)
    loop.advance(10)
    assert [round(job.expired_at[0]) for job in (first, second, last)] == [1, 2, 9]


def test_one_that_raises_keeps_no_other_waiting() -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    loop = Loop()
    deadlines = deadlines_of(loop)
    jobs = [Job(loop, fail), Job(loop), Job(loop, fail), Job(loop)]
    for job, at in zip(jobs, (1.0, 1.0, 1.0, 2.0), strict=True):
        deadlines.add(at, job)
    failures = 0
    while loop.now() < 3:
        try:
            loop.advance(0.5)
        except RuntimeError:
            failures += 1
    assert failures == 2
    assert [len(job.expired_at) for job in jobs] == [1, 1, 1, 1]
