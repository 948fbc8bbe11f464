"""The pictures a run leaves behind: its curves, and a mosaic of the first batch as the network saw it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.dataset.reader import open_dataset
from pipelines.plots.contact_sheet import mosaic
from pipelines.plots.figures import training_curves
from pipelines.storage import Storage
from pipelines.train.collectives import World
from pipelines.train.config import TrainConfig
from pipelines.train.feed import SplitRows, TrainFeed
from pipelines.train.initial import find_initial, ghost_size_of, starting_spec
from pipelines.train.records import EpochRecord

_MOSAIC_IMAGES = 48


def _caption(classes: Sequence[str], target: npt.NDArray[np.integer[Any]]) -> str:
    """Return the class of a class number, or the classes of a row of them."""
    if target.ndim == 0:
        return classes[int(target)]
    return ", ".join(classes[number] for number in np.flatnonzero(target).tolist()) or "none"


def draw_pictures(config: TrainConfig, run: Storage, records: Sequence[EpochRecord]) -> dict[str, bytes]:
    """Write `figures/curves.png` and `figures/mosaic.jpg` into the run's storage and return them by path.

    The mosaic needs no help from the workers: a batch is a function of (dataset, seed, epoch), so it is made again.
    """
    dataset = open_dataset(config.dataset)
    # A limit of 0 decodes the rows of this one batch and no others.
    stored = config.augment.crop_min_area > 0
    rows = SplitRows(dataset, "train", limit_bytes=0, threads=1, window_groups=512, stored=stored)
    ghost_size = ghost_size_of(starting_spec(config, find_initial(config)))
    feed = TrainFeed(rows, config, World(), dataset.mean_std("train")[0], ghost_size=ghost_size)
    batch = next(feed.batches(1))
    shown = min(_MOSAIC_IMAGES, len(batch.targets))
    names = [_caption(dataset.classes, target) for target in batch.targets[:shown]]
    pictures = {
        "figures/curves.png": training_curves([record.to_json() for record in records]).data,
        "figures/mosaic.jpg": mosaic(list(batch.pixels[:shown]), names).data,
    }
    for path, data in pictures.items():
        run.put(path, data)
    return pictures
