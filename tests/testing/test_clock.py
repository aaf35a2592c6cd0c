"""The clock that a test moves: alarms ring in order, at their own time, and many small steps add up exactly."""

from onelane.testing.clock import ManualClock


def test_alarms_ring_in_order_and_each_at_its_own_time() -> None:
    clock, rung = ManualClock(100.0), list[tuple[str, float]]()
    clock.call_at(102.0, lambda: rung.append(("late", clock.now())))
    clock.call_at(101.0, lambda: rung.append(("early", clock.now())))
    clock.advance(5.0)
    assert (rung, clock.now()) == ([("early", 101.0), ("late", 102.0)], 105.0)


def test_an_alarm_that_an_alarm_sets_rings_in_the_same_advance() -> None:
    clock, rung = ManualClock(), list[float]()
    clock.call_at(1.0, lambda: clock.call_at(2.0, lambda: rung.append(clock.now())))
    clock.advance(3.0)
    assert rung == [2.0]


def test_a_cancelled_alarm_does_not_ring() -> None:
    clock, rung = ManualClock(), list[str]()
    clock.call_at(1.0, lambda: rung.append("cancelled")).cancel()
    clock.advance(2.0)
    assert rung == []


def test_many_steps_to_a_moment_arrive_at_just_that_moment() -> None:
    clock, rung = ManualClock(1_000_000.0), list[float]()
    clock.call_at(1_000_060.0, lambda: rung.append(clock.now()))
    until = clock.now() + 60.0
    while (now := clock.now()) < until:
        assert rung == []
        clock.advance_to(min(now + 0.1, until))
    assert rung == [1_000_060.0]


def test_a_jump_lets_alarms_ring_late_as_a_lane_that_was_blocked_sees_them() -> None:
    clock, rung = ManualClock(), list[float]()
    clock.call_at(1.0, lambda: rung.append(clock.now()))
    clock.jump(5.0)
    assert rung == [5.0]
