"""How good yes-or-no answers per class are, where an image may have any number of labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.metrics.accuracy import ClassScore, score_counts
from pipelines.metrics.deciding import THRESHOLD

Scores = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]


def average_precisions(scores: Scores, targets: Mask) -> npt.NDArray[np.float64]:
    """Return the average precision of each class, (C,): the mean over its rows of the precision at their scores.

    Sum of (recall_n - recall_n-1) x precision_n over distinct scores from the highest, without interpolation (Manning,
    Raghavan, Schuetze 2008, sec. 8.4); rows of one score count together, so that their order does not matter.
    Not-a-number for a class without rows; a score that is no number counts as the lowest.

    Args:
        scores: (N, C), the higher the surer.
        targets: (N, C), which classes each row has.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(scores, targets)
    found = np.full(scores.shape[1], np.nan)
    known = np.where(np.isnan(scores), -np.inf, scores)
    for number in range(scores.shape[1]):
        if not targets[:, number].any():
            continue
        order = np.argsort(-known[:, number], kind="stable")
        ranked, hits = known[order, number], np.cumsum(targets[order, number])
        ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # last row of each score
        gained = np.diff(hits[ends], prepend=0) / hits[-1]
        found[number] = float((gained * hits[ends] / (ends + 1)).sum())
    return found


def mean_average_precision(scores: Scores, targets: Mask) -> float:
    """Return the mean of `average_precisions` over the classes that have rows; 0 when none has."""
    return mean_of_known(average_precisions(scores, targets))


def mean_of_known(precisions: npt.NDArray[np.float64]) -> float:
    """Return the mean of average precisions over the classes that have rows; 0 when none has."""
    known = precisions[~np.isnan(precisions)]
    return float(known.mean()) if len(known) else 0.0


def label_scores(scores: Scores, targets: Mask, threshold: float = THRESHOLD) -> list[ClassScore]:
    """Return support, precision, recall and F1 of each class, a class being said where its score is the threshold."""
    _check(scores, targets)
    said = scores >= threshold
    counts = (targets.sum(0), said.sum(0), (targets & said).sum(0))
    return [score_counts(int(a), int(b), int(c)) for a, b, c in zip(*counts, strict=True)]


def micro_f1(scores: list[ClassScore]) -> float:
    """Return the F1 of all answers together, rare classes weighing as little as they occur; 0 without any."""
    total = sum(score.support + score.predicted for score in scores)
    return 2 * sum(score.correct for score in scores) / total if total else 0.0


def exact_rows(scores: Scores, targets: Mask, threshold: float = THRESHOLD) -> Mask:
    """Return which rows (N,) have all their classes told and no other."""
    _check(scores, targets)
    return np.asarray(((scores >= threshold) == targets).all(axis=1))


def binary_log_loss(scores: Scores, targets: Mask) -> float:
    """Return the mean over rows of the negative log-probability of all their labels, in nats; 0 without rows."""
    _check(scores, targets)
    if not len(scores):
        return 0.0
    smallest = float(np.finfo(np.float32).tiny)
    right = np.where(targets, scores, 1.0 - scores.astype(np.float64))
    return float(-np.log(np.maximum(right, smallest)).sum(axis=1).mean())


def _check(scores: Scores, targets: Mask) -> None:
    if scores.ndim != 2 or targets.shape != scores.shape:
        raise ValueError(f"scores of shape {scores.shape} do not fit targets of shape {targets.shape}")
