"""Exponential histograms add up without loss, and their quantiles are right within a bucket."""

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.telemetry.histogram import SCALE, Buckets, Exemplar
from opentelemetry.sdk.metrics._internal.exponential_histogram.mapping.logarithm_mapping import LogarithmMapping

values = st.lists(st.floats(0, 1e6, allow_subnormal=False), max_size=60)


@given(values, values, values)
def test_adding_up_is_the_same_in_every_order_and_grouping(a: list[float], b: list[float], c: list[float]) -> None:
    first, second, third = map(Buckets.of, (a, b, c))
    whole = Buckets.of([*a, *b, *c])
    for merged in (first.plus(second).plus(third), third.plus(first).plus(second), first.plus(second.plus(third))):
        assert (dict(merged.counts), merged.zeros) == (dict(whole.counts), whole.zeros)
        assert merged.sum == pytest.approx(whole.sum)
    assert whole.count == len(a) + len(b) + len(c)


@given(values, values)
def test_the_difference_of_two_states_is_the_values_added_between_them(a: list[float], b: list[float]) -> None:
    before = Buckets.of(a)
    added = before.plus(Buckets.of(b)).minus(before)
    assert (dict(added.counts), added.zeros) == (dict(Buckets.of(b).counts), Buckets.of(b).zeros)


@given(values, st.integers(-5, SCALE))
def test_a_coarser_scale_loses_no_value(recorded: list[float], scale: int) -> None:
    fine = Buckets.of(recorded)
    coarse = fine.at_scale(scale)
    assert (coarse.count, coarse.sum, coarse.scale) == (fine.count, fine.sum, scale)
    assert dict(Buckets.of(recorded).at_scale(SCALE - 2).at_scale(scale).counts) == dict(
        fine.at_scale(min(scale, SCALE - 2)).counts
    )


@given(values)
def test_an_exported_histogram_fits_into_the_number_of_buckets_of_the_sdks(recorded: list[float]) -> None:
    small = Buckets.of(recorded).fitted_to(160)
    assert small.count == len(recorded)
    if small.counts:
        assert max(small.counts) - min(small.counts) < 160


@given(st.floats(1e-6, 1e6))
def test_a_value_falls_into_the_bucket_that_the_sdk_would_put_it_in(value: float) -> None:
    (index,) = Buckets.of([value]).counts
    sdk_index = LogarithmMapping(SCALE).map_to_index(value)
    # Both compute the logarithm in doubles; beside a bound they may differ by one.
    bound = 2 ** ((max(index, sdk_index)) / 2**SCALE)
    assert index == sdk_index or (abs(index - sdk_index) == 1 and math.isclose(value, bound, rel_tol=1e-12))


@pytest.mark.parametrize("power", range(-14, 7))
def test_counts_at_powers_of_two_are_exact(power: int) -> None:
    bound = 2.0**power
    spread = Buckets.of([bound, math.nextafter(bound, 0), bound * 1.001, 0.0])
    assert list(spread.cumulative_counts([bound, math.inf])) == [3, 4]


@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_quantile_is_right_within_its_bucket(recorded: list[float], share: float) -> None:
    rank = max(1, math.ceil(round(share * len(recorded), 9)))
    exact = sorted(recorded)[rank - 1]
    assert Buckets.of(recorded).quantile(share) == pytest.approx(exact, rel=0.023)


def test_values_that_are_not_numbers_of_zero_or_more_are_left_out() -> None:
    spread = Buckets.of([1.0, -1.0, math.nan, math.inf, 0.0])
    assert (spread.count, spread.zeros, spread.sum) == (2, 1, 1.0)
    assert Buckets.of([]).count == 0
    assert Buckets.of([]).quantile(0.99) == 0


def test_a_slow_exemplar_is_not_crowded_out_by_fast_ones() -> None:
    def example(value: float, at: int) -> Buckets:
        return Buckets.of([value], (Exemplar(value, f"{at:032x}", f"{at:016x}", at),))

    buckets = example(8.0, 1)
    for at in range(2, 100):
        buckets = buckets.plus(example(0.001, at))
    assert [(exemplar.value, exemplar.at_ns) for exemplar in buckets.exemplars] == [(8.0, 1), (0.001, 99)]


def test_the_largest_float_has_a_bucket_that_ends_nowhere() -> None:
    spread = Buckets.of([sys.float_info.max])
    assert list(spread.cumulative_counts([1.0, math.inf])) == [0, 1]
