"""What a dataset's small columns tell of it: sizes, quality, crop loss, and properties that give a label away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.catalog import purged_path, read_version
from pipelines.dataset.predictive import Prediction
from pipelines.dataset.properties import Properties, read_properties
from pipelines.dataset.quarantine import Bias, bias_of, group, read_quarantine
from pipelines.dataset.reader import Dataset
from pipelines.image.preprocess import Preprocess

DARK, BRIGHT, FLAT, BLURRED, LONG, CROPPED = 0.1, 0.95, 0.02, 0.02, 3.0, 0.5
"""Below or above which a picture is worth a look: mean grey, mean grey, deviation, sharpness, long by short side, share
of the pixels that were cut away."""
TELLING = 0.6
"""Share (0 to 1) from which a property may give a class away: it ranks images of the class right in 80% of pairs."""

_OUTLIERS = 8
_SIZES = 8

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """The figures of a dataset, as plain values for JSON and pages.

    Attributes:
        properties: name -> quantiles (min, 5%, 50%, 95%, max) over all live rows.
        by_split: split -> name -> mean.
        channels: split -> mean and deviation of red, green and blue, 0 to 1.
        formats: format of the source files -> images.
        sizes: width x height of the sources -> images, the commonest.
        flags: remark -> images.
        outliers: kind -> (images, the most extreme rows, each with split and row).
        telling: name -> how well it tells a class from all others.
        cropped_away: mean share of the pixels that the stored geometry cuts off, 0 to 1.
        refused: reason -> members, without those that were accepted as lost.
        refused_classes: (reason, class, members), the commonest first.
        refused_bias: whether some classes lost more than others; None where too little was refused to say.
        difference: what the version has over its parent, from the two catalogs; empty for a first version.
    """

    properties: dict[str, list[float]]
    by_split: dict[str, dict[str, float]]
    channels: dict[str, dict[str, list[float]]]
    formats: dict[str, int]
    sizes: dict[str, int]
    flags: dict[str, int]
    outliers: dict[str, tuple[int, list[dict[str, Any]]]]
    telling: dict[str, Prediction]
    cropped_away: float
    refused: dict[str, int]
    refused_classes: list[tuple[str, str | None, int]]
    refused_bias: Bias | None
    difference: dict[str, Any]


def make_profile(dataset: Dataset) -> Profile:
    """Return the profile of a version's live rows; only small columns are read, and no row becomes an object."""
    rows = read_properties(dataset)
    values = {**rows.numbers, "cropped_fraction": _cropped(dataset, rows)}
    refused = read_quarantine(dataset, columns=["source", "key", "reason", "label"])
    return Profile(
        properties={
            name: np.quantile(of, [0, 0.05, 0.5, 0.95, 1]).round(4).tolist() for name, of in values.items() if len(of)
        },
        by_split={
            split: {name: round(float(of[start:end].mean()), 4) for name, of in values.items()}
            for split, start, end in zip(rows.splits, rows.starts, rows.starts[1:], strict=False)
        },
        channels={
            split: dict(zip(("mean", "std"), map(_rounded, dataset.mean_std(split)), strict=True))
            for split in rows.splits
        },
        formats=_counts(rows.columns.column("source_format")),
        sizes=_sizes(rows),
        flags=_counts(pc.list_flatten(rows.columns.column("flags"))),
        outliers=_outliers(dataset, rows, values),
        telling=rows.predictive(),
        cropped_away=round(float(values["cropped_fraction"].mean()), 4) if len(values["cropped_fraction"]) else 0.0,
        refused=dict(Counter(str(row["reason"]) for row in refused).most_common()),
        refused_classes=[(each.reason, each.label, each.number) for each in group(refused)],
        refused_bias=bias_of(dataset),
        difference=difference_to_parent(dataset),
    )


def sheet_numbers(dataset: Dataset, profile: Profile, look_alikes: Mapping[str, int]) -> dict[str, Any]:
    """Return all figures of a data sheet as JSON values.

    Args:
        dataset: the version.
        profile: its profile.
        look_alikes: the counts of `duplicates.find_alike`.
    """
    catalog = dataset.catalog
    return {
        "dataset": dataset.ref,
        "fingerprint": dataset.fingerprint,
        "rows": catalog["rows"],
        "task": dataset.task,
        "splits": {
            split: {name: part[name] for name in ("rows", "unlabelled", "labels")}
            for split, part in catalog["splits"].items()
        },
        "counts": catalog["counts"],
        "warnings": catalog.get("warnings", []),
        "duplicates": catalog.get("duplicates", {}),
        "look_alikes": dict(look_alikes),
        **asdict(profile),
    }


