"""Whether one classifier is better than another on the same rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.metrics.intervals import Interval

_EXACT_UP_TO = 100_000  # disagreements; above, the normal approximation is good to four digits


@dataclass(frozen=True)
class PairedTest:
    """Rows on which exactly one of two classifiers is right.

    Attributes:
        only_first: rows that only the first has right.
        only_second: rows that only the second has right.
        p_value: two-sided probability of a split at least this uneven if both were equally good.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first_correct: npt.NDArray[np.bool_], second_correct: npt.NDArray[np.bool_]) -> PairedTest:
    """Return McNemar's exact test (McNemar 1947) of two classifiers on the same rows.

    Raises:
        ValueError: the lengths differ.
    """
    _check(first_correct, second_correct)
    first = int((first_correct & ~second_correct).sum())
    second = int((~first_correct & second_correct).sum())
    return PairedTest(first, second, _two_sided(first, second))


def bootstrap_difference(
    first_correct: npt.NDArray[np.bool_],
    second_correct: npt.NDArray[np.bool_],
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, Interval]:
    """Return accuracy(second) - accuracy(first) and its percentile bootstrap interval over rows.

    Only three numbers matter of each resample (rows for the first, for the second, undecided), so that a
    multinomial draw stands for drawing rows: no memory, whatever the number of rows.

    Raises:
        ValueError: the lengths differ, or there are no rows.
    """
    _check(first_correct, second_correct)
    num_rows = len(first_correct)
    if num_rows == 0:
        raise ValueError("there are no rows to compare on")
    first = int((first_correct & ~second_correct).sum())
    second = int((~first_correct & second_correct).sum())
    shares = np.array([first, second, num_rows - first - second]) / num_rows
    draws = np.random.default_rng(seed).multinomial(num_rows, shares, size=num_resamples)
    differences = (draws[:, 1] - draws[:, 0]) / num_rows
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return (second - first) / num_rows, (float(low), float(high))


def _two_sided(first: int, second: int) -> float:
    total = first + second
    if total == 0:
        return 1.0
    fewer = min(first, second)
    if total > _EXACT_UP_TO:
        z = max(0.0, abs(first - second) - 1) / math.sqrt(total)
        return math.erfc(z / math.sqrt(2))
    log_half = total * math.log(0.5)
    log_total = math.lgamma(total + 1)
    tail = math.fsum(
        math.exp(log_total - math.lgamma(i + 1) - math.lgamma(total - i + 1) + log_half) for i in range(fewer + 1)
    )
    return min(1.0, 2 * tail)


def _check(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> None:
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"answers of shapes {first.shape} and {second.shape} are not of the same rows")
