"""Feeds of crops of photographs that are measured beside each other, each in processes of its own.

Ours, torchvision's ImageFolder behind a DataLoader, and litdata with our decoder and our crops. litdata is no
dependency: `pip install litdata` adds it; so that the environment stays as it is,

pip install --no-deps --target /tmp/litdata-site litdata lightning-utilities tifffile

and PYTHONPATH=/tmp/litdata-site. What it needs besides is there already.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import queue
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch

from pipelines.image.decode import Scratch, decode_image
from pipelines.train.collectives import World
from pipelines.train.config import AugmentConfig, TrainConfig
from pipelines.train.crops import resized_crop

WORKERS = 2
BATCH = 128
SIDE_PX = 224
MIN_AREA = 0.08
CROPS = AugmentConfig(shift_px=0, crop_min_area=MIN_AREA)
CHUNK_BYTES = 64 << 20
HAS_LITDATA = importlib.util.find_spec("litdata") is not None
PATIENCE_S = 600


@dataclass(frozen=True)
class Fed:
    """What a feed did."""

    first_s: float
    """Seconds to the first batch, imports left out."""
    images_per_s: float
    """Images a second after it."""
    cpu_us: float
    """Microseconds of CPU an image after it, of all processes."""


def together(feds: Sequence[Fed]) -> Fed:
    """Return what feeds did that ran at the same time."""
    rate = sum(fed.images_per_s for fed in feds)
    cpu_us = sum(fed.cpu_us * fed.images_per_s for fed in feds) / rate
    return Fed(max(fed.first_s for fed in feds), rate, cpu_us)


def middle(feds: Sequence[Fed]) -> Fed:
    """Return the median of each figure."""
    columns = zip(*((fed.first_s, fed.images_per_s, fed.cpu_us) for fed in feds), strict=True)
    return Fed(*(statistics.median(column) for column in columns))


def config_for(dataset: str, augment: AugmentConfig) -> TrainConfig:
    return TrainConfig(dataset=dataset, augment=augment, global_batch_size=BATCH)


def endless(batches: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    epoch = 0
    while True:
        epoch, is_empty = epoch + 1, True
        for batch in batches(epoch):
            is_empty = False
            yield batch
        assert not is_empty, "an epoch without a batch"


def cpu_s() -> float:
    """Return the CPU seconds of this process and of all that it started and that still run."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return float(sum(spent.user + spent.system for spent in times))


def counted(sizes: Callable[[], Iterator[int]], seconds: float, began_s: float, barrier: Any = None) -> Fed:
    """Return what a feed does, given the sizes of its batches; those behind one barrier begin to count together."""
    iterator = sizes()
    next(iterator)
    first_s = time.perf_counter() - began_s
    if barrier is not None:
        barrier.wait(PATIENCE_S)
    started_s, started_cpu_s, images = time.perf_counter(), cpu_s(), 0
    while time.perf_counter() - started_s < seconds:
        images += next(iterator)
    return Fed(first_s, images / (time.perf_counter() - started_s), 1e6 * (cpu_s() - started_cpu_s) / images)


