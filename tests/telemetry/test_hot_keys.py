"""The sketch of hot keys is bounded, and right about the most requested ones."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.telemetry.hot_keys import MAX_SAMPLED, HotKeys


def ask(keys: HotKeys, asked: list[str]) -> None:
    for start in range(0, len(asked), MAX_SAMPLED):
        part = asked[start : start + MAX_SAMPLED]
        keys.seen.extend(part)
        keys.fold()


@given(st.lists(st.sampled_from("abcdefghijklmnop"), max_size=400))
def test_a_count_is_never_too_small_and_at_most_its_error_too_large(asked: list[str]) -> None:
    keys = HotKeys(size=4)
    ask(keys, asked)
    truth = Counter(asked)
    for hot in keys.top(4):
        assert hot.calls - hot.error <= truth[hot.key] <= hot.calls


@given(st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=400))
def test_a_key_with_more_than_its_share_of_calls_is_in_the_sketch(asked: list[str]) -> None:
    keys = HotKeys(size=4)
    ask(keys, asked)
    top_keys = {hot.key for hot in keys.top(4)}
    assert {key for key, count in Counter(asked).items() if count > len(asked) / 4} <= top_keys


@pytest.mark.parametrize("seed", range(3))
def test_the_last_calls_of_a_busy_tick_stand_for_all(seed: int) -> None:
    rng, keys = Random(seed), HotKeys()
    for _ in range(50):
        for _ in range(5000):
            keys.seen.append("hot" if rng.random() < 0.3 else f"key-{rng.randrange(10_000)}")
        keys.fold()
    (hottest_keys,) = keys.top(1)
    assert hottest_keys.key == "hot"
    assert hottest_keys.calls == pytest.approx(0.3 * 250_000, rel=0.1)


def test_keys_that_are_no_longer_called_decay() -> None:
    keys = HotKeys()
    ask(keys, ["old"] * 8)
    for _ in range(3):
        keys.decay()
    ask(keys, ["new"] * 2)
    assert [hot.key for hot in keys.top(2)] == ["new", "old"]
    keys.decay()
    assert [hot.key for hot in keys.top(2)] == ["new"]
