"""Datasets whose images show any number of stripes, one label each; learnt in a few epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.dataset.schema import make_shard_schema
from pipelines.dataset.writer import ShardWriter
from pipelines.storage import Storage
from pipelines.train.config import TrainConfig
from tests.unit.train.tiny import make_config, make_row, publish_tiny

NAMES = ("a", "b", "c")
SIZES = {"train": 96, "val": 40, "test": 30}


def make_striped(labels: Sequence[str], seed: int, size: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return noise (size, size, 3) with a bright stripe for each label, its place and colour telling which."""
    pixels = np.random.default_rng(seed).integers(0, 100, (size, size, 3), dtype=np.uint8)
    for name in labels:
        number = NAMES.index(name)
        pixels[:, 2 * number : 2 * number + 2, number] += 140
    return pixels


def labels_of(number: int) -> list[str]:
    """Return the labels of the image of a number: every set of names in turn, the empty one too."""
    return [name for bit, name in enumerate(NAMES) if number >> bit & 1]


def write_dataset(root: Path | str, *, unlabelled: int = 0, sizes: dict[str, int] | None = None) -> str:
    """Write a dataset of several labels an image and return its address.

    Args:
        root: where.
        unlabelled: so many rows of train have null for a label.
        sizes: images of each split.
    """
    storage = Storage.open(root)
    writer = ShardWriter(storage, "tiny-0", 0, "once", schema=make_shard_schema("multi"))
    for split, count in (sizes or SIZES).items():
        for number in range(count):
            pixels = make_striped(labels_of(number), 1000 * len(split) + number)
            label = None if split == "train" and number < unlabelled else labels_of(number)
            writer.append(split, make_row(f"{split}/{number:03d}", pixels) | {"label": label})
    return publish_tiny(storage, writer.close().files, NAMES, task="multi")


def make_label_config(dataset: str, **changes: Any) -> TrainConfig:
    """A config of `tiny` for several labels an image."""
    return make_config(dataset, **({"loss": {"name": "bce"}} | changes))
