"""From a dataset to batches: the worker's share of each global batch, decoded, in the order of `dataset/order.py`.

A split whose decoded pixels fit the limit is decoded once and kept; a larger one is decoded row by row as batches
need it, ahead of the step, from row groups read ahead of that and kept encoded (`read_ahead.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipelines.dataset.keyed import Hashes, image_hashes, row_traces
from pipelines.dataset.order import EpochOrder
from pipelines.dataset.order_table import LaneOrder, OrderTable
from pipelines.dataset.reader import Dataset
from pipelines.errors import ConfigError, DataError, InputError
from pipelines.train.batch import Batch
from pipelines.train.collectives import World
from pipelines.train.config import TrainConfig
from pipelines.train.losses import Targets, classes_in
from pipelines.train.node_memory import NodeMemory
from pipelines.train.pixels import (
    Decoder,
    OtherShape,
    PixelsInMemory,
    PixelsOnDemand,
    PixelSource,
    Positions,
    sized_pixels,
)
from pipelines.train.read_ahead import PixelsAhead, window_groups_of
from pipelines.train.sampling import Sample, balanced_sample, keys_of_copies
from pipelines.train.transforms import Pixels, augment

_LOGGER = logging.getLogger(__name__)

_BLOCK_ROWS = 512
"""Rows whose pixels are in memory are made ready so many at once: a batch of 128 alone costs half as much again."""
_KEPT_GROUPS = 4
"""Row groups kept of those read out of the order of training, where not all can be."""
_MOST_CLASS_BYTES = 256 << 20
"""Class numbers of a split from which an even sample is made."""
_AHEAD = 2
"""Batches prepared before they are asked for, where pixels are not in memory."""


@dataclass(frozen=True)
class Sharing:
    """Workers that open a split together; those of one machine keep its pixels once, each decoding a part of them."""

    run: str
    """What they are workers of."""
    world: World
    """All of them, and which one this is."""


class SplitRows:
    """A split of a dataset: ids and classes of all rows in memory, pixels through a `PixelSource`.

    Args:
        dataset: the pinned version.
        split: name of the split.
        limit_bytes: decoded pixels up to this size are kept in memory.
        threads: threads that decode.
        window_groups: row groups that training reads from at a time, kept encoded where pixels are not kept. A split
            of few more stays as it was read, from one epoch to the next.
        stored: keep images as they are stored, not as networks see them; crops are cut from them.
        sharing: the workers that open the split together; each calls `release` once all of them have. None: this
            process alone.

    Raises:
        InputError: the split is missing or empty, or has rows without a label.
        DataError: an image cannot be decoded, or has another size than the rest.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        limit_bytes: int,
        threads: int,
        window_groups: int = 2,
        stored: bool = False,
        sharing: Sharing | None = None,
    ) -> None:
        self.split = split
        self.group_sizes = [group.num_rows for group in dataset.row_groups(split)]
        self.targets, labelled = _targets_of(dataset, split)
        if not len(self.targets):
            raise InputError(
                f"{dataset.ref} has no rows in split {split!r}",
                mend="ingest more images, or give that split a larger share (split.val=0.1)",
            )
        if unlabelled := int((~labelled).sum()):
            raise InputError(
                f"{unlabelled} of {len(self.targets)} rows in split {split!r} of {dataset.ref} have no label",
                mend="label them, or leave them out when ingesting",
            )
        self.hashes = image_hashes(dataset.table(split, ["image_id"]).column("image_id").to_pylist())
        self._decoder = Decoder(dataset, split, threads, stored=stored)
        height, width = self._decoder.decoded_shape
        keep = window_groups + 2
        if keep < len(self.group_sizes):
            keep = min(keep, _KEPT_GROUPS)
        self._window_groups, self._encoded = window_groups, PixelsOnDemand(self._decoder, self.group_sizes, keep)
        self.pixels: PixelSource = self._encoded
        self.is_cached = self.differs_in_size = False
        self._memory: NodeMemory | None = None
        if (size := len(self.targets) * height * width * 3) <= limit_bytes:
            share = (0, 1)
            if sharing is not None:
                what = (sharing.run, dataset.ref, dataset.fingerprint, split, str(stored))
                self._memory = self._shared_memory("\n".join(what), size)
                share = (sharing.world.rank, sharing.world.size)
            try:
                self.pixels = PixelsInMemory(self._decoder, self.group_sizes, self._memory, share)
                self.is_cached = True
            except OtherShape:
                self.differs_in_size = True  # and so is never kept decoded
                _LOGGER.info("stored images of split %r differ in size: they are decoded as they are read", split)
            finally:
                if not self.is_cached:
                    self.release()
                    self._memory = None  # nothing else here holds its pages

    def _shared_memory(self, key: str, size: int) -> NodeMemory | None:
        try:
            return NodeMemory(key, size, len(self.group_sizes))
        except OSError as error:
            _LOGGER.info("each worker keeps decoded images of split %r of its own: %s", self.split, error)
            return None

    def release(self) -> None:
        """Let no further worker share the pixels; they are kept as long as anybody does who has opened them."""
        if self._memory:
            self._memory.release()

    def read_ahead(
        self,
        order: EpochOrder,
        sample: Sample | None,
        *,
        places_of: Callable[[int], Positions],
        partners_of: Callable[[int], Positions] | None,
        start: int,
    ) -> PixelsAhead:
        """Return the pixels of the batches of an epoch from `start` on, as `PixelsAhead` describes."""
        return PixelsAhead(
            self._decoder,
            self._encoded,
            order,
            self.group_sizes,
            sample,
            places_of=places_of,
            partners_of=partners_of,
            start=start,
            groups=self._window_groups,
        )

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self._decoder.shape

    @property
    def decoded_shape(self) -> tuple[int, int]:
        """Height and width of the first image as it is decoded: as it is stored, where crops are cut from it."""
        return self._decoder.decoded_shape

    @property
    def num_rows(self) -> int:
        """Number of live rows."""
        return len(self.targets)


