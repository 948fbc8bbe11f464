"""Ranks, top-k and class scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.metrics.accuracy import (
    balanced_accuracy,
    class_scores,
    label_ranks,
    macro_f1,
    top_k_accuracy,
)
from pipelines.metrics.confusion import confusion_matrix


@st.composite
def scored_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    rows, classes = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    # Few distinct values, so that ties are common.
    values = draw(st.lists(st.integers(0, 3), min_size=rows * classes, max_size=rows * classes))
    targets = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    return np.array(values, dtype=np.float32).reshape(rows, classes), np.array(targets)


@given(scored_rows())
def test_rank_one_is_what_argmax_takes(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, targets = case
    assert ((label_ranks(scores, targets) == 1) == (scores.argmax(axis=1) == targets)).all()


@given(scored_rows())
def test_ranks_are_places_in_a_stable_sort(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, targets = case
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = [list(row).index(target) + 1 for row, target in zip(order, targets, strict=True)]
    assert label_ranks(scores, targets).tolist() == expected


@given(scored_rows())
def test_top_k_grows_to_one(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, targets = case
    curve = [top_k_accuracy(scores, targets, k) for k in range(1, scores.shape[1] + 1)]
    assert curve == sorted(curve)
    assert curve[-1] == 1.0


def test_a_score_that_is_no_number_is_never_right() -> None:
    scores = np.array([[np.nan, 0.1, 0.2], [0.1, 0.9, 0.0]])
    assert label_ranks(scores, np.array([0, 1])).tolist() == [3, 1]


def test_no_rows_give_zero() -> None:
    assert top_k_accuracy(np.zeros((0, 3)), np.zeros(0, dtype=int)) == 0.0


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores of shape \(2, 3\) do not fit targets of shape \(3,\)"):
        label_ranks(np.zeros((2, 3)), np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="targets of 0 to 3 do not fit 3 classes"):
        label_ranks(np.zeros((2, 3)), np.array([0, 3]))
    with pytest.raises(ValueError, match="k is 0; it must be at least 1"):
        top_k_accuracy(np.zeros((1, 1)), np.array([0]), 0)


def test_class_scores_of_a_matrix_worked_by_hand() -> None:
    #          predicted: a  b  c
    matrix = np.array([[8, 2, 0], [1, 4, 0], [0, 0, 0]])
    a, b, c = class_scores(matrix)
    assert (a.support, a.predicted, a.correct) == (10, 9, 8)
    assert (a.precision, a.recall) == (8 / 9, 0.8)
    assert a.f1 == pytest.approx(2 * (8 / 9) * 0.8 / (8 / 9 + 0.8))
    assert (b.precision, b.recall) == (4 / 6, 0.8)
    assert (c.precision, c.recall, c.f1, c.recall_interval) == (0.0, 0.0, 0.0, (0.0, 1.0))
    assert balanced_accuracy([a, b, c]) == pytest.approx(0.8)  # a class without rows does not count
    assert macro_f1([a, b, c]) == pytest.approx((a.f1 + b.f1) / 2)


@given(st.integers(1, 5), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_confusion_counts_every_row_once(num_classes: int, rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    targets, predicted = random.integers(0, num_classes, (2, rows))
    matrix = confusion_matrix(targets, predicted, num_classes)
    assert matrix.shape == (num_classes, num_classes)
    assert matrix.sum() == rows
    assert np.trace(matrix) == (targets == predicted).sum()
    assert (matrix.sum(axis=1) == np.bincount(targets, minlength=num_classes)).all()


def test_confusion_row_is_the_true_class() -> None:
    assert confusion_matrix(np.array([0]), np.array([1]), 2).tolist() == [[0, 1], [0, 0]]


def test_confusion_refuses_what_is_no_class() -> None:
    with pytest.raises(ValueError, match="a prediction lies outside the 2 classes"):
        confusion_matrix(np.array([0]), np.array([-1]), 2)
    with pytest.raises(ValueError, match=r"targets of shape \(1,\) do not fit predictions of shape \(2,\)"):
        confusion_matrix(np.array([0]), np.array([1, 1]), 2)
