"""How often a classifier is right: ranks, top-k, and precision, recall and F1 per class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.metrics.intervals import Interval, wilson


@dataclass(frozen=True)
class ClassScore:
    """What one class is worth.

    Attributes:
        support: rows whose true class it is.
        predicted: rows that were called it.
        correct: rows that are both.
        precision: correct / predicted; 0 where nothing was called it.
        recall: correct / support; 0 where no row is of it.
        f1: harmonic mean of the two.
        precision_interval: 95% Wilson interval.
        recall_interval: 95% Wilson interval.
    """

    support: int
    predicted: int
    correct: int
    precision: float
    recall: float
    f1: float
    precision_interval: Interval
    recall_interval: Interval


def label_ranks(scores: npt.NDArray[np.floating], targets: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return the rank of each row's true class, 1 for the highest score.

    Equal scores are ranked by class number, as `argmax` takes the first; a row with a score that is no number ranks
    its class last, since it can't count as right.

    Args:
        scores: (N, C) logits or probabilities.
        targets: (N,) class numbers of 0 to C - 1.

    Raises:
        ValueError: the shapes do not fit, or a target is no class.
    """
    _check(scores, targets)
    num_rows, num_classes = scores.shape
    own = scores[np.arange(num_rows), targets][:, None]
    before = np.arange(num_classes)[None, :] < targets[:, None]
    ranks = 1 + (scores > own).sum(axis=1) + ((scores == own) & before).sum(axis=1)
    ranks[np.isnan(scores).any(axis=1)] = num_classes
    return np.asarray(ranks, dtype=np.int64)


def top_k_accuracy(scores: npt.NDArray[np.floating], targets: npt.NDArray[np.integer], k: int = 1) -> float:
    """Return the fraction of rows whose true class is among the `k` highest scores; 0 for no rows."""
    return accuracy_of_ranks(label_ranks(scores, targets), k)


def accuracy_of_ranks(ranks: npt.NDArray[np.integer], k: int = 1) -> float:
    """Return the fraction of ranks up to `k`; 0 for no rows.

    Raises:
        ValueError: `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    return float((ranks <= k).mean()) if len(ranks) else 0.0


def class_scores(confusion: npt.NDArray[np.integer]) -> list[ClassScore]:
    """Return the scores of every class from a confusion matrix (rows: true class, columns: predicted)."""
    supports, calls, hits = confusion.sum(axis=1), confusion.sum(axis=0), np.diag(confusion)
    return [score_counts(*counts) for counts in zip(supports.tolist(), calls.tolist(), hits.tolist(), strict=True)]


def score_counts(support: int, predicted: int, correct: int) -> ClassScore:
    """Return the score of a class from its rows, the rows that were called it, and those that are both."""
    total = support + predicted
    return ClassScore(
        support=support,
        predicted=predicted,
        correct=correct,
        precision=correct / predicted if predicted else 0.0,
        recall=correct / support if support else 0.0,
        f1=2 * correct / total if total else 0.0,
        precision_interval=wilson(correct, predicted),
        recall_interval=wilson(correct, support),
    )


def macro_f1(scores: list[ClassScore]) -> float:
    """Return the mean F1 over the classes that have rows; 0 when none has."""
    present = [score.f1 for score in scores if score.support]
    return sum(present) / len(present) if present else 0.0


def balanced_accuracy(scores: list[ClassScore]) -> float:
    """Return the mean recall over the classes that have rows; 0 when none has."""
    present = [score.recall for score in scores if score.support]
    return sum(present) / len(present) if present else 0.0


def _check(scores: npt.NDArray[np.floating], targets: npt.NDArray[np.integer]) -> None:
    if scores.ndim != 2 or targets.shape != scores.shape[:1]:
        raise ValueError(f"scores of shape {scores.shape} do not fit targets of shape {targets.shape}")
    if len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < scores.shape[1]):
        raise ValueError(f"targets of {targets.min()} to {targets.max()} do not fit {scores.shape[1]} classes")
