"""The pictures of a report: samples of a dataset, rows looked up by id, and members of a scored archive."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.dataset.reader import Dataset
from pipelines.dataset.shards import read_shard_list
from pipelines.dataset.tables import open_parquet
from pipelines.plots.picture import Picture
from pipelines.plots.thumbnail import make_picture, make_thumbnail
from pipelines.sources.resolve import open_source
from pipelines.storage import Storage

_GROUPS_READ = 6
_UNITS_READ = 6
_MEMBERS_PER_UNIT = 400
_PREDICTION_COLUMNS = ["image_id", "key", "names", "probabilities", "labels", "reason", "message"]
_LABELS_SHOWN = 4


@dataclass(frozen=True)
class Pictured:
    """One image of a dataset as a picture, with what is known of it."""

    image_id: str
    key: str
    label: str
    picture: Picture
    pixels: npt.NDArray[np.uint8]
    """The thumbnail, (H, W, 3)."""


@dataclass(frozen=True)
class Scored:
    """One scored member: its picture, and the classes given to it, most probable first.

    `labels` are all that a network which gives any number of them has given; None where it gives exactly one class.
    """

    key: str
    names: tuple[str, ...]
    probabilities: tuple[float, ...]
    picture: Picture
    labels: tuple[str, ...] | None = None

    @property
    def caption(self) -> str:
        """What was given, in words."""
        if self.labels is None:
            return self.names[0]
        more = len(self.labels) - _LABELS_SHOWN
        return ", ".join(self.labels[:_LABELS_SHOWN]) + (f" and {more} more" if more > 0 else "") or "no label"

    @property
    def sureness(self) -> str:
        """How sure the network was; of several labels, of each that is shown; where it gave none, of the nearest."""
        if self.labels is None:
            return f"{self.probabilities[0]:.0%} sure"
        known = dict(zip(self.names, self.probabilities, strict=True))
        shown = [name for name in self.labels[:_LABELS_SHOWN] if name in known]
        if not self.labels:
            return f"nearest: {self.names[0]} {self.probabilities[0]:.0%}"
        return ", ".join(f"{name} {known[name]:.0%}" for name in shown)


def sample_classes(dataset: Dataset, split: str, per_class: int, classes: Collection[str]) -> list[Pictured]:
    """Return up to `per_class` images of each class, in the order of classes, from row groups across the split."""
    groups = dataset.row_groups(split)
    step = max(1, len(groups) // _GROUPS_READ)
    found: dict[str, list[Pictured]] = {name: [] for name in classes}
    for index in range(0, len(groups), step):
        table = dataset.read_group(split, index, ["image", "image_id", "key", "label"])
        labels = table.column("label").to_pylist()
        for row, label in enumerate(labels):
            # of several labels, the first that has too few images yet
            own = next((name for name in _names(label) if name in found and len(found[name]) < per_class), None)
            if own is not None:
                found[own] += _pictured(table.slice(row, 1).to_pylist())
        if all(len(images) >= per_class for images in found.values()):
            break
    return [image for images in found.values() for image in images]


def find_rows(dataset: Dataset, split: str, wanted: Collection[str]) -> dict[str, Pictured]:
    """Return rows of a split by image_id; only row groups that hold one of them are read with their images."""
    found: dict[str, Pictured] = {}
    for index in range(len(dataset.row_groups(split))):
        ids = dataset.read_group(split, index, ["image_id"]).column("image_id").to_pylist()
        places = [place for place, image_id in enumerate(ids) if image_id in wanted]
        if places:
            table = dataset.read_group(split, index, ["image", "image_id", "key", "label"])
            found.update({image.image_id: image for image in _pictured(table.take(places).to_pylist())})
        if len(found) == len(wanted):
            break
    return found


def _pictured(rows: Iterable[Mapping[str, Any]]) -> list[Pictured]:
    images = []
    for row in rows:
        pixels = make_thumbnail(row["image"]["bytes"])
        if pixels is not None:
            label = ", ".join(_names(row["label"])) or "none"
            images.append(Pictured(row["image_id"], row["key"], label, make_picture(pixels), pixels))
    return images


def _names(label: str | list[str] | None) -> list[str]:
    """Return the labels of an image: one, several or none."""
    return label if isinstance(label, list) else [label] if label is not None else []


def read_predictions(out: str, catalog: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the predictions of a scored archive by image_id."""
    storage = Storage.open(out)
    rows: dict[str, dict[str, Any]] = {}
    for entry in catalog["shard_lists"]:
        for shard in read_shard_list(storage, entry)[0]:
            file = open_parquet(storage, shard.path)
            present = set(file.schema_arrow.names)  # labels are there where the network gives any number of them
            table = file.read(columns=[name for name in _PREDICTION_COLUMNS if name in present])
            rows.update({row["image_id"]: row for row in table.to_pylist()})
    return rows


def sample_scored(
    archive: str, name: str, predictions: Mapping[str, Mapping[str, Any]], known: Collection[str], number: int
) -> list[Scored]:
    """Return pictures and predictions of members spread over an archive, unseen in training where there are any.

    Args:
        archive: the source that was scored.
        name: its source name; empty for its own.
        predictions: rows by image_id.
        known: ids that the network was trained or chosen on, taken only when nothing else is left.
        number: how many to return at most.
    """
    source = open_source(archive, name)
    units = source.units()
    fresh: list[Scored] = []
    seen: list[Scored] = []
    chosen = units[:: max(1, len(units) // _UNITS_READ)][:_UNITS_READ]
    for unit in chosen:
        quota = -(-number // len(chosen))
        taken = 0
        for position, member in enumerate(source.open(unit)):
            if taken >= quota or position >= _MEMBERS_PER_UNIT:
                break
            row = predictions.get(member.image_id)
            if row is None or row["names"] is None or member.data is None:
                continue
            is_known = member.image_id in known
            if is_known and len(seen) >= number:
                continue
            pixels = make_thumbnail(member.data)
            if pixels is None:
                continue
            labels = None if row.get("labels") is None else tuple(row["labels"])
            scored = Scored(row["key"], tuple(row["names"]), tuple(row["probabilities"]), make_picture(pixels), labels)
            if is_known:
                seen.append(scored)
            else:
                fresh.append(scored)
                taken += 1
    return [*fresh, *seen][:number]
