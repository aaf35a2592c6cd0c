"""The wait before another attempt grows to its cap, and is jittered."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from onelane.core.backoff import backoff_s

attempts, seeds = st.integers(0, 10_000), st.integers()


@given(attempts, st.floats(0.001, 1), st.floats(0.001, 5), st.floats(1, 3), seeds)
def test_full_jitter_is_between_nothing_and_the_backoff(
    attempt: int, base_s: float, cap_s: float, growth: float, seed: int
) -> None:
    wait_s = backoff_s(attempt, base_s=base_s, cap_s=cap_s, growth=growth, rng=Random(seed))
    assert 0 <= wait_s <= cap_s
    if attempt < 20:
        assert wait_s <= base_s * growth**attempt


@given(attempts, seeds)
def test_other_jitter_stays_within_its_share_of_the_backoff(attempt: int, seed: int) -> None:
    wait_s = backoff_s(attempt, base_s=1.0, cap_s=120.0, growth=1.6, jitter=(0.8, 1.2), rng=Random(seed))
    backoff = min(120.0, 1.6 ** min(attempt, 64))
    assert 0.8 * backoff <= wait_s <= 1.2 * backoff


def test_clients_that_failed_together_come_back_at_different_times() -> None:
    waits = {backoff_s(3, base_s=0.05, cap_s=1.0, rng=Random(seed)) for seed in range(50)}
    assert len(waits) == 50