class TrainFeed:
    """The training batches of one worker.

    Args:
        rows: the training split.
        config: seed, batch size, augmentation.
        world: the workers that share each batch.
        mean: mean of pixel / 255 per channel, the colour that cut-outs take.
        ghost_size: rows of a ghost batch, whose rows then follow each other and are never shared; 0: none.

    Raises:
        ConfigError: rows are to be drawn evenly, and are too many for that.
    """

    def __init__(
        self, rows: SplitRows, config: TrainConfig, world: World, mean: tuple[float, ...], *, ghost_size: int = 0
    ) -> None:
        self.ghost_size = ghost_size
        self.rows = rows
        self.config = config
        self.world = world
        self.mean = mean
        if config.sampling == "balanced" and rows.targets.nbytes > _MOST_CLASS_BYTES:
            raise ConfigError(
                f"sampling is balanced, and the classes of {rows.num_rows:,} rows take {rows.targets.nbytes >> 20} MB"
                f" in every worker, several times over; {_MOST_CLASS_BYTES >> 20} MB are the most",
                mend="sampling=all, with loss.class_weights=balanced if classes are to count alike",
            )
        self._sampled = lru_cache(maxsize=1)(self._sample)
        order = self._order(1)
        self.num_batches, self.num_rows = order.num_batches, order.num_rows

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this worker's share of the batches of an epoch (counted from 1), from batch `start` on."""
        order = self._order(epoch)
        lanes = self._lanes(order)
        if self.rows.is_cached:
            table = OrderTable(order, lanes)
            most = max(1, _BLOCK_ROWS * self.world.size // self.config.global_batch_size)
            for first in range(start, order.num_batches, most):
                yield from self._make(order, table, epoch, first, min(first + most, order.num_batches))
            return
        by_lane = LaneOrder(order, lanes)

        def make(t: int) -> list[Batch]:
            pixels.prepare(t)
            made = self._make(order, by_lane, epoch, t, t + 1, pixels)
            pixels.release(t)
            return made

        pixels = self.rows.read_ahead(
            order,
            self._sampled(epoch),
            places_of=lambda t: by_lane.rows(t, t + 1),
            partners_of=(lambda t: by_lane.partners(t, t + 1)) if self.config.augment.is_mixed else None,
            start=start,
        )
        with pixels, ThreadPoolExecutor(1, thread_name_prefix="feed") as loader:
            ahead: list[Future[list[Batch]]] = []
            try:
                for t in range(start, order.num_batches):
                    while len(ahead) <= _AHEAD and (coming := t + len(ahead)) < order.num_batches:
                        ahead.append(loader.submit(make, coming))
                    yield from ahead.pop(0).result()
            finally:
                loader.shutdown(cancel_futures=True)  # who wants no more batches does not wait for those prepared

    def first_rows(self, number: int) -> Batch:
        """Return the first rows of this worker's share of the run's first batch, no others being decoded."""
        order = self._order(1)
        own = LaneOrder(order, self._lanes(order))
        (batch,) = self._make(order, own, 1, 0, 1, most=number)
        return batch

    def _lanes(self, order: EpochOrder) -> list[int]:
        """Return this worker's lanes, ghost by ghost, so that norms cut the share into ghosts where the ghosts meet."""
        return sorted(order.lanes_of(self.world.rank, self.world.size), key=order.ghost_of)

    def _order(self, epoch: int) -> EpochOrder:
        sample = self._sampled(epoch)
        return EpochOrder(
            sample.group_sizes if sample else self.rows.group_sizes,
            seed=self.config.seed,
            epoch=epoch,
            global_batch=self.config.global_batch_size,
            ghost_size=self.ghost_size,
        )

    def _sample(self, epoch: int) -> Sample | None:
        """Return which rows an epoch reads how often; None: all of them once."""
        if self.config.sampling == "all":
            return None
        rows = self.rows
        return balanced_sample(
            rows.targets.astype(np.int64), rows.hashes, rows.group_sizes, seed=self.config.seed, epoch=epoch
        )

    def _make(
        self,
        order: EpochOrder,
        own: LaneOrder,
        epoch: int,
        first: int,
        last: int,
        ahead: PixelsAhead | None = None,
        *,
        most: int | None = None,
    ) -> list[Batch]:
        """Return this worker's share of batches `first` to `last` - 1, made in one go, from what is read ahead.

        Of one batch no more than the rows `most`, which then are of no lane or ghost that anybody is told of.
        """
        places = own.rows(first, last)[:most]
        positions, keys = self._copies(places, epoch)
        pixels = self._augmented(places if ahead else positions, keys, epoch, ahead)
        targets = self.rows.targets[positions]
        traces = row_traces(own.places(first, last)[:most], self.rows.hashes[positions])
        partner_pixels = partner_targets = None
        if self.config.augment.is_mixed:
            partners = own.partners(first, last)[:most]
            their_positions, their_keys = self._copies(partners, epoch)
            partner_pixels = self._augmented(partners if ahead else their_positions, their_keys, epoch, ahead)
            partner_targets = self.rows.targets[their_positions]
        ends = own.ends(first, last)
        cuts = [slice(begin, end) for begin, end in pairwise([0, *ends])]
        return [
            Batch(
                pixels=pixels[cut],
                targets=targets[cut],
                hashes=keys[cut],
                global_rows=order.batch_rows(t),
                trace=int(traces[cut].sum(dtype=np.uint64)),
                **(self._units(order, own, t) if most is None else {}),
                partner_pixels=None if partner_pixels is None else partner_pixels[cut],
                partner_targets=None if partner_targets is None else partner_targets[cut],
            )
            for t, cut in zip(range(first, last), cuts, strict=True)
        ]

    def _units(self, order: EpochOrder, own: LaneOrder, t: int) -> dict[str, Any]:
        """Return which ghosts or lanes this worker holds in batch t, and the rows of each, as a `Batch` has them."""
        given = order.given_before(t + 1) - order.given_before(t)
        if not order.num_ghosts:
            rows = tuple(given[own.lanes].tolist())
            return {"units": tuple(own.lanes.tolist()), "unit_rows": rows, "num_units": order.num_lanes}
        by_ghost = given.reshape(-1, order.num_ghosts).sum(0)  # lane i belongs to ghost i modulo their number
        rows = tuple(by_ghost[self.world.rank :: self.world.size].tolist())
        units = tuple(range(self.world.rank, order.num_ghosts, self.world.size))
        return {"units": units, "unit_rows": rows, "num_units": order.num_ghosts, "ghost_rows": rows}

    def _copies(self, places: Positions, epoch: int) -> tuple[Positions, Hashes]:
        """Return row positions and keys of random draws for places in the epoch's sample."""
        sample = self._sampled(epoch)
        if sample is None:
            return places, self.rows.hashes[places]
        positions = sample.rows[places]
        return positions, keys_of_copies(self.rows.hashes[positions], sample.repeats[places])

    def _augmented(self, positions: Positions, hashes: Hashes, epoch: int, ahead: PixelsAhead | None) -> Pixels:
        pixels = sized_pixels(ahead or self.rows.pixels, positions, hashes, self.config, epoch=epoch)
        return augment(pixels, hashes, self.config.augment, seed=self.config.seed, epoch=epoch, mean=self.mean)


OpenRows = Callable[..., SplitRows]
"""`SplitRows`, or what stands in for it: a sweep keeps decoded splits from one trial to the next."""


def opened_once(open_rows: OpenRows) -> OpenRows:
    """Return what opens each split once and then hands out the same rows again, whatever it is asked for."""
    kept: dict[str, SplitRows] = {}

    def open_once(dataset: Dataset, split: str, **how: Any) -> SplitRows:
        if split not in kept:
            kept[split] = open_rows(dataset, split, **how)
        return kept[split]

    return open_once


def open_splits(
    dataset: Dataset, config: TrainConfig, world: World, open_rows: OpenRows = SplitRows
) -> tuple[SplitRows, SplitRows]:
    """Return train and val of a dataset, and say which classes cannot be learnt."""
    how: dict[str, Any] = {
        "limit_bytes": config.cache_limit_mb << 20,
        "threads": config.loader_threads or torch.get_num_threads(),
    }
    if world.size > 1:
        how["sharing"] = Sharing(config.out, world)
    windows = window_groups_of(config.global_batch_size, world)
    stored = config.augment.crop_min_area > 0
    train = open_rows(dataset, "train", window_groups=windows, stored=stored, **how)
    missing = np.setdiff1d(np.arange(len(dataset.classes)), classes_in(train.targets))
    if len(missing) and world.rank == 0:
        names = ", ".join(dataset.classes[index] for index in missing[:5])
        _LOGGER.warning("%d classes have no row in train and cannot be learnt: %s", len(missing), names)
    val = open_rows(dataset, "val", **how)
    if val.image_shape != train.image_shape:
        (height, width), (other_height, other_width) = train.image_shape, val.image_shape
        raise DataError(
            f"images of {dataset.ref} have {width} x {height} pixels in train and {other_width} x {other_height} in"
            " val; a network is trained on one size",
            mend="ingest them with a fixed size: image.size_px=SIDE",
        )
    return train, val


def _targets_of(dataset: Dataset, split: str) -> tuple[Targets, npt.NDArray[np.bool_]]:
    """Return the targets of a split's rows, and which rows are labelled."""
    if dataset.task == "multi":
        return dataset.class_matrix(split)
    numbers = dataset.class_indices(split)
    return numbers, numbers >= 0
