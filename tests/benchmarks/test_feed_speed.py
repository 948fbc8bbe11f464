"""The data feed alone, interleaved with its peers in one run: photographs from Parquet, small images from memory.

python -m pytest -m benchmark -s tests/benchmarks/test_feed_speed.py

RESNET_BENCH_PHOTOS names a tar of photographs in place of 40 made ones, RESNET_BENCH_SECONDS the length of a side
(default 20).
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.train.collectives import World
from pipelines.train.config import AugmentConfig, TrainConfig
from resnet_models.spec import ModelSpec
from tests import factories
from tests.benchmarks.bench_images import photographs

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

SECONDS = float(os.environ.get("RESNET_BENCH_SECONDS", "20"))
PAIRS = 3
WORKERS = 2
BATCH = 128
CROPS = AugmentConfig(shift_px=0, crop_min_area=0.08)


def config_for(dataset: str, augment: AugmentConfig) -> TrainConfig:
    return TrainConfig(dataset=dataset, augment=augment, global_batch_size=BATCH)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A dataset of 256-pixel JPEGs, and the same JPEGs as a folder of classes."""
    from pipelines.dataset.reader import open_dataset
    from pipelines.ingest.config import ImageConfig, IngestConfig, SplitConfig
    from pipelines.ingest.stage import run
    from pipelines.ingest.unit import ingest_unit

    root = tmp_path_factory.mktemp("photos")
    for number, data in enumerate(photographs()):
        place = root / "source" / str(number % 10) / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    config = IngestConfig(
        source=str(root / "source"),
        out=str(root / "dataset"),
        image=ImageConfig(keep_bytes=False, encoding="jpeg"),
        split=SplitConfig(train=0.98, val=0.01, test=0.01),
    )
    address = run(config, lambda job, units: (ingest_unit(unit, job) for unit in units)).out
    table = open_dataset(address).table("train", ["image", "label"]).to_pylist()
    for number, row in enumerate(table):
        folder = root / "folder" / (row["label"] or "none").replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(row["image"]["bytes"])
    return address, root / "folder"


def our_worker(rank: int, address: str, seconds: float, results: Any) -> None:
    from pipelines.dataset.reader import open_dataset
    from pipelines.train.feed import SplitRows, TrainFeed, window_groups_of

    began_s = time.perf_counter()
    torch.set_num_threads(1)
    world = World(rank, WORKERS)
    windows = window_groups_of(BATCH, world)
    rows = SplitRows(open_dataset(address), "train", limit_bytes=0, threads=1, window_groups=windows, stored=True)
    feed = TrainFeed(rows, config_for(address, CROPS), world, (0.5, 0.5, 0.5))
    results.put(counted(lambda: (len(batch.targets) for batch in endless(feed.batches)), seconds, began_s))


def endless(batches: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    epoch = 0
    while True:
        epoch += 1
        yield from batches(epoch)


def counted(sizes: Callable[[], Iterator[int]], seconds: float, began_s: float) -> tuple[float, float]:
    """Return seconds to the first batch and images per second after it."""
    iterator = sizes()
    next(iterator)
    first_s = time.perf_counter() - began_s
    started_s, images = time.perf_counter(), 0
    while time.perf_counter() - started_s < seconds:
        images += next(iterator)
    return first_s, images / (time.perf_counter() - started_s)


def ours(address: str, seconds: float) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=our_worker, args=(rank, address, seconds, results)) for rank in range(WORKERS)]
    for process in processes:
        process.start()
    found = [results.get(timeout=seconds + 120) for _ in processes]
    for process in processes:
        process.join()
    return max(first_s for first_s, _ in found), sum(rate for _, rate in found)


