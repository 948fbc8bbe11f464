"""Intervals, calibration and paired tests, against figures from the literature or worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.metrics.calibration import expected_calibration_error, mean_log_loss, reliability_bins
from pipelines.metrics.intervals import wilson
from pipelines.metrics.paired import bootstrap_difference, mcnemar


def test_wilson_against_published_values() -> None:
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_wilson_holds_the_fraction_and_stays_in_range(a: int, b: int) -> None:
    low, high = wilson(a, a + b)
    assert 0 <= low <= (a / (a + b) if a + b else 0.5) <= high <= 1
    mirrored = wilson(b, a + b)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)


def test_wilson_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)
    with pytest.raises(ValueError, match=r"confidence is 1; it must be between 0 and 1"):
        wilson(1, 2, confidence=1)


def test_bins_and_ece_worked_by_hand() -> None:
    confidence = np.array([0.05, 0.15, 0.15, 0.95, 1.0])
    correct = np.array([False, True, False, True, True])
    bins = reliability_bins(confidence, correct, num_bins=10)
    assert [each.count for each in bins] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (bins[1].accuracy, bins[1].confidence) == (0.5, pytest.approx(0.15))
    assert (bins[9].accuracy, bins[9].confidence) == (1.0, pytest.approx(0.975))
    expected = (1 * 0.05 + 2 * 0.35 + 2 * 0.025) / 5
    assert expected_calibration_error(bins) == pytest.approx(expected)


def test_a_confidence_on_a_border_belongs_to_the_lower_bin() -> None:
    assert [each.count for each in reliability_bins(np.array([0.0, 0.5, 1.0]), np.ones(3, bool), 2)] == [2, 1]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=50), st.integers(1, 20))
def test_bins_hold_every_row_and_ece_is_a_fraction(rows: list[tuple[float, bool]], num_bins: int) -> None:
    confidence = np.array([value for value, _ in rows], dtype=np.float64)
    correct = np.array([hit for _, hit in rows], dtype=bool)
    bins = reliability_bins(confidence, correct, num_bins)
    assert sum(each.count for each in bins) == len(rows)
    assert 0 <= expected_calibration_error(bins) <= 1
    # Never less than the gap of the means: the triangle inequality over bins.
    if rows:
        assert expected_calibration_error(bins) >= abs(confidence.mean() - correct.mean()) - 1e-9


def test_a_perfectly_calibrated_classifier_has_a_small_error() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0, 1, 200_000)
    correct = random.uniform(0, 1, 200_000) < confidence
    assert expected_calibration_error(reliability_bins(confidence, correct)) < 0.005


def test_bins_refuse_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match="a confidence is outside 0 to 1"):
        reliability_bins(np.array([0.5, math.nan]), np.ones(2, bool))
    with pytest.raises(ValueError, match="num_bins is 0"):
        reliability_bins(np.array([0.5]), np.ones(1, bool), 0)


def test_log_loss_is_finite_for_an_impossible_answer() -> None:
    assert mean_log_loss(np.array([1.0, math.exp(-2)])) == pytest.approx(1.0)
    assert 80 < mean_log_loss(np.array([0.0], dtype=np.float32)) < 90
    assert mean_log_loss(np.array([])) == 0.0


def test_mcnemar_is_the_exact_binomial_test() -> None:
    first = np.array([True] * 12 + [False] * 2 + [True] * 50)
    second = np.array([False] * 12 + [True] * 2 + [True] * 50)
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second) == (12, 2)
    assert result.p_value == pytest.approx(2 * sum(math.comb(14, i) for i in range(3)) / 2**14)


def test_mcnemar_without_disagreement_says_nothing() -> None:
    same = np.array([True, False])
    assert mcnemar(same, same).p_value == 1.0
    even = mcnemar(np.array([True, False]), np.array([False, True]))
    assert even.p_value == 1.0


def test_mcnemar_goes_over_to_the_normal_law_smoothly(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = np.zeros(2000, bool), np.zeros(2000, bool)
    first[:960], second[960:] = True, True
    exact = mcnemar(first, second).p_value
    monkeypatch.setattr("pipelines.metrics.paired._EXACT_UP_TO", 10)
    assert mcnemar(first, second).p_value == pytest.approx(exact, rel=0.01)


def test_bootstrap_holds_the_difference_and_repeats() -> None:
    random = np.random.default_rng(1)
    first = random.uniform(size=4000) < 0.80
    second = random.uniform(size=4000) < 0.85
    difference, (low, high) = bootstrap_difference(first, second, seed=3)
    assert difference == pytest.approx(second.mean() - first.mean())
    assert low < difference < high
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt((0.8 * 0.2 + 0.85 * 0.15) / 4000), rel=0.15)
    assert bootstrap_difference(first, second, seed=3) == (difference, (low, high))


def test_paired_tests_refuse_other_rows() -> None:
    with pytest.raises(ValueError, match=r"answers of shapes \(1,\) and \(2,\) are not of the same rows"):
        mcnemar(np.ones(1, bool), np.ones(2, bool))
    with pytest.raises(ValueError, match="there are no rows to compare on"):
        bootstrap_difference(np.ones(0, bool), np.ones(0, bool))
