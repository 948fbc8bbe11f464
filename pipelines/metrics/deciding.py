"""Which figure decides between two networks, by what labels the data has, and when an image is said to have one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

THRESHOLD = 0.5
"""Several labels an image: the probability from which a class is said to be there. It is written into every package, so
that all who use it agree."""

_BY_TASK = {"single": "top1", "multi": "map"}
_IN_WORDS = {"top1": "top-1", "map": "mean average precision"}


def deciding_figure(task: str) -> str:
    """Return the name of the figure that decides: `top1` for one label an image, `map` for several."""
    return _BY_TASK[task]


def find_deciding(figures: Mapping[str, Any], prefix: str = "") -> str:
    """Return which of some figures decides, its prefix (`val_`) included."""
    several = prefix + _BY_TASK["multi"]
    return several if figures.get(several) is not None else prefix + _BY_TASK["single"]


def in_words(figure: str) -> str:
    """Return what a deciding figure is called in a sentence."""
    return _IN_WORDS[figure]