def image_folder(folder: Path, seconds: float) -> tuple[float, float]:
    from torch.utils.data import DataLoader
    from torchvision import datasets
    from torchvision.transforms import v2

    began_s = time.perf_counter()
    changes = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    loader = DataLoader(
        datasets.ImageFolder(str(folder), changes),
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    return counted(lambda: (len(images) for images, _ in endless(lambda _: iter(loader))), seconds, began_s)


def test_photographs_against_image_folder(photos: tuple[str, Path]) -> None:
    address, folder = photos
    pairs = []
    for number in range(PAIRS):
        sides = [lambda: ours(address, SECONDS), lambda: image_folder(folder, SECONDS)]
        found = [side() for side in (sides if number % 2 == 0 else reversed(sides))]
        pairs.append(found if number % 2 == 0 else found[::-1])
    print(f"\n224 px random resized crop and flip from 256 px JPEGs, {WORKERS} processes, {SECONDS:.0f} s a side")
    print("images/s       ours   ImageFolder + DataLoader   ratio   first batch: ours, peer")
    for (first_s, rate), (peer_first_s, peer_rate) in pairs:
        print(f"{rate:19,.0f} {peer_rate:26,.0f} {rate / peer_rate:7.2f} {first_s:14.1f} s {peer_first_s:6.1f} s")
    ratio = statistics.median(own[1] / peer[1] for own, peer in pairs)
    print(f"median ratio {ratio:.2f} (bar 3)")
    assert ratio > 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    from pipelines.ingest.config import IngestConfig, SplitConfig
    from pipelines.ingest.stage import run
    from pipelines.ingest.unit import ingest_unit

    root = tmp_path_factory.mktemp("small")
    files = [(f"{number % 10}/{number:05d}.png", factories.make_png(number, 32, 32)) for number in range(10_000)]
    (root / "small.zip").write_bytes(factories.make_zip(files))
    config = IngestConfig(
        source=str(root / "small.zip"), out=str(root / "dataset"), split=SplitConfig(train=0.98, val=0.01, test=0.01)
    )
    return run(config, lambda job, units: (ingest_unit(unit, job) for unit in units)).out


def plain_loop(pixels: torch.Tensor, targets: torch.Tensor, shift: int) -> Iterator[int]:
    """Shuffle, shift with a mirrored border and flip in batches, with torch's own generator; one gather of pixels."""
    size = pixels.shape[1]
    flat = pixels.reshape(-1, 3)
    line = torch.arange(size)
    while True:
        order = torch.randperm(len(pixels))
        for chosen in order.split(BATCH):
            number = len(chosen)
            rows = (line + torch.randint(-shift, shift + 1, (number, 1))).abs()
            columns = (line + torch.randint(-shift, shift + 1, (number, 1))).abs()
            rows, columns = ((size - 1) - (size - 1 - index).abs() for index in (rows, columns))
            columns = torch.where(torch.rand(number, 1) < 0.5, columns.flip(1), columns)
            index = ((chosen * size)[:, None] + rows)[:, :, None] * size + columns[:, None, :]
            batch = flat.index_select(0, index.reshape(-1)).view(number, size, size, 3)
            yield len(targets[chosen]) + 0 * len(batch)


def test_small_images_from_memory_against_a_plain_tensor_loop(small: str) -> None:
    from pipelines.dataset.reader import open_dataset
    from pipelines.train.feed import SplitRows, TrainFeed

    torch.set_num_threads(2)
    rows = SplitRows(open_dataset(small), "train", limit_bytes=1 << 30, threads=2)
    feed = TrainFeed(rows, config_for(small, AugmentConfig(shift_px=4)), World(), (0.5, 0.5, 0.5))
    everything = torch.from_numpy(rows.pixels.take(np.arange(rows.num_rows)))
    targets = torch.from_numpy(rows.targets)
    seconds = SECONDS / 4
    pairs = []
    for _ in range(PAIRS):
        now_s = time.perf_counter()
        own = counted(lambda: (len(batch.targets) for batch in endless(feed.batches)), seconds, now_s)[1]
        peer = counted(lambda: plain_loop(everything, targets, 4), seconds, now_s)[1]
        pairs.append((own, peer))
        print(f"\n32 px from memory: ours {own:,.0f}, plain tensor loop {peer:,.0f} images/s, ratio {own / peer:.2f}")
    print(f"median ratio {statistics.median(own / peer for own, peer in pairs):.2f} (bar 0.8)")
    assert all(own > 0 for own, _ in pairs)


def own_memory_mb() -> float:
    """Return this process's memory, what it shares with others divided among them."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def open_and_read(rank: int, address: str, is_shared: bool, barrier: Any, results: Any) -> None:
    from pipelines.dataset.reader import open_dataset
    from pipelines.train.feed import SplitRows, TrainFeed

    torch.set_num_threads(1)
    world, dataset = World(rank, WORKERS), open_dataset(address)
    dataset.table("train", ["label"])  # what reading itself loads is no part of what is measured
    barrier.wait()
    before_mb, began_s, began_cpu_s = own_memory_mb(), time.perf_counter(), time.process_time()
    together = {"world": world, "run": "benchmark"} if is_shared else {}
    rows = SplitRows(dataset, "train", limit_bytes=1 << 30, threads=1, **together)
    next(TrainFeed(rows, config_for(address, AugmentConfig(shift_px=4)), world, (0.5, 0.5, 0.5)).batches(1))
    took = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    barrier.wait()
    results.put((own_memory_mb() - before_mb, *took))
    barrier.wait()
    rows.release()


def test_two_workers_of_a_machine_hold_small_images_once(small: str) -> None:
    context = multiprocessing.get_context("spawn")
    print(f"\n9,800 images of 32 px (29 MB), {WORKERS} workers of one thread")
    print("              memory MB   first batch s   CPU s   (memory and CPU of all)")
    for is_shared in [False, True] * PAIRS:
        barrier, results = context.Barrier(WORKERS), context.Queue()
        processes = [
            context.Process(target=open_and_read, args=(rank, small, is_shared, barrier, results))
            for rank in range(WORKERS)
        ]
        for process in processes:
            process.start()
        found = [results.get(timeout=300) for _ in processes]
        for process in processes:
            process.join()
        memory_mb, first_s, cpu_s = (sum(column) for column in zip(*found, strict=True))
        how = "shared" if is_shared else "each its own"
        print(f"{how:12} {memory_mb:10.1f} {first_s / WORKERS:15.2f} {cpu_s:7.2f}")
        assert memory_mb > 0


def test_what_keying_every_draw_by_sample_costs() -> None:
    """The keyed draws of a batch against unkeyed ones, as a share of a training step of ResNet-20."""
    from pipelines.dataset.keyed import image_hashes, keyed_uniform
    from resnet_models.resnet import build

    torch.set_num_threads(2)
    network = build(ModelSpec(depth=20, stem="cifar", num_classes=10)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % 10
    hashes = image_hashes([f"{number:032x}" for number in range(BATCH)])
    generator = np.random.default_rng(0)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    def seconds_of(work: Callable[[], object], times: int) -> float:
        taken = []
        for _ in range(times):
            began_s = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began_s)
        return statistics.median(taken)

    step()
    step_s = seconds_of(step, 10)
    keyed_s = seconds_of(lambda: [keyed_uniform(0, 1, hashes, stream=stream) for stream in range(5)], 200)
    plain_s = seconds_of(lambda: [generator.random(BATCH) for _ in range(5)], 200)
    share = (keyed_s - plain_s) / step_s
    print(
        f"\n5 draws an image: keyed {1e6 * keyed_s:.0f} us a batch, unkeyed {1e6 * plain_s:.0f} us;"
        f" a step takes {1e3 * step_s:.0f} ms"
    )
    print(f"keying costs {share:.2%} of the step (bar 3%)")
    assert share < 1
