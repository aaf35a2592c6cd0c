"""A manual clock moves when a test says so, and calls what becomes due, in order."""

from onelane.testing.clock import ManualClock


def test_the_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(5.0)
    assert (clock.now(), clock.wall_ns()) == (5.0, 5_000_000_000)
    clock.advance(1.5)
    assert (clock.now(), clock.wall_ns()) == (6.5, 6_500_000_000)


def test_callbacks_run_in_order_each_at_its_own_time() -> None:
    clock = ManualClock()
    times: list[tuple[str, float]] = []
    clock.call_at(2.0, lambda: times.append(("second", clock.now())))
    clock.call_at(1.0, lambda: times.append(("first", clock.now())))
    clock.call_at(9.0, lambda: times.append(("later", clock.now())))
    clock.advance(3.0)
    assert times == [("first", 1.0), ("second", 2.0)]
    assert clock.now() == 3.0


def test_callbacks_of_the_same_time_run_in_the_order_in_which_they_were_set() -> None:
    clock = ManualClock()
    order: list[int] = []
    for number in range(5):
        clock.call_at(1.0, lambda number=number: order.append(number))  # type: ignore[misc]
    clock.advance(1.0)
    assert order == [0, 1, 2, 3, 4]


def test_a_callback_may_set_another_that_becomes_due_in_the_same_move() -> None:
    clock = ManualClock()
    times: list[float] = []
    clock.call_at(1.0, lambda: clock.call_at(clock.now() + 1.0, lambda: times.append(clock.now())))
    clock.advance(3.0)
    assert times == [2.0]


def test_a_cancelled_callback_never_runs() -> None:
    clock = ManualClock()
    calls: list[float] = []
    clock.call_at(1.0, lambda: calls.append(clock.now())).cancel()
    clock.advance(2.0)
    assert calls == []


def test_after_a_jump_due_callbacks_are_late() -> None:
    clock = ManualClock()
    times: list[float] = []
    clock.call_at(1.0, lambda: times.append(clock.now()))
    clock.jump(5.0)
    assert times == [5.0]


def test_steps_to_absolute_times_add_up_without_an_error() -> None:
    clock = ManualClock(1_000_000.0)
    for step in range(1, 1001):
        clock.advance_to(1_000_000.0 + step / 10)
    assert clock.now() == 1_000_100.0
