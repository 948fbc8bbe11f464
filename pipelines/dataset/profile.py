"""What a dataset's small columns tell of it: sizes, quality, and properties that give a label away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.dataset.inspect import quarantined
from pipelines.dataset.reader import Dataset
from pipelines.image.preprocess import Preprocess

DARK, BRIGHT, FLAT, BLURRED, LONG = 0.1, 0.95, 0.02, 0.02, 3.0
"""Below or above which a picture is worth a look: mean grey, mean grey, deviation, sharpness, long by short side."""
TELLING = 0.25
"""Share of a property's variance between classes, or Cramer's V, from which it may give the label away."""

PROPERTIES = ("brightness", "contrast", "sharpness", "source_width", "source_height", "aspect")
_COLUMNS = (
    "image_id", "key", "label", "source_format", "source_width", "source_height", "brightness", "contrast", "sharpness",
)  # fmt: skip
_OUTLIERS = 8

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """The figures of a dataset, as plain values for JSON and pages.

    Attributes:
        properties: name -> quantiles (min, 5%, 50%, 95%, max) over all live rows.
        by_split: split -> name -> mean.
        formats: format of the source files -> images.
        outliers: kind -> (images, the most extreme rows, each with split and row).
        telling: name -> share of variance between classes (eta squared), or Cramer's V for `format`.
        cropped_away: mean share of the pixels that the stored geometry cuts off, 0 to 1.
        refused: reason -> members.
        refused_bias: chance of so uneven a refusal over classes if classes had nothing to do with it (chi-square).
    """

    properties: dict[str, list[float]]
    by_split: dict[str, dict[str, float]]
    formats: dict[str, int]
    outliers: dict[str, tuple[int, list[dict[str, Any]]]]
    telling: dict[str, float]
    cropped_away: float
    refused: dict[str, int]
    refused_bias: float | None


def make_profile(dataset: Dataset) -> Profile:
    """Return the profile of a version's live rows; only small columns are read."""
    rows: list[dict[str, Any]] = []
    for split in dataset.splits:
        rows += [
            {**row, "split": split, "row": place}
            for place, row in enumerate(dataset.table(split, _COLUMNS).to_pylist())
        ]
    for row in rows:
        row["aspect"] = max(row["source_width"], row["source_height"]) / min(row["source_width"], row["source_height"])
    values = {name: np.array([row[name] for row in rows], np.float64) for name in PROPERTIES}
    splits = np.array([row["split"] for row in rows])
    labels = [row["label"] for row in rows]
    refused = quarantined(dataset)
    return Profile(
        properties={
            name: np.quantile(of, [0, 0.05, 0.5, 0.95, 1]).round(4).tolist() for name, of in values.items() if len(of)
        },
        by_split={
            split: {name: round(float(of[splits == split].mean()), 4) for name, of in values.items()}
            for split in dataset.splits
            if (splits == split).any()
        },
        formats=dict(Counter(row["source_format"] for row in rows).most_common()),
        outliers=_outliers(rows, values),
        telling={
            **{name: round(between_classes(of, labels), 4) for name, of in values.items()},
            "format": round(cramers_v([row["source_format"] for row in rows], labels), 4),
        },
        cropped_away=round(_cropped_away(dataset, rows), 4),
        refused=dict(Counter(str(row["reason"]) for row in refused).most_common()),
        refused_bias=_bias(Counter(labels), Counter(row["label"] for row in refused)),
    )


def between_classes(values: Floats, labels: Sequence[str | None]) -> float:
    """Return the share of the variance of a property that lies between classes (eta squared), 0 to 1.

    1 means that the property alone tells the class of every image apart from its own noise; 0, that it tells nothing.
    """
    classes, index = np.unique([label or "" for label in labels], return_inverse=True)
    total = float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0
    if len(classes) < 2 or total <= 1e-12:
        return 0.0
    counts = np.bincount(index)
    means = np.bincount(index, weights=values) / counts
    return float((counts * (means - values.mean()) ** 2).sum()) / total


def cramers_v(values: Sequence[str], labels: Sequence[str | None]) -> float:
    """Return Cramer's V of two lists of names, 0 (nothing to do with each other) to 1 (one gives the other)."""
    table = _table(values, [label or "" for label in labels])
    smallest = min(table.shape) - 1
    return float(np.sqrt(_chi_square(table) / (table.sum() * smallest))) if smallest > 0 else 0.0


def _table(first: Sequence[str], second: Sequence[str]) -> Floats:
    rows, row = np.unique(first, return_inverse=True)
    columns, column = np.unique(second, return_inverse=True)
    return np.bincount(row * len(columns) + column, minlength=len(rows) * len(columns)).reshape(
        len(rows), len(columns)
    ).astype(np.float64)  # fmt: skip


def _chi_square(table: Floats) -> float:
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    return float(((table - expected) ** 2 / expected).sum())


def _bias(kept: Counter[str | None], refused: Counter[str | None]) -> float | None:
    """Return the chi-square test's chance, or None where too little was refused to say."""
    classes = [label for label in kept if label is not None]
    gone = np.array([refused.get(label, 0) for label in classes], np.float64)
    if len(classes) < 2 or gone.sum() < 5 * len(classes):  # the usual rule: five expected per cell
        return None
    from scipy.stats import chi2  # half a second that only this needs

    table = np.stack([gone, np.array([kept[label] for label in classes], np.float64)])
    return float(chi2.sf(_chi_square(table), len(classes) - 1))


def _outliers(rows: Sequence[dict[str, Any]], values: dict[str, Floats]) -> dict[str, tuple[int, list[dict[str, Any]]]]:
    found: dict[str, tuple[int, list[dict[str, Any]]]] = {}
    for kind, name, sign, limit in (  # sign 1: below the limit; -1: above it
        ("dark", "brightness", 1, DARK),
        ("bright", "brightness", -1, BRIGHT),
        ("one colour", "contrast", 1, FLAT),
        ("blurred", "sharpness", 1, BLURRED),
        ("long", "aspect", -1, LONG),
    ):
        of = sign * values[name]
        places = np.flatnonzero(of < sign * limit)
        order = places[np.argsort(of[places], kind="stable")][:_OUTLIERS]
        picked = [
            {each: rows[place][each] for each in ("image_id", "key", "label", "split", "row", name)} for place in order
        ]
        found[kind] = (len(places), picked)
    return found


def _cropped_away(dataset: Dataset, rows: Sequence[dict[str, Any]]) -> float:
    stored = Preprocess.from_json(dataset.preprocess).stored
    if stored.mode != "crop" or not rows:
        return 0.0
    lost = 0.0
    for row in rows:
        width, height = row["source_width"], row["source_height"]
        if not stored.keeps(width, height):
            lost += 1 - (min(width, height) * stored.crop_ratio) ** 2 / (width * height)
    return lost / len(rows)
