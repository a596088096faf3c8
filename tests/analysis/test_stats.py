"""stats.py: against the tables of exact binomial numbers, and against scipy's own tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, quantile_test

from harness.analysis.stats import (
    allowed_share,
    distribution,
    interval_ranks,
    lower_bound,
    mean_in_flight,
    more_needed,
    nearest_rank,
    per_second,
    quantile,
    samples_needed,
    share,
    upper_bound,
)

LEAST_N = [  # target, confidence, least n with 0, 1, 2, 3, 5, 10, 20 bad
    (0.99, 0.95, [299, 473, 628, 773, 1049, 1693, 2902]),
    (0.99, 0.99, [459, 662, 838, 1001, 1307, 2010, 3304]),
    (0.999, 0.95, [2995, 4742, 6294, 7752, 10511, 16959, 29058]),
    (0.999, 0.99, [4603, 6636, 8403, 10042, 13105, 20140, 33097]),
]


@pytest.mark.parametrize(("target", "confidence", "least"), LEAST_N)
def test_more_needed_gives_the_least_n_that_proves_the_target(target, confidence, least):
    for bad, n in zip([0, 1, 2, 3, 5, 10, 20], least, strict=True):
        assert more_needed(bad, bad, target, confidence) == n - bad
        assert more_needed(bad, n - 1, target, confidence) == 1
        assert more_needed(bad, n, target, confidence) == 0


@pytest.mark.parametrize(
    ("n", "target", "most"),
    [
        *[(3000, 0.999, 0), (5000, 0.999, 1), (10_000, 0.999, 4), (30_000, 0.999, 20), (100_000, 0.999, 83)],
        *[(1000, 0.99, 4), (3000, 0.99, 20), (10_000, 0.99, 83), (100_000, 0.99, 948)],
    ],
)
def test_the_most_bad_that_still_pass(n, target, most):
    assert upper_bound(most, n) < allowed_share(target) <= upper_bound(most + 1, n)


@pytest.mark.parametrize(
    ("n", "ranks"),
    [(1000, (983, 997)), (3000, (2959, 2981)), (10_000, (9880, 9920)), (100_000, (98_938, 99_062))],
)
def test_the_interval_of_p99_lies_between_these_ranks(n, ranks):
    assert interval_ranks(n, 0.99) == ranks


def test_p99_has_no_upper_bound_below_368_samples():
    assert interval_ranks(367, 0.99)[1] is None
    assert interval_ranks(368, 0.99)[1] == 368


@given(st.integers(1, 400), st.sampled_from([0.5, 0.9, 0.95, 0.99]), st.randoms(use_true_random=False))
def test_quantile_intervals_are_those_of_scipy(n, p, random):
    values = np.sort([random.random() for _ in range(n)])
    expected = quantile_test(values, p=p).confidence_interval(0.95)
    low, high = interval_ranks(n, p)
    found = (math.nan if low is None else values[low - 1], math.nan if high is None else values[high - 1])
    np.testing.assert_equal(found, (expected.low, expected.high))


@given(st.integers(0, 500), st.integers(0, 2000), st.sampled_from([0.9, 0.95, 0.99]))
def test_bounds_are_those_of_the_exact_binomial_test(bad, good, confidence):
    n = bad + good
    if not n:
        assert (lower_bound(0, 0), upper_bound(0, 0)) == (0, 1)
        return
    below = binomtest(bad, n, alternative="less").proportion_ci(confidence, "exact")
    above = binomtest(bad, n, alternative="greater").proportion_ci(confidence, "exact")
    assert upper_bound(bad, n, confidence) == pytest.approx(below.high, rel=1e-9)
    assert lower_bound(bad, n, confidence) == pytest.approx(above.low, rel=1e-9)


@given(st.integers(0, 30), st.integers(0, 5000), st.sampled_from([0.9, 0.99, 0.999]))
def test_more_needed_is_the_very_first_number_that_is_enough(bad, good, target):
    n = bad + good
    more = more_needed(bad, n, target)
    allowed = allowed_share(target)
    assert upper_bound(bad, n + more) < allowed
    assert more == 0 or upper_bound(bad, n + more - 1) >= allowed


def test_a_quantile_wants_enough_samples_to_be_bounded():
    assert [samples_needed(p) for p in (0.5, 0.9, 0.95, 0.99, 0.999)] == [5, 29, 59, 299, 2995]
    assert samples_needed(0.05) == samples_needed(0.95)
    refused = quantile(np.arange(200.0), 0.999, "s")
    assert refused.value is None
    assert refused.note == "n = 200 is too few: P99.9 needs 2,995"


@pytest.mark.parametrize(
    ("n", "p", "rank"),
    [(100, 0.99, 99), (101, 0.99, 100), (1000, 0.999, 999), (100, 0.07, 7), (300, 0.29, 87), (10, 0.01, 1)],
)
def test_nearest_rank_is_not_fooled_by_binary_fractions(n, p, rank):
    assert nearest_rank(n, p) == rank


@given(st.integers(5, 300), st.sampled_from([0.5, 0.25, 0.75]))
def test_nearest_rank_is_the_inverted_distribution_function(n, p):
    values = np.arange(float(n))
    assert values[nearest_rank(n, p) - 1] == np.quantile(values, p, method="inverted_cdf")


def test_a_quantile_that_falls_on_failures_has_no_value():
    figure = quantile(np.array([1.0] * 390 + [np.inf] * 10), 0.99, "s")
    assert figure.value is None
    assert "failed" in figure.note


def test_an_infinite_upper_end_is_left_open():
    figure = quantile(np.array([1.0] * 398 + [np.inf] * 2), 0.99, "s")
    assert figure.value == 1.0
    assert figure.high is None


def test_gaps_of_one_stream_get_no_interval():
    figure = quantile(np.arange(1000.0), 0.99, "s", independent=False)
    assert figure.value == 989
    assert (figure.low, figure.high) == (None, None)


def test_a_distribution_leaves_out_what_is_undefined():
    found = distribution(np.array([3.0, np.nan, 1.0]), "ttft", "s")
    assert (found.n, found.minimum, found.mean, found.maximum) == (2, 1.0, 2.0, 3.0)
    assert found.quantiles["p50"].value is None
    assert distribution(np.array([np.nan]), "ttft", "s").n == 0


def test_a_share_has_its_two_sided_interval():
    figure = share(0, 3000)
    assert figure.high == pytest.approx(0.001229, rel=1e-3)
    assert share(0, 0).value is None


def test_mean_in_flight_is_the_time_average_of_what_overlaps_the_window():
    started = np.array([0.0, 5.0, 9.0, np.nan, 20.0])
    ended = np.array([10.0, 6.0, 30.0, np.nan, 21.0])
    figure = mean_in_flight(started, ended, (0.0, 10.0))
    assert figure.value == pytest.approx((10 + 1 + 1) / 10)
    assert figure.n == 3


def test_a_rate_of_an_empty_window_is_refused():
    assert per_second(10, (0.0, 4.0)).value == 2.5
    assert per_second(10, (4.0, 4.0)).value is None
    assert mean_in_flight(np.array([1.0]), np.array([2.0]), (4.0, 4.0)).value is None
