"""The pictures a run leaves behind: its curves, and a mosaic of the first batch as the network saw it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.dataset.keyed import Hashes
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.image.preprocess import Preprocess
from pipelines.plots.contact_sheet import mosaic
from pipelines.plots.figures import training_curves
from pipelines.storage import Storage
from pipelines.train.batch import Batch
from pipelines.train.collectives import World
from pipelines.train.config import TrainConfig
from pipelines.train.crops import crop_box, crop_draws
from pipelines.train.feed import SplitRows, TrainFeed
from pipelines.train.initial import find_initial, ghost_size_of, starting_spec
from pipelines.train.inputs import mixed, sized
from pipelines.train.records import EpochRecord
from pipelines.train.sampling import keys_of_copies
from pipelines.train.transforms import Pixels

_MOSAIC_IMAGES = 48


def draw_pictures(config: TrainConfig, run: Storage, records: Sequence[EpochRecord]) -> dict[str, bytes]:
    """Write `figures/curves.png` and `figures/mosaic.jpg` into the run's storage and return them by path.

    The mosaic needs no help from the workers: a batch is a function of (dataset, seed, epoch), so it is made again.
    """
    dataset = open_dataset(config.dataset)
    stored = config.augment.crop_min_area > 0
    rows = SplitRows(dataset, "train", limit_bytes=0, threads=1, window_groups=0, stored=stored)
    ghost_size = ghost_size_of(starting_spec(config, find_initial(config)))
    feed = TrainFeed(rows, config, World(), dataset.mean_std("train")[0], ghost_size=ghost_size)
    batch = feed.first_rows(_MOSAIC_IMAGES)
    images, shares = _as_seen(batch, config)
    cropped = _cropped_away(dataset, rows, batch, config)
    captions = [
        _caption(dataset.classes, batch, index, share, away)
        for index, (share, away) in enumerate(zip(shares, cropped, strict=True))
    ]
    pictures = {
        "figures/curves.png": training_curves([record.to_json() for record in records]).data,
        "figures/mosaic.jpg": mosaic(images, captions).data,
    }
    for path, data in pictures.items():
        run.put(path, data)
    return pictures


def _as_seen(batch: Batch, config: TrainConfig) -> tuple[list[Pixels], list[float]]:
    """Return the images as the first epoch gives them to the network, uint8, and the share of itself each keeps."""
    images, shares = sized(_planes(batch.pixels), config, epoch=1), torch.ones(len(batch.targets))
    if batch.partner_pixels is not None:
        partners = sized(_planes(batch.partner_pixels), config, epoch=1)
        images, shares = mixed(images, partners, batch.hashes, config, epoch=1)
    seen = images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return list(seen), shares.tolist()


def _planes(pixels: Pixels) -> Tensor:
    """Return uint8 (N, H, W, 3) as float32 (N, 3, H, W) of the same values."""
    return torch.from_numpy(pixels).float().permute(0, 3, 1, 2)


def _cropped_away(dataset: Dataset, rows: SplitRows, batch: Batch, config: TrainConfig) -> list[float]:
    """Return the share of each image's source that the network is not shown: cut when ingested, then when read."""
    table = dataset.table("train", ["width", "height", "cropped_fraction"])
    evaluation = Preprocess.from_json(dataset.preprocess).evaluation
    draws = crop_draws(batch.hashes, seed=config.seed, epoch=1)
    shares = []
    for position, draw in zip(_positions(rows, batch.hashes), draws, strict=True):
        width, height, stored = (table.column(name)[position].as_py() for name in table.column_names)
        if config.augment.crop_min_area:
            _, _, high, wide = crop_box(draw, height, width, config.augment.crop_min_area)
            now = 1 - high * wide / (height * width)
        else:
            now = evaluation.cropped_fraction(width, height)
        shares.append(1 - (1 - (stored or 0.0)) * (1 - now))
    return shares


def _positions(rows: SplitRows, keys: Hashes) -> list[int]:
    """Return the rows that have these keys of random draws; further copies of a row have keys of their own."""
    found: dict[int, int] = {}
    for repeat in count():
        of_copies = keys_of_copies(rows.hashes, np.full(rows.num_rows, repeat))
        found |= {int(of_copies[position]): int(position) for position in np.flatnonzero(np.isin(of_copies, keys))}
        if all(int(key) in found for key in keys):
            break
    return [found[int(key)] for key in keys]


def _caption(classes: Sequence[str], batch: Batch, index: int, share: float, cropped: float) -> str:
    """Return what an image is called: its classes, those of its partner, and, if anything is, how much is cut off."""
    name = _name(classes, batch.targets[index])
    if batch.partner_targets is not None:
        name = f"{share:.0%} {name} + {_name(classes, batch.partner_targets[index])}"
    share_away = f"{cropped:.0%}"
    return name if share_away == "0%" else f"{name}\n{share_away} cropped"


def _name(classes: Sequence[str], target: npt.NDArray[np.integer[Any]]) -> str:
    """Return the class of a class number, or the classes of a row of them."""
    if target.ndim == 0:
        return classes[int(target)]
    return ", ".join(classes[number] for number in np.flatnonzero(target).tolist()) or "none"
