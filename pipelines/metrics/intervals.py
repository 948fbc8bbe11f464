"""How far a measured fraction may be from the true one."""

from __future__ import annotations

import math
from statistics import NormalDist

Interval = tuple[float, float]


def wilson(successes: int, total: int, confidence: float = 0.95) -> Interval:
    """Return the score interval of a fraction (Wilson 1927), lower and upper end in [0, 1].

    Unlike the textbook interval it never leaves [0, 1] and stays honest at 0 and 100% and for few rows. Without rows
    nothing is known: (0, 1).

    Raises:
        ValueError: `successes` is not within 0 to `total`, or `confidence` is not between 0 and 1.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} successes of {total}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be between 0 and 1")
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    fraction = successes / total
    denominator = 1 + z * z / total
    centre = (fraction + z * z / (2 * total)) / denominator
    half = z / denominator * math.sqrt(fraction * (1 - fraction) / total + z * z / (4 * total * total))
    # At the ends the formula is exact but for rounding.
    lower = 0.0 if successes == 0 else max(0.0, centre - half)
    upper = 1.0 if successes == total else min(1.0, centre + half)
    return lower, upper
