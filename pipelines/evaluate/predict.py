"""A network's answers for every live row of a split, each once, in row order."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.dataset.reader import Dataset
from pipelines.errors import DataError
from pipelines.image.header import RefusedImage
from pipelines.image.preprocess import Preprocess, prepare_raw, prepare_stored
from pipelines.metrics.accuracy import label_ranks
from pipelines.progress import Progress

_LOGGER = logging.getLogger(__name__)

TOP_K = 5

FloatArray = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Forward = Callable[[Pixels], FloatArray]
"""uint8 (N, H, W, 3) -> float32 probabilities (N, classes)."""


@dataclass(frozen=True)
class Answers:
    """Answers in the order of row positions; arrays are of length N. Class numbers index `classes`.

    Attributes:
        classes: the dataset's classes, then those that only the model knows.
        image_ids: 32 hex digits each.
        keys: members' paths in their source.
        targets: class number of the label; -1 where there is none.
        ranks: place of the label among the answers, 1 for the first; 0 where there is no label.
        label_probability: probability given to the label, 0 to 1; not-a-number where there is none.
        top: (N, k) class numbers of the most probable classes, best first; k is at most 5.
        top_probability: (N, k) their probabilities, 0 to 1.
    """

    classes: tuple[str, ...]
    image_ids: list[str]
    keys: list[str]
    targets: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int64]
    label_probability: FloatArray
    top: npt.NDArray[np.int64]
    top_probability: FloatArray

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """Class numbers (N,) of the answers."""
        return self.top[:, 0]

    @property
    def probability(self) -> FloatArray:
        """Probabilities (N,) of the answers, 0 to 1."""
        return self.top_probability[:, 0]

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """Which rows (N,) have a label."""
        return self.targets >= 0


@dataclass(frozen=True)
class ScoredBatch:
    """Rows with what the network says of them."""

    image_ids: list[str]
    keys: list[str]
    labels: list[Any]
    """As the dataset has them: a name or a list of names, None where there is none."""
    pixels: list[Pixels]
    scores: FloatArray
    """(N, classes), of the classes of both; zero for those that the model does not know."""


def predict_split(
    dataset: Dataset, split: str, forward: Forward, description: Mapping[str, Any], *, batch_size: int
) -> Answers:
    """Return the answers for every live row of a split.

    Args:
        dataset: the dataset; its stored images are read row group by row group.
        split: name of a split with rows.
        forward: the network.
        description: contents of the package's `model.json`: classes and preprocessing.
        batch_size: images a forward pass.

    Raises:
        DataError: a shard is damaged, a stored image cannot be decoded, or the network answers with no numbers.
    """
    classes, _ = join_classes(dataset.classes, description["classes"])
    numbers = {name: number for number, name in enumerate(classes)}
    parts: list[Answers] = []
    for batch in scored_batches(dataset, split, forward, description, batch_size=batch_size):
        targets = np.array([-1 if label is None else numbers[label] for label in batch.labels], dtype=np.int64)
        parts.append(_answers(classes, batch, targets))
    answers = _joined(parts, classes)
    check_every_row_once(answers.image_ids, dataset.num_rows(split), dataset.ref, split)
    return answers


def scored_batches(
    dataset: Dataset, split: str, forward: Forward, description: Mapping[str, Any], *, batch_size: int
) -> Iterator[ScoredBatch]:
    """Yield a split's rows in order with the network's answers; the arguments are those of `predict_split`."""
    classes, columns = join_classes(dataset.classes, description["classes"])
    prepare = choose_prepare(dataset.preprocess, description["preprocess"])
    with Progress(dataset.num_rows(split), label="evaluate") as progress:
        for batch in _batches(dataset, split, prepare, batch_size):
            scores = np.zeros((len(batch.keys), len(classes)), dtype=np.float32)
            scores[:, columns] = forward_any_size(forward, batch.pixels)
            if not np.isfinite(scores).all():
                raise DataError(
                    f"the network's answer for {batch.keys[int((~np.isfinite(scores)).any(axis=1).argmax())]}"
                    " is not a number",
                    where=dataset.ref,
                    mend="its weights have diverged: train again, with a lower rate",
                )
            yield replace(batch, scores=scores)
            progress.advance(len(batch.keys))


def check_every_row_once(image_ids: Sequence[str], num_rows: int, where: str, split: str) -> None:
    """Hold the law of this stage: as many answers as live rows, and no image twice.

    Raises:
        DataError: it is broken.
    """
    if len(image_ids) != num_rows or len(set(image_ids)) != num_rows:
        raise DataError(
            f"{num_rows} rows of split {split!r} gave {len(image_ids)} answers for"
            f" {len(set(image_ids))} images; each must be answered once",
            where=where,
            mend=f"resnet data verify {shlex.quote(where)}",
        )


def join_classes(dataset: Sequence[str], model: Sequence[str]) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the classes of both, the dataset's first, and the place in them of each of the model's outputs."""
    known = set(dataset)
    classes = (*dataset, *(name for name in model if name not in known))
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, np.array([numbers[name] for name in model], dtype=np.int64)