def at_once(target: Callable[..., Any], number: int, *arguments: Any) -> list[Any]:
    """Return what `target(rank, barrier, *arguments)` does in so many new processes."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(number), context.Queue()
    processes = [
        context.Process(target=_answer, args=(target, results, rank, barrier, *arguments)) for rank in range(number)
    ]
    for process in processes:
        process.start()
    found: list[Any] = []
    try:
        while len(found) < number:
            try:
                found.append(results.get(timeout=1))
            except queue.Empty:
                assert not any(process.exitcode for process in processes), "a process failed, as it says above"
    finally:
        if len(found) < number:
            barrier.abort()
        for process in processes:
            process.join()
    return found


def _answer(target: Callable[..., Any], results: Any, rank: int, barrier: Any, *arguments: Any) -> None:
    torch.set_num_threads(1)
    results.put(target(rank, barrier, *arguments))


def read_ours(rank: int, barrier: Any, address: str, seconds: float, times: int) -> tuple[Fed, float]:
    """Read a dataset whose shards are listed so many times over; return what the feed does, and the peak memory in MB.

    The files are the same again; the rows, row groups and bytes that pass through the feed are not.
    """
    from pipelines.dataset.reader import Dataset, open_dataset
    from pipelines.train.feed import SplitRows, TrainFeed
    from pipelines.train.read_ahead import window_groups_of

    barrier.wait(PATIENCE_S)
    began_s = time.perf_counter()
    world, opened = World(rank, WORKERS), open_dataset(address)
    catalog = {**opened.catalog, "shard_lists": times * opened.catalog["shard_lists"]}
    dataset, windows = Dataset(opened.uri, opened.version, catalog), window_groups_of(BATCH, world)
    rows = SplitRows(dataset, "train", limit_bytes=0, threads=1, window_groups=windows, stored=True)
    feed = TrainFeed(rows, config_for(address, CROPS), world, (0.5, 0.5, 0.5))
    fed = counted(lambda: (len(batch.targets) for batch in endless(feed.batches)), seconds, began_s, barrier)
    lines = Path("/proc/self/status").read_text().splitlines()
    return fed, next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def read_image_folder(rank: int, barrier: Any, folder: Path, seconds: float) -> Fed:
    from torch.utils.data import DataLoader
    from torchvision import datasets
    from torchvision.transforms import v2

    barrier.wait(PATIENCE_S)
    began_s = time.perf_counter()
    changes = v2.Compose([v2.RandomResizedCrop(SIDE_PX), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    loader = DataLoader(
        datasets.ImageFolder(str(folder), changes),
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    return counted(lambda: (len(images) for images, _ in endless(lambda _: iter(loader))), seconds, began_s, barrier)


class Changes:
    """Decodes, crops and flips a sample with the functions of our feed; its draws come from a generator."""

    def __init__(self) -> None:
        self._scratch = Scratch()
        self._generator: np.random.Generator | None = None

    def __call__(self, sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        """Return uint8 (H, W, 3) and the class number."""
        generator = self._generator = self._generator or np.random.default_rng()  # made in the worker, so each its own
        draws = generator.random(5)
        pixels = decode_image(sample["image"], scratch=self._scratch).pixels
        crop = np.empty((SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
        resized_crop(pixels, draws[:4], MIN_AREA, crop)
        if draws[4] < 0.5:
            cv2.flip(crop, 1, dst=crop)  # as `shifts.flip` does, which takes a batch
        return torch.from_numpy(crop), sample["label"]


def _sample(name: str, folder: Path) -> dict[str, Any]:
    return {"image": (folder / name).read_bytes(), "label": int(name.partition("/")[0])}


def write_chunks(folder: Path, out: Path) -> None:
    """Write the images of a folder, of folders that are named by class numbers, as litdata's chunks."""
    import litdata

    litdata.optimize(
        fn=partial(_sample, folder=folder),
        inputs=[str(path.relative_to(folder)) for path in sorted(folder.rglob("*.jpg"))],
        output_dir=str(out),
        chunk_bytes=CHUNK_BYTES,
        num_workers=WORKERS,
        start_method="spawn",
        verbose=False,
    )


def read_litdata(rank: int, barrier: Any, chunks: Path, seconds: float, num_workers: int) -> Fed:
    """Read with a DataLoader's workers, or without any as one of as many ranks, as our workers are."""
    import litdata

    if not num_workers:
        os.environ |= {"WORLD_SIZE": str(WORKERS), "GLOBAL_RANK": str(rank)}
    barrier.wait(PATIENCE_S)
    began_s = time.perf_counter()
    dataset = litdata.StreamingDataset(str(chunks), shuffle=True, transform=Changes())
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    return counted(lambda: (len(images) for images, _ in endless(lambda _: iter(loader))), seconds, began_s, barrier)


def ours(address: str, seconds: float, times: int = 1) -> tuple[Fed, float]:
    """Return what our feed does, and the peak memory in MB of the worker that needs most."""
    feds, peaks_mb = zip(*at_once(read_ours, WORKERS, address, seconds, times), strict=True)
    return together(feds), max(peaks_mb)


def image_folder(folder: Path, seconds: float) -> Fed:
    return together(at_once(read_image_folder, 1, folder, seconds))


def litdata_loader(chunks: Path, seconds: float) -> Fed:
    return together(at_once(read_litdata, 1, chunks, seconds, WORKERS))


def litdata_ranks(chunks: Path, seconds: float) -> Fed:
    return together(at_once(read_litdata, WORKERS, chunks, seconds, 0))
