"""From a finished run's best checkpoint to the package folder that evaluation, registry and scoring take."""

from __future__ import annotations

import json
import logging
from typing import Any

from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.errors import DataError, InputError
from pipelines.package.describe import PackageDescription, write_package
from pipelines.storage import Storage
from pipelines.train.checkpoint import Checkpoint, DamagedCheckpoint, load_checkpoint, load_latest
from pipelines.train.config import TrainConfig
from pipelines.train.initial import find_initial
from pipelines.train.records import read_record
from pipelines.train.state import STATE, Best, read_cursor, read_kept_weights
from pipelines.train.transforms import usable_std
from resnet_models.spec import ModelSpec

_LOGGER = logging.getLogger(__name__)

MODEL = "model"
"""Folder of the package in a run's storage."""


def write_model(config: TrainConfig, run: Storage, best: Best, *, train_key: str = "") -> dict[str, Any]:
    """Write the weights of the best epoch as a package under `model/` and return its description.

    Args:
        config: the run's config, its dataset pinned.
        run: storage of the run.
        best: the epoch to keep.
        train_key: key of the stage.

    Raises:
        DataError: no checkpoint is whole, or the dataset is no longer there.
    """
    checkpoint = _best_whole(run, best)
    cursor = read_cursor(checkpoint)
    record = read_record(run, cursor.epoch)
    dataset = _open_pinned(config, run)
    mean, std = dataset.mean_std("train")
    safe = usable_std(std)
    initial = find_initial(config)
    spec = json.loads(checkpoint.files[STATE])["identity"]["network"]
    description = PackageDescription(
        spec=ModelSpec.from_json(spec),
        classes=tuple(dataset.classes),
        preprocess=dataset.preprocess,
        mean=(mean[0], mean[1], mean[2]),
        std=(safe[0], safe[1], safe[2]),
        dataset={"uri": dataset.uri, "version": dataset.version, "fingerprint": dataset.fingerprint},
        metrics={"epoch": record.epoch, **record.val_figures()} if record else {},
        task=dataset.task,
        train_key=train_key,
        origin=initial.to_json(dataset.classes) if initial else {},
    )
    return write_package(run, MODEL, read_kept_weights(checkpoint), description)


def _open_pinned(config: TrainConfig, run: Storage) -> Dataset:
    """Open the version that the run was trained on; it may have been taken away meanwhile."""
    try:
        return open_dataset(config.dataset)
    except InputError as error:
        raise DataError(
            f"training is done, and its dataset is no longer there: {error.what}",
            where=run.uri,
            mend="put it back and run the same command again: the checkpoints stand, only the package is missing",
        ) from error


def _best_whole(run: Storage, best: Best) -> Checkpoint:
    """Return the best epoch's checkpoint, or, said aloud, the last epoch's where that one is damaged."""
    try:
        return load_checkpoint(run, best.step)
    except DamagedCheckpoint as damage:
        newest = load_latest(run)
        if newest is None or read_cursor(newest).batch:
            raise DataError(f"no checkpoint of {run.uri} is whole: {damage.what}", mend="train again") from damage
        _LOGGER.warning("%s; the last epoch is kept in place of the best", damage.what)
        return newest