def choose_prepare(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> Callable[[bytes], Pixels]:
    """Return the function from a stored image's bytes to the network's pixels.

    Images stored as the network's own data were need its evaluation geometry alone. Images stored otherwise are
    treated as raw files, so that the network sees what it would see in scoring.
    """
    preprocess = Preprocess.from_json(dict(wanted))
    if dict(stored) == dict(wanted) or stored["stored"] == wanted["stored"]:
        return lambda data: prepare_stored(data, preprocess)
    _LOGGER.warning(
        "the dataset stores images as %s, the model's data was stored as %s: "
        "they go through both, as files that are scored do",
        stored["stored"],
        wanted["stored"],
    )
    return lambda data: prepare_raw(data, preprocess)


def forward_any_size(forward: Forward, images: Sequence[Pixels]) -> FloatArray:
    """Return the probabilities of images, those of one size together; usually all are."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(index)
    parts = [(indices, forward(np.stack([images[index] for index in indices]))) for indices in by_shape.values()]
    result = np.empty((len(images), parts[0][1].shape[1]), dtype=np.float32)
    for indices, probabilities in parts:
        result[indices] = probabilities
    return result


def _batches(
    dataset: Dataset, split: str, prepare: Callable[[bytes], Pixels], batch_size: int
) -> Iterator[ScoredBatch]:
    """Yield decoded batches in row order; the next one is decoded while the network works on this one."""
    rows = _rows(dataset, split)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as threads:

        def begin() -> tuple[list[tuple[str, str, Any, bytes]], list[Any]]:
            chunk = list(islice(rows, batch_size))
            return chunk, [threads.submit(_decode, prepare, row[1], row[3], dataset.ref) for row in chunk]

        chunk, waiting = begin()
        while chunk:
            coming = begin()
            yield ScoredBatch(
                image_ids=[row[0] for row in chunk],
                keys=[row[1] for row in chunk],
                labels=[row[2] for row in chunk],
                pixels=[future.result() for future in waiting],
                scores=np.zeros((0, 0), dtype=np.float32),
            )
            chunk, waiting = coming


def _rows(dataset: Dataset, split: str) -> Iterator[tuple[str, str, Any, bytes]]:
    for group in range(len(dataset.row_groups(split))):
        table = dataset.read_group(split, group, ["image", "label", "image_id", "key"])
        for row in table.to_pylist():
            yield row["image_id"], row["key"], row["label"], row["image"]["bytes"]


def _decode(prepare: Callable[[bytes], Pixels], key: str, data: bytes, where: str) -> Pixels:
    try:
        return prepare(data)
    except RefusedImage as refused:
        raise DataError(
            f"the stored image of {key} cannot be decoded: {refused.message}",
            where=where,
            mend=f"resnet data verify {shlex.quote(where)}",
        ) from refused


def _answers(classes: tuple[str, ...], batch: ScoredBatch, targets: npt.NDArray[np.int64]) -> Answers:
    scores = batch.scores
    top = np.argsort(-scores, axis=1, kind="stable")[:, :TOP_K]
    labelled = targets >= 0
    safe = np.where(labelled, targets, 0)
    own = scores[np.arange(len(scores)), safe]
    return Answers(
        classes=classes,
        image_ids=batch.image_ids,
        keys=batch.keys,
        targets=targets,
        ranks=np.where(labelled, label_ranks(scores, safe), 0),
        label_probability=np.where(labelled, own, np.float32(np.nan)).astype(np.float32),
        top=top,
        top_probability=np.take_along_axis(scores, top, axis=1),
    )


def _joined(parts: Sequence[Answers], classes: tuple[str, ...]) -> Answers:
    return Answers(
        classes=classes,
        image_ids=[value for part in parts for value in part.image_ids],
        keys=[value for part in parts for value in part.keys],
        targets=np.concatenate([part.targets for part in parts]),
        ranks=np.concatenate([part.ranks for part in parts]),
        label_probability=np.concatenate([part.label_probability for part in parts]),
        top=np.concatenate([part.top for part in parts]),
        top_probability=np.concatenate([part.top_probability for part in parts]),
    )
