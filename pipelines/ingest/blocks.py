"""Images that go to a split together: groups that must not straddle, and equal times, from newest to oldest.

Blocks are given in an order (hash of the group, or newest first); test takes blocks until its images reach its share,
then val, and the last block is always for training.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from pipelines.errors import ConfigError

_YEAR_OR_MONTH = re.compile(r"^\d{4}(-\d{2})?$")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def block_ends(sizes: Sequence[int], shares: Mapping[str, float]) -> tuple[int, int]:
    """Return how many leading blocks are test, and how many are test or val.

    Args:
        sizes: images of each block, in order.
        shares: share of each split, 0 to 1.
    """
    total = sum(sizes)
    test_goal, val_goal = shares["test"] * total, (shares["test"] + shares["val"]) * total
    test_end = _reach(sizes, test_goal, 0, 0)
    val_end = _reach(sizes, val_goal, test_end, sum(sizes[:test_end]))
    last = max(len(sizes) - 1, 0)  # what cannot be learned need not be measured
    return min(test_end, last), min(val_end, last)


def _reach(sizes: Sequence[int], goal: float, start: int, images: int) -> int:
    """Return the number of leading blocks, at least `start`, whose images first reach the goal."""
    end = start
    while end < len(sizes) and images < goal - 1e-9:
        images += sizes[end]
        end += 1
    return end


def time_cutoffs(times: Iterable[float], shares: Mapping[str, float]) -> tuple[float | None, float | None]:
    """Return the first times of test and of val; None where that split takes nothing. Earlier ones are train."""
    counts = Counter(times)
    newest_first = sorted(counts, reverse=True)
    test_end, val_end = block_ends([counts[time] for time in newest_first], shares)
    test_from = newest_first[test_end - 1] if test_end else None
    val_from = newest_first[val_end - 1] if val_end > test_end else None
    return test_from, val_from


def clock_of(keys: Sequence[str], values: Sequence[str | None], column: str) -> str:
    """Return how a column of times is written: "number" or "date" (ISO 8601).

    Args:
        keys: the images, for the message; empty where it must not name them.
        values: what stands in the column, in their order.
        column: its name, for the message.

    Raises:
        ConfigError: an image has no time, or what it has is neither, or both are mixed.
    """
    odd = {
        clock: [place for place, value in enumerate(values) if read_time(value, clock) is None]
        for clock in ("number", "date")
    }
    clock = min(odd, key=lambda clock: len(odd[clock]))
    if odd[clock]:
        raise time_fault(column, values[odd[clock][0]], keys[odd[clock][0]])
    return clock


def time_fault(column: str, value: str | None, key: str) -> ConfigError:
    """Return the error for an image whose time cannot be read; without a key it says nothing that is in the table."""
    image = f"split.time is {column}, and {key or 'an image'} has"
    if not value or not value.strip():
        return ConfigError(
            f"{image} nothing there", mend="give every image a time, or divide by something else: split.by"
        )
    return ConfigError(
        f"{image} {repr(value) if key else 'something'} there, which is no time",
        mend="write all times as numbers or all as ISO 8601, for example 2024-05-31 or 2024-05-31T14:00:00Z",
    )


def read_time(value: str | None, clock: str) -> float | None:
    """Return a time on its clock's scale (dates: seconds since 1970, UTC where they name no zone); None for none."""
    if value is None:
        return None
    text = value.strip()
    if clock == "number":
        try:
            number = float(text)
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    if _YEAR_OR_MONTH.match(text):
        text += "-01" if "-" in text else "-01-01"
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH).total_seconds()
