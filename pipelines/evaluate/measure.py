"""From a network and a split to figures, mistakes and predictions, by what labels the images have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.dataset.reader import Dataset
from pipelines.errors import InputError
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.mistakes import worst_mistakes
from pipelines.evaluate.multilabel import predict_labels, summarize_labels, worst_labels
from pipelines.evaluate.predict import Forward, predict_split
from pipelines.evaluate.predictions import make_label_predictions, make_predictions
from pipelines.evaluate.summary import Summary, summarize


@dataclass(frozen=True)
class Measured:
    """What an evaluation found."""

    classes: tuple[str, ...]
    """The dataset's classes, then those that only the model knows."""
    summary: Summary
    mistakes: list[dict[str, Any]]
    """The surest first, JSON values."""
    predictions: bytes
    """A Parquet file, one row an image."""


def measure(
    dataset: Dataset,
    config: EvaluateConfig,
    forward: Forward,
    description: Mapping[str, Any],
    leaked: npt.NDArray[np.bool_],
) -> Measured:
    """Return what a network is worth on the split that the config names.

    Args:
        dataset: the dataset.
        config: split, bins and number of mistakes.
        forward: the network.
        description: contents of the package's `model.json`; its task is the dataset's.
        leaked: which rows of the split (N,) stand in train too.

    Raises:
        InputError: no row has a label.
        DataError: a shard is damaged, a stored image cannot be decoded, or the network answers with no numbers.
    """
    arguments = (dataset, config.split, forward, description)
    if dataset.task == "multi":
        several = predict_labels(*arguments, batch_size=config.batch_size)
        _refuse_unlabelled(several.labelled, dataset, config.split)
        return Measured(
            several.classes,
            summarize_labels(several, num_bins=config.num_bins, leaked=leaked),
            worst_labels(several, config.num_mistakes),
            make_label_predictions(several),
        )
    answers = predict_split(*arguments, batch_size=config.batch_size)
    _refuse_unlabelled(answers.labelled, dataset, config.split)
    return Measured(
        answers.classes,
        summarize(answers, num_bins=config.num_bins, leaked=leaked),
        worst_mistakes(answers, config.num_mistakes),
        make_predictions(answers),
    )


def _refuse_unlabelled(labelled: npt.NDArray[np.bool_], dataset: Dataset, split: str) -> None:
    if not labelled.any():
        raise InputError(
            f"no row of split {split!r} in {dataset.ref} has a label: there is nothing to measure against",
            mend="evaluate on a split with labels",
        )
