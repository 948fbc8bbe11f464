"""Whether a classifier is as often right as it is sure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NUM_BINS = 15


@dataclass(frozen=True)
class Bin:
    """Rows of one span of confidence.

    Attributes:
        low: its lower end, in [0, 1]; excluded, but for the first bin.
        high: its upper end, included.
        count: rows in it.
        confidence: their mean confidence; the span's middle where there are none.
        accuracy: the fraction of them that is right; 0 where there are none.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability_bins(
    confidence: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_], num_bins: int = NUM_BINS
) -> list[Bin]:
    """Return equally wide bins of confidence, in order.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) whether the prediction is right.
        num_bins: how many bins.

    Raises:
        ValueError: the lengths differ, a confidence is outside [0, 1] or no number, or there is no bin.
    """
    if confidence.shape != correct.shape or confidence.ndim != 1:
        raise ValueError(f"confidence of shape {confidence.shape} does not fit correct of shape {correct.shape}")
    if num_bins < 1:
        raise ValueError(f"num_bins is {num_bins}; it must be at least 1")
    values = confidence.astype(np.float64)
    # Softmax in float32 sums to 1 within a few units in the last place.
    if len(values) and not (values.min() >= 0 and values.max() <= 1 + 1e-5):
        raise ValueError("a confidence is outside 0 to 1")
    index = np.clip(np.ceil(values * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    counts = np.bincount(index, minlength=num_bins)
    sums = np.bincount(index, weights=values, minlength=num_bins)
    hits = np.bincount(index, weights=correct.astype(np.float64), minlength=num_bins)
    return [
        Bin(
            low=number / num_bins,
            high=(number + 1) / num_bins,
            count=int(count),
            confidence=float(sums[number] / count) if count else (number + 0.5) / num_bins,
            accuracy=float(hits[number] / count) if count else 0.0,
        )
        for number, count in enumerate(counts)
    ]


def expected_calibration_error(bins: list[Bin]) -> float:
    """Return the mean gap between confidence and accuracy, weighted by rows (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    0 without rows.
    """
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.accuracy - each.confidence) for each in bins) / total if total else 0.0


def mean_log_loss(label_probability: npt.NDArray[np.floating]) -> float:
    """Return the mean negative log-probability of the true class, in nats; 0 without rows.

    A probability that underflowed to 0 counts as the smallest float32, so that one row can't make the mean infinite.
    """
    if not len(label_probability):
        return 0.0
    smallest = float(np.finfo(np.float32).tiny)
    return float(-np.log(np.maximum(label_probability.astype(np.float64), smallest)).mean())
