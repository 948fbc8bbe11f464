"""Puts together what one process of a run trains with: rows, feed, network, optimiser, and the checkpoint's state."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelines.config.strict import output_values
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.errors import ConfigError, DataError
from pipelines.stage_output import canonical_json
from pipelines.train.checkpoint import Checkpoint
from pipelines.train.collectives import World
from pipelines.train.config import TrainConfig
from pipelines.train.ema import WeightAverage
from pipelines.train.feed import OpenRows, SplitRows, TrainFeed, open_splits
from pipelines.train.initial import ghost_size_of
from pipelines.train.losses import RowLoss
from pipelines.train.network import is_channels_last_safe
from pipelines.train.network_spec import draws_by_sample
from pipelines.train.optimizer import make_optimizer
from pipelines.train.pixels import sized_pixels
from pipelines.train.precision import Precision, resolve_precision
from pipelines.train.state import TrainState
from pipelines.train.step import Step
from pipelines.train.transfer import rate_scales, start_network
from pipelines.train.transforms import Normalise, usable_std
from resnet_models.whitening import whiten_stem

_LOGGER = logging.getLogger(__name__)

_WHITENING_ROWS = 256
"""Training rows, spread over the split, from which a whitening stem takes its directions."""


@dataclass(frozen=True)
class Parts:
    """What the loop works with."""

    train_rows: SplitRows
    val_rows: SplitRows
    feed: TrainFeed
    state: TrainState
    step: Step
    precision: Precision
    frozen: list[nn.Module]
    """Parts of the network that are kept as they are."""
    identity: dict[str, Any]
    """Which data, network and recipe the checkpoints belong to."""


def _mean_std(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of train's pixels; what is not a number there would be found in every step."""
    mean, std = dataset.mean_std("train")
    if not np.isfinite([*mean, *std]).all():
        table = dataset.table("train", ["image_id", "channel_sum", "channel_square_sum"])
        sums = [np.stack(table.column(name).to_numpy()) for name in ("channel_sum", "channel_square_sum")]
        bad = np.flatnonzero(~np.isfinite(np.concatenate(sums, axis=1)).all(axis=1))
        raise DataError(
            f"the pixel sums of {len(bad)} rows in split 'train' of {dataset.ref} are no numbers, first that of image"
            f" {table.column('image_id')[int(bad[0])].as_py()}",
            mend="ingest the images again, or take these out with `resnet data exclude`",
        )
    return mean, std


def assemble(
    config: TrainConfig, world: World, device: torch.device, newest: Checkpoint | None, open_rows: OpenRows
) -> Parts:
    """Return the parts of a run at its start, or as they were at a checkpoint.

    Raises:
        InputError: the dataset cannot be trained on.
        ConfigError: the network does not fit the data, or a batch size is still to be found.
        DataError: the checkpoint is of another run, or the pixels' sums are no numbers.
    """
    if config.find_batch_size:
        raise ConfigError(
            "find_batch_size is true, and only `resnet train` finds one",
            mend="leave it out, or take global_batch_size and optimizer.lr from the catalog of a run that found one",
        )
    dataset = open_dataset(config.dataset)
    train_rows, val_rows = open_splits(dataset, config, world, open_rows)
    if world.size > 1:
        world.sum_values([0.0], device)  # all workers have them
        for split in (train_rows, val_rows):
            split.release()
    mean, std = _mean_std(dataset)
    precision = resolve_precision(config.precision, device)
    normalise = Normalise(mean, usable_std(std), device, dtype=precision.weights)
    start = start_network(
        config, dataset.classes, train_rows.image_shape, world=world, device=device, resumes=newest is not None
    )
    network = start.network.to(precision.weights)
    if start.spec.stem == "whitening" and not newest and not start.initial:
        rows = np.unique(np.linspace(0, train_rows.num_rows - 1, _WHITENING_ROWS).astype(np.int64))
        # Cropped as the first epoch does: stored images may differ in size, and patches of theirs are not those seen.
        pixels = sized_pixels(train_rows.pixels, rows, train_rows.hashes[rows], config, epoch=1)
        whiten_stem(network, normalise(torch.from_numpy(pixels).to(device)))
        world.copy_from_first(network)  # directions of the same variance are told apart by a machine's last bits
    scales = rate_scales(network, config.init.lr_decay_by_depth)
    state = TrainState(
        network=network,
        optimizer=make_optimizer(network, config.optimizer, scales, skips_steps=precision.needs_scaler),
        scaler=torch.amp.GradScaler(device.type, enabled=precision.needs_scaler),
        average=WeightAverage(network, config.ema_decay) if config.ema_decay else None,
    )
    identity = {
        "dataset": dataset.fingerprint,
        "network": start.spec.to_json(),
        "config": hashlib.sha256(canonical_json(output_values(config))).hexdigest()[:16],
    }
    if start.initial:
        identity["init"] = start.initial.resolved.weights_sha256
    if newest:
        state.load_files(newest, identity)
        if world.rank == 0:
            _LOGGER.info("going on from step %d, %d epochs done", newest.step, state.cursor.epoch)
    row_loss = RowLoss(
        config.loss,
        smoothing=config.label_smoothing,
        targets=train_rows.targets,
        num_classes=len(dataset.classes),
        device=device,
        dtype=precision.weights,
    )
    if config.compile:
        network.compile(dynamic=True)  # the last batch of an epoch is shorter
    step = Step(
        config,
        state,
        world,
        precision,
        normalise,
        row_loss,
        channels_last=config.channels_last and is_channels_last_safe(network, device),
        draws_by_sample=draws_by_sample(start.spec),
    )
    feed = TrainFeed(train_rows, config, world, mean, ghost_size=ghost_size_of(start.spec))
    return Parts(train_rows, val_rows, feed, state, step, precision, start.frozen, identity)
