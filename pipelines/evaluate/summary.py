"""From answers to figures: what the catalog says of a network."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.evaluate.predict import TOP_K, Answers
from pipelines.metrics.accuracy import ClassScore, accuracy_of_ranks, balanced_accuracy, class_scores, macro_f1
from pipelines.metrics.calibration import expected_calibration_error, mean_log_loss, reliability_bins
from pipelines.metrics.confusion import confusion_matrix
from pipelines.metrics.intervals import wilson


@dataclass(frozen=True)
class Summary:
    """The figures of an evaluation, as JSON values.

    Attributes:
        metrics: name to value; fractions are 0 to 1. `top1_low` and `top1_high` are the 95% interval of `top1`;
            `leaked_rows` are labelled rows that stand in the dataset's train split too, or look like one there.
        per_class: one entry a class, in class order.
        confusion: counts; row is the true class, column the predicted one. Empty where images have several labels.
        reliability: bins of confidence.
    """

    metrics: dict[str, float | int]
    per_class: list[dict[str, Any]]
    confusion: list[list[int]]
    reliability: list[dict[str, float]]


def summarize(answers: Answers, *, num_bins: int, leaked: npt.NDArray[np.bool_] | None = None) -> Summary:
    """Return the figures over the rows that have a label; without such rows all figures are 0.

    Args:
        answers: one per row (N,).
        num_bins: bins of confidence.
        leaked: which rows (N,) training has too; with it, the figures say how it goes without them.
    """
    labelled = answers.labelled
    ranks, targets = answers.ranks[labelled], answers.targets[labelled]
    confusion = confusion_matrix(targets, answers.predicted[labelled], len(answers.classes))
    scores = class_scores(confusion)
    correct = ranks == 1
    bins = reliability_bins(answers.probability[labelled], correct, num_bins)
    low, high = wilson(int(correct.sum()), len(correct))
    metrics: dict[str, float | int] = {
        "top1": accuracy_of_ranks(ranks, 1),
        "top1_low": low,
        "top1_high": high,
        f"top{TOP_K}": accuracy_of_ranks(ranks, TOP_K),
        "ece": expected_calibration_error(bins),
        "log_loss": mean_log_loss(answers.label_probability[labelled]),
        "macro_f1": macro_f1(scores),
        "balanced_accuracy": balanced_accuracy(scores),
        "rows": len(answers.image_ids),
        "labelled_rows": int(np.count_nonzero(labelled)),
        "correct_rows": int(correct.sum()),
        **({} if leaked is None else _without(correct, leaked[labelled])),
    }
    per_class = [class_entry(name, score) for name, score in zip(answers.classes, scores, strict=True)]
    return Summary(metrics, per_class, confusion.tolist(), [asdict(each) for each in bins])


def class_entry(name: str, score: ClassScore) -> dict[str, Any]:
    """Return what the catalog says of a class."""
    return {
        "label": name,
        "support": score.support,
        "predicted": score.predicted,
        "correct": score.correct,
        "precision": score.precision,
        "precision_low": score.precision_interval[0],
        "precision_high": score.precision_interval[1],
        "recall": score.recall,
        "recall_low": score.recall_interval[0],
        "recall_high": score.recall_interval[1],
        "f1": score.f1,
    }


def _without(correct: npt.NDArray[np.bool_], leaked: npt.NDArray[np.bool_]) -> dict[str, float | int]:
    """Return accuracy over the rows that training has not, with its 95% interval, and how many it has."""
    clean = correct[~leaked]
    low, high = wilson(int(clean.sum()), len(clean))
    return {
        "leaked_rows": int(leaked.sum()),
        "top1_without_leaks": float(clean.mean()) if len(clean) else 0.0,
        "top1_without_leaks_low": low,
        "top1_without_leaks_high": high,
    }
