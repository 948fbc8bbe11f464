"""The pixels of a split's rows by position: kept decoded where they fit into memory, else decoded as they are read."""

from __future__ import annotations

import shlex
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines.dataset.keyed import Hashes
from pipelines.dataset.reader import Dataset
from pipelines.errors import DataError, InputError
from pipelines.image.decode import Scratch, decode_image
from pipelines.image.header import DEFAULT_LIMITS, RefusedImage
from pipelines.image.preprocess import Preprocess, prepare_pixels
from pipelines.train.config import TrainConfig
from pipelines.train.crops import Draws, Pixels, crop_draws, resized_crop
from pipelines.train.node_memory import NodeMemory

Positions: TypeAlias = npt.NDArray[np.int64]

_CHUNK = 64
"""Images a decoding thread takes at a time."""


class PixelSource(Protocol):
    """Gives the pixels of rows by position."""

    def take(self, positions: Positions) -> Pixels:
        """Return uint8 (n, H, W, 3)."""

    def crop(self, positions: Positions, draws: Draws, min_area: float) -> Pixels:
        """Return random resized crops, uint8 (n, H, W, 3)."""


class OtherShape(Exception):
    """An image has another size than the first."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.height, self.width = shape[:2]


class Decoder:
    """Reads encoded images of row groups and decodes them, by several threads."""

    def __init__(self, dataset: Dataset, split: str, threads: int, *, stored: bool = False) -> None:
        self._dataset = dataset
        self._split = split
        self._preprocess = Preprocess.from_json(dataset.preprocess)
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="decode")
        self._is_stored = stored
        self._own = threading.local()  # each decoding thread's `Scratch`
        seen = self._decoded(self.read(0)[0])
        first = prepare_pixels(seen, self._preprocess) if stored else seen
        self.shape: tuple[int, int] = (first.shape[0], first.shape[1])
        """Height and width of what the network sees."""
        self.decoded_shape: tuple[int, int] = (seen.shape[0], seen.shape[1])
        """Height and width of the first image as it is decoded here."""

    def read(self, group: int) -> list[bytes]:
        """Return the encoded images of a row group, in the order of rows."""
        images = self._dataset.read_group(self._split, group, ["image"]).column("image")
        encoded: list[bytes] = images.combine_chunks().field("bytes").to_pylist()
        return encoded

    def decode(self, encoded: Sequence[bytes], into: Pixels) -> None:
        """Decode images of one size into uint8 (n, H, W, 3).

        Raises:
            OtherShape: stored images differ in size.
            DataError: images differ in size as the network sees them.
        """

        def one(index: int) -> None:
            pixels = self._decoded(encoded[index])
            if pixels.shape != into.shape[1:]:
                raise OtherShape(pixels.shape) if self._is_stored else self._other_size(pixels)
            into[index] = pixels

        self._in_threads(one, len(encoded))

    def crop(self, images: Sequence[bytes] | Sequence[Pixels], draws: Draws, min_area: float) -> Pixels:
        """Return random resized crops (n, H, W, 3) of encoded images, or of pixels."""
        into: Pixels = np.empty((len(images), *self.shape, 3), dtype=np.uint8)

        def one(index: int) -> None:
            image = images[index]
            pixels = self._decoded(image) if isinstance(image, bytes) else image
            resized_crop(pixels, draws[index], min_area, into[index])

        self._in_threads(one, len(images))
        return into

    def _in_threads(self, one: Callable[[int], None], number: int) -> None:
        def part(start: int) -> None:
            for index in range(start, min(start + _CHUNK, number)):
                one(index)

        waiting = [self._pool.submit(part, start) for start in range(0, number, _CHUNK)]
        while waiting:
            # Not held by a name here: one that failed, its error and this frame would hold each other, and with them
            # what is decoded into, for as long as it pleases the garbage collector.
            waiting.pop(0).result()

    def _decoded(self, data: bytes) -> Pixels:
        """Return an image's pixels, which last until this thread decodes the next one."""
        if not hasattr(self._own, "scratch"):
            self._own.scratch = Scratch()
        try:
            pixels = decode_image(data, DEFAULT_LIMITS, self._preprocess.background, scratch=self._own.scratch).pixels
        except RefusedImage as refused:
            raise DataError(
                f"an image in split {self._split!r} of {self._dataset.ref} cannot be decoded: {refused}",
                mend=f"`resnet data verify {shlex.quote(self._dataset.ref)}` names the row",
            ) from refused
        return pixels if self._is_stored else prepare_pixels(pixels, self._preprocess)

    def _other_size(self, pixels: Pixels) -> DataError:
        height, width = pixels.shape[:2]
        return DataError(
            f"{self._dataset.ref} gives images of different sizes: {self.shape[1]} x {self.shape[0]} pixels and"
            f" {width} x {height}; a network is trained on one size",
            mend="ingest again with one size for all",
        )


