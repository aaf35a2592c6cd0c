"""The history of every method in the last minutes, by second."""

from onelane.telemetry.collector.history import HISTORY_STEPS, History
from onelane.telemetry.histogram import Buckets

APP = ("onelane.app", "lobby")


Series = list[tuple[tuple[tuple[str, str], ...], Buckets]]


def series(calls: int, seconds: float, *, failed: int = 0, shards: int = 1) -> Series:
    """Cumulative series of one method, by shard and status."""
    rows: Series = []
    for shard in range(shards):
        attributes = (APP, ("onelane.shard", f"lobby-{shard}"), ("rpc.method", "a/B"))
        rows.append(((*attributes, ("rpc.response.status_code", "OK")), Buckets.of([seconds] * calls)))
        rows.append(((*attributes, ("rpc.response.status_code", "INTERNAL")), Buckets.of([seconds] * failed)))
    return rows


def test_a_step_has_the_calls_of_its_second_over_all_shards() -> None:
    history = History()
    history.step(series(10, 0.1, shards=2), 100.0, 1.0)
    history.step(series(15, 0.1, failed=1, shards=2), 101.0, 2.0)
    _, last = history.methods["lobby", "a/B"].steps
    assert (last.at_s, last.calls, last.errors) == (101.0, 12, 2)


def test_a_call_that_its_client_has_cancelled_is_no_error() -> None:
    history = History()
    attributes = (APP, ("rpc.method", "a/B"), ("rpc.response.status_code", "CANCELLED"))
    history.step([(attributes, Buckets.of([0.1] * 3))], 100.0, 1.0)
    assert [(step.calls, step.errors) for step in history.methods["lobby", "a/B"].steps] == [(3, 0)]


def test_a_late_step_is_scaled_to_one_second_by_the_monotonic_clock() -> None:
    history = History()
    history.step(series(0, 0.1), 100.0, 1.0)
    history.step(series(40, 0.1), 50.0, 5.0)
    assert history.methods["lobby", "a/B"].steps[-1].calls == 10


def test_only_the_last_minutes_are_kept() -> None:
    history = History()
    for second in range(HISTORY_STEPS + 20):
        history.step(series(second, 0.1), float(second), float(second))
    steps = history.methods["lobby", "a/B"].steps
    assert (len(steps), steps[0].at_s) == (HISTORY_STEPS, 20.0)


def test_slow_durations_are_known_of_methods_with_enough_calls() -> None:
    history = History()
    many = Buckets.of([0.01] * 98 + [1.0] * 2)
    history.step([((APP, ("rpc.method", "a/B")), many), ((APP, ("rpc.method", "a/C")), Buckets.of([5.0]))], 0.0, 0.0)
    slow = history.slow("lobby", 0.05)
    assert list(slow) == ["a/B"]
    assert 0.01 < slow["a/B"] * 1.03 < 0.011
    assert history.slow("other", 0.05) == {}
