from __future__ import annotations

import math

import numpy as np
import pytest

from pipelines.metrics import multilabel
from pipelines.metrics.accuracy import macro_f1
from pipelines.metrics.deciding import deciding_figure, find_deciding

SCORES = np.array([[0.9, 0.2, 0.1], [0.8, 0.7, 0.2], [0.7, 0.6, 0.3], [0.6, 0.5, 0.4]], dtype=np.float32)
TARGETS = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]], dtype=bool)


def test_average_precision_by_hand() -> None:
    found = multilabel.average_precisions(SCORES, TARGETS)
    # class 0: hits at ranks 1 and 3; class 1: at ranks 1 and 3; class 2 has no row
    assert found[:2] == pytest.approx([(1 + 2 / 3) / 2, (1 + 2 / 3) / 2])
    assert math.isnan(found[2])
    assert multilabel.mean_average_precision(SCORES, TARGETS) == pytest.approx(5 / 6)


def test_average_precision_against_the_definition_on_random_scores_with_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 6, (40, 3)) / 5
        targets = rng.random((40, 3)) < 0.3
        found = multilabel.average_precisions(scores, targets)
        for number in range(3):
            before, expected = 0.0, 0.0
            for level in sorted(set(scores[:, number]), reverse=True):
                said = scores[:, number] >= level
                recall = (said & targets[:, number]).sum() / targets[:, number].sum()
                expected += (recall - before) * (said & targets[:, number]).sum() / said.sum()
                before = recall
            assert found[number] == pytest.approx(expected, abs=1e-12)
        order = rng.permutation(40)
        assert multilabel.average_precisions(scores[order], targets[order]) == pytest.approx(found)


def test_average_precision_is_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    scores, targets = rng.random((200, 5)), rng.random((200, 5)) < 0.2
    expected = sklearn.average_precision_score(targets, scores, average=None)
    assert multilabel.average_precisions(scores, targets) == pytest.approx(expected, abs=1e-12)


def test_f1_of_each_kind_and_exact_rows() -> None:
    scores = multilabel.label_scores(SCORES, TARGETS)
    assert [(s.support, s.predicted, s.correct) for s in scores] == [(2, 4, 2), (2, 3, 2), (0, 0, 0)]
    assert macro_f1(scores) == pytest.approx((4 / 6 + 4 / 5) / 2)  # over the classes that have rows
    assert multilabel.micro_f1(scores) == pytest.approx(8 / 11)
    assert multilabel.exact_rows(SCORES, TARGETS).tolist() == [True, False, False, False]
    assert multilabel.label_scores(SCORES, TARGETS, 0.85)[0].predicted == 1
    assert multilabel.micro_f1([]) == 0.0


def test_scores_that_are_no_numbers_are_the_lowest() -> None:
    scores = np.array([[np.nan], [0.1]])
    assert multilabel.average_precisions(scores, np.array([[True], [False]])) == pytest.approx([0.5])
    assert multilabel.average_precisions(scores, np.array([[False], [True]])) == pytest.approx([1.0])
    assert multilabel.exact_rows(scores, np.array([[True], [False]])).tolist() == [False, True]


def test_log_loss_counts_every_class_and_stays_finite() -> None:
    scores = np.array([[0.5, 0.25], [1.0, 0.0]], dtype=np.float32)
    targets = np.array([[True, False], [True, False]])
    assert multilabel.binary_log_loss(scores, targets) == pytest.approx((-math.log(0.5) - math.log(0.75)) / 2)
    assert math.isfinite(multilabel.binary_log_loss(1 - scores, targets))
    assert multilabel.binary_log_loss(scores[:0], targets[:0]) == 0.0


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores of shape \(4, 3\) do not fit targets of shape \(4, 2\)"):
        multilabel.average_precisions(SCORES, TARGETS[:, :2])


def test_the_deciding_figure_follows_the_labels() -> None:
    assert (deciding_figure("single"), deciding_figure("multi")) == ("top1", "map")
    assert find_deciding({"val_top1": 0.5, "val_loss": 1.0}, "val_") == "val_top1"
    assert find_deciding({"val_top1": None, "val_map": 0.5}, "val_") == "val_map"
    assert find_deciding({"map": 0.0}) == "map"