def input_shape(dataset: Dataset) -> tuple[int, int]:
    """Return height and width of what networks see of a dataset, from its first training image.

    Raises:
        InputError: there is no training image.
        DataError: it cannot be decoded.
    """
    if not dataset.row_groups("train"):
        raise InputError(f"{dataset.ref} has no rows in split 'train'", mend="ingest images into it first")
    return Decoder(dataset, "train", 1).shape


class PixelsInMemory:
    """All pixels of a split, decoded once.

    Args:
        decoder: of the split.
        group_sizes: rows of each row group.
        memory: is shared with other processes, and has a part for each row group; None: memory of this process.
        share: number of this process and how many there are; each begins with row groups of its own.
    """

    def __init__(
        self,
        decoder: Decoder,
        group_sizes: Sequence[int],
        memory: NodeMemory | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._decoder = decoder
        shape = (sum(group_sizes), *decoder.decoded_shape, 3)
        self._pixels: Pixels = np.empty(shape, dtype=np.uint8) if memory is None else memory.array.reshape(shape)
        ends = np.cumsum(group_sizes)

        def fill(group: int) -> None:
            decoder.decode(decoder.read(group), self._pixels[ends[group] - group_sizes[group] : ends[group]])

        if memory is not None:
            memory.fill(fill, first=share[0] * len(ends) // share[1])
            return
        for group in range(len(ends)):
            fill(group)

    def take(self, positions: Positions) -> Pixels:
        """Return the pixels of rows."""
        return np.take(self._pixels, positions, axis=0)

    def crop(self, positions: Positions, draws: Draws, min_area: float) -> Pixels:
        """Return random resized crops of rows."""
        return self._decoder.crop([self._pixels[position] for position in positions], draws, min_area)


class EncodedPixels(ABC):
    """Pixels decoded when asked for, from row groups that are kept encoded."""

    def __init__(self, decoder: Decoder, group_sizes: Sequence[int]) -> None:
        self._decoder = decoder
        self._ends = np.cumsum(group_sizes)

    def take(self, positions: Positions) -> Pixels:
        """Return the pixels of rows."""
        encoded = self._encoded(positions)
        pixels: Pixels = np.empty((len(encoded), *self._decoder.decoded_shape, 3), dtype=np.uint8)
        self._decoder.decode(encoded, pixels)
        return pixels

    def crop(self, positions: Positions, draws: Draws, min_area: float) -> Pixels:
        """Return random resized crops of rows."""
        return self._decoder.crop(self._encoded(positions), draws, min_area)

    @abstractmethod
    def _group(self, group: int) -> Sequence[bytes]:
        """Return the encoded images of a row group."""

    def _groups_of(self, positions: Positions) -> Positions:
        return np.searchsorted(self._ends, positions, side="right")

    def _encoded(self, positions: Positions) -> list[bytes]:
        groups, which = np.unique(self._groups_of(positions), return_inverse=True)
        images = [self._group(group) for group in groups.tolist()]
        from_end = positions - self._ends[groups][which]  # counted from the group's end
        return [images[index][place] for index, place in zip(which.tolist(), from_end.tolist(), strict=True)]


class PixelsOnDemand(EncodedPixels):
    """Pixels of rows in any order, from the row groups used last.

    Args:
        decoder: of the split.
        group_sizes: rows of each row group.
        keep: row groups that are kept.
    """

    def __init__(self, decoder: Decoder, group_sizes: Sequence[int], keep: int) -> None:
        super().__init__(decoder, group_sizes)
        self._keep = keep
        self._groups: OrderedDict[int, list[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def group(self, group: int) -> list[bytes]:
        """Return the encoded images of a row group, to any thread; they belong to all."""
        with self._lock:
            if group in self._groups:
                self._groups.move_to_end(group)
                return self._groups[group]
        images = self._decoder.read(group)
        with self._lock:
            self._groups[group] = images
            while len(self._groups) > self._keep:
                self._groups.popitem(last=False)
        return images

    def _group(self, group: int) -> list[bytes]:
        return self.group(group)


def sized_pixels(
    source: PixelSource, positions: Positions, hashes: Hashes, config: TrainConfig, *, epoch: int
) -> Pixels:
    """Return training rows at the network's size, (n, H, W, 3): cropped as in an epoch where that is asked for."""
    if not config.augment.crop_min_area:
        return source.take(positions)
    return source.crop(positions, crop_draws(hashes, seed=config.seed, epoch=epoch), config.augment.crop_min_area)