def difference_to_parent(dataset: Dataset) -> dict[str, Any]:
    """Return how a version differs from the one that it was made from, by the two catalogs alone.

    `rows`, `splits` and `classes` are (before, now) where they differ; `append` is what an append said of itself. Empty
    for a first version, and where the parent was purged.
    """
    catalog = dataset.catalog
    parent = int(catalog.get("parent") or catalog.get("difference", {}).get("parent", 0))
    if not parent or dataset.storage.exists(purged_path(parent)):
        return {}
    before = read_version(dataset.storage, parent)
    assert before is not None
    own = catalog.get("difference", {})
    return {
        "parent": parent,
        "stage": catalog.get("stage"),
        "rows": (before["rows"], catalog["rows"]),
        "splits": _changed(_of_splits(before), _of_splits(catalog)),
        "classes": _changed(_of_classes(before), _of_classes(catalog)),
        "counts": _changed(before["counts"], catalog["counts"]),
        "append": own if own.get("parent") == parent else {},
    }


def _of_splits(catalog: Mapping[str, Any]) -> dict[str, int]:
    return {split: int(part["rows"]) for split, part in catalog["splits"].items()}


def _of_classes(catalog: Mapping[str, Any]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in catalog["splits"].values():
        counts.update(part["labels"])
    return dict(counts)


def _changed(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return name -> (before, now) of what differs, the largest change first."""
    pairs = {name: (before.get(name, 0), now.get(name, 0)) for name in {**before, **now}}
    changed = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return dict(sorted(changed.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item[0])))


def _counts(column: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    """Return how often each value stands in a column, the commonest first."""
    found = Counter({str(each["values"]): int(each["counts"]) for each in pc.value_counts(column).to_pylist()})
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _sizes(rows: Properties) -> dict[str, int]:
    packed = rows.numbers["source_width"].astype(np.int64) << 32 | rows.numbers["source_height"].astype(np.int64)
    sizes, counts = np.unique(packed, return_counts=True)
    order = np.lexsort((sizes, -counts))[:_SIZES]
    return {f"{sizes[place] >> 32} x {sizes[place] & 0xFFFFFFFF}": int(counts[place]) for place in order.tolist()}


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 4) for value in values]


def _outliers(
    dataset: Dataset, rows: Properties, values: Mapping[str, Floats]
) -> dict[str, tuple[int, list[dict[str, Any]]]]:
    found: dict[str, tuple[int, list[dict[str, Any]]]] = {}
    for kind, name, sign, limit in (  # sign 1: below the limit; -1: above it
        ("dark", "brightness", 1, DARK),
        ("bright", "brightness", -1, BRIGHT),
        ("one colour", "contrast", 1, FLAT),
        ("blurred", "sharpness", 1, BLURRED),
        ("long", "aspect", -1, LONG),
        ("cropped", "cropped_fraction", -1, CROPPED),
    ):
        of = sign * values[name]
        places = np.flatnonzero(of < sign * limit)
        picked = places[np.argsort(of[places], kind="stable")][:_OUTLIERS]
        named = [{**_named(dataset, rows, place), name: float(values[name][place])} for place in picked.tolist()]
        found[kind] = (len(places), named)
    return found


def _named(dataset: Dataset, rows: Properties, place: int) -> dict[str, Any]:
    """Return who a row is: its row group is read for it, and no more."""
    split, row = rows.place(place)
    first = 0
    for number, part in enumerate(dataset.row_groups(split)):
        if row < first + part.num_rows:
            table = dataset.read_group(split, number, ["image_id", "key", "label"])
            return {**table.slice(row - first, 1).to_pylist()[0], "split": split, "row": row}
        first += part.num_rows
    raise AssertionError(f"row {row} is beyond split {split}")


def _cropped(dataset: Dataset, rows: Properties) -> Floats:
    """Return the share of its pixels that each image lost (N,): as recorded, else by the stored geometry."""
    column = rows.columns.column("cropped_fraction")
    if not column.null_count:
        return np.asarray(column.to_numpy(), np.float64)
    lost = np.zeros(len(column))
    if dataset.preprocess and Preprocess.from_json(dataset.preprocess).stored.mode == "crop":
        stored = Preprocess.from_json(dataset.preprocess).stored
        width, height = rows.numbers["source_width"], rows.numbers["source_height"]
        kept = (np.minimum(width, height) * stored.crop_ratio) ** 2 / (width * height)
        whole = [stored.keeps(int(w), int(h)) for w, h in zip(width.tolist(), height.tolist(), strict=True)]
        lost = np.where(whole, 0.0, 1 - kept)
    return np.asarray(np.where(column.is_null().to_numpy(), lost, column.fill_null(0).to_numpy()), np.float64)
