"""The data feed alone, interleaved with its peers in one run: photographs from Parquet, small images from memory.

python -m pytest -m benchmark -s tests/benchmarks/test_feed_speed.py

RESNET_BENCH_PHOTOS names a tar of photographs in place of 40 made ones, of which there are copies up to
RESNET_BENCH_IMAGES (default 8,000: an epoch should last some seconds; at least 600, so that every rank has a batch);
RESNET_BENCH_SECONDS is the length of a side (default 20), RESNET_BENCH_PAIRS the number of turns (3). `feed_sides.py`
says how to add litdata.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.train.collectives import World
from pipelines.train.config import AugmentConfig
from resnet_models.spec import ModelSpec
from tests import factories
from tests.benchmarks import feed_sides
from tests.benchmarks.bench_images import photographs
from tests.benchmarks.feed_sides import BATCH, WORKERS, Fed, at_once, config_for, counted, endless, middle

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

SECONDS = float(os.environ.get("RESNET_BENCH_SECONDS", "20"))
LONG_S = 20
"""From this length of a side on, ratios are judged."""
IMAGES = max(600, int(os.environ.get("RESNET_BENCH_IMAGES", "8000")))
PAIRS = int(os.environ.get("RESNET_BENCH_PAIRS", "3" if SECONDS >= LONG_S else "1"))
FILLED_S = 8
"""Seconds after which an idle machine has read from every row group of the windows."""
TEN = 10
MAX_GROWTH = 1.2


@dataclass(frozen=True)
class Photos:
    """The same 256-pixel JPEGs in every form."""

    address: str
    """Of the dataset."""
    folder: Path
    """A folder for each class number."""
    chunks: Path | None
    """litdata's; None where it is not installed."""
    number: int


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    from pipelines.dataset.reader import open_dataset
    from pipelines.ingest.config import DuplicatesConfig, ImageConfig, IngestConfig, SplitConfig
    from pipelines.ingest.stage import run
    from pipelines.ingest.unit import ingest_unit

    root = tmp_path_factory.mktemp("photos")
    images = photographs()
    for number in range(max(IMAGES, len(images))):
        place = root / "source" / str(number % 10) / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(images[number % len(images)])
    config = IngestConfig(
        source=str(root / "source"),
        out=str(root / "dataset"),
        image=ImageConfig(keep_bytes=False, encoding="jpeg"),
        split=SplitConfig(train=0.98, val=0.01, test=0.01),
        duplicates=DuplicatesConfig(exact="keep"),
    )
    address = run(config, lambda job, units: (ingest_unit(unit, job) for unit in units)).out
    table = open_dataset(address).table("train", ["image", "label"]).to_pylist()
    for number, row in enumerate(table):
        folder = root / "folder" / row["label"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(row["image"]["bytes"])
    chunks = root / "chunks" if feed_sides.HAS_LITDATA else None
    if chunks:
        feed_sides.write_chunks(root / "folder", chunks)
    return Photos(address, root / "folder", chunks, len(table))


def test_photographs_against_image_folder_and_litdata(photos: Photos) -> None:
    sides: dict[str, Callable[[], Fed]] = {
        "ours": lambda: feed_sides.ours(photos.address, SECONDS)[0],
        "ImageFolder + DataLoader": lambda: feed_sides.image_folder(photos.folder, SECONDS),
    }
    bars = {"ImageFolder + DataLoader": 3.0}
    if chunks := photos.chunks:
        sides["litdata, DataLoader's workers"] = lambda: feed_sides.litdata_loader(chunks, SECONDS)
        sides["litdata, a rank a process"] = lambda: feed_sides.litdata_ranks(chunks, SECONDS)
        bars |= dict.fromkeys(list(sides)[2:], 1.0)
    found: dict[str, list[Fed]] = {name: [] for name in sides}
    for turn in range(PAIRS):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(sides[name]())
    print(f"\n224 px random resized crop and flip from {photos.number:,} JPEGs of 256 px, {WORKERS} worker processes,")
    print(f"{SECONDS:.0f} s a side after its first batch; medians of {PAIRS} turns; CPU of all processes of a side")
    print(f"{'':30} images/s  CPU us/image  first batch   ours/it: images/s    CPU   bar   images/s of each turn")
    missed = []
    for name, feds in found.items():
        fed, turns = middle(feds), "".join(f"{fed.images_per_s:8,.0f}" for fed in feds)
        ratio = statistics.median(a.images_per_s / b.images_per_s for a, b in zip(found["ours"], feds, strict=True))
        cost = statistics.median(a.cpu_us / b.cpu_us for a, b in zip(found["ours"], feds, strict=True))
        against = f"{ratio:20.2f} {cost:6.2f} {bars.get(name, ''):>5}"
        print(f"{name:30} {fed.images_per_s:8,.0f} {fed.cpu_us:13,.0f} {fed.first_s:10.2f} s {against} {turns}")
        if ratio < bars.get(name, 0):
            missed.append(f"{ratio:.2f} times {name}")
    if not photos.chunks:
        print("litdata is not installed: `pip install litdata`, or as feed_sides.py says, and run this again")
    assert SECONDS < LONG_S or not missed, missed


def test_memory_when_the_photographs_become_ten_times_as_many(photos: Photos) -> None:
    """The windows of all workers hold 512 row groups, 1 GB: memory grows until they are full and then no more."""
    from pipelines.dataset.order import WINDOW_GROUPS
    from pipelines.dataset.reader import open_dataset

    dataset = open_dataset(photos.address)
    groups, size = len(dataset.row_groups("train")), sum(file.bytes for file in dataset.shards("train"))
    full = -(-WINDOW_GROUPS // groups)
    print(f"\npeak memory of each of {WORKERS} workers, crops of photographs, {SECONDS:.0f} s a side")
    print("    images  row groups   data GB   memory MB   images/s   first batch")
    peaks = []
    for times in (1, full, TEN * full):
        fed, peak_mb = feed_sides.ours(photos.address, max(SECONDS, FILLED_S if times > 1 else 0), times)
        peaks.append(peak_mb)
        print(
            f"{times * photos.number:10,} {times * groups:11,} {times * size / 1e9:9.2f} {peak_mb:11,.0f}"
            f" {fed.images_per_s:10,.0f} {fed.first_s:11.1f} s"
        )
    growth = peaks[2] / peaks[1]
    print(f"ten times the data that fills the windows takes {growth:.2f} of the memory (bar {MAX_GROWTH})")
    assert growth <= MAX_GROWTH


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
        own = counted(lambda: (len(batch.targets) for batch in endless(feed.batches)), seconds, now_s).images_per_s
        peer = counted(lambda: plain_loop(everything, targets, 4), seconds, now_s).images_per_s
        pairs.append((own, peer))
        print(f"\n32 px from memory: ours {own:,.0f}, plain tensor loop {peer:,.0f} images/s, ratio {own / peer:.2f}")
    print(f"median ratio {statistics.median(own / peer for own, peer in pairs):.2f} (bar 0.8)")
    assert SECONDS < LONG_S or statistics.median(own / peer for own, peer in pairs) >= 0.8


def own_memory_mb() -> float:
    """Return this process's memory, what it shares with others divided among them."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def open_and_read(rank: int, barrier: Any, address: str, is_shared: bool) -> tuple[float, float, float]:
    from pipelines.dataset.reader import open_dataset
    from pipelines.train.feed import Sharing, SplitRows, TrainFeed

    world, dataset = World(rank, WORKERS), open_dataset(address)
    dataset.table("train", ["label"])  # what reading itself loads is no part of what is measured
    barrier.wait()
    before_mb, began_s, began_cpu_s = own_memory_mb(), time.perf_counter(), time.process_time()
    sharing = Sharing("benchmark", world) if is_shared else None
    rows = SplitRows(dataset, "train", limit_bytes=1 << 30, threads=1, sharing=sharing)
    next(TrainFeed(rows, config_for(address, AugmentConfig(shift_px=4)), world, (0.5, 0.5, 0.5)).batches(1))
    took_s, took_cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    barrier.wait()
    memory_mb = own_memory_mb() - before_mb
    barrier.wait()
    rows.release()
    return memory_mb, took_s, took_cpu_s


def test_two_workers_of_a_machine_hold_small_images_once(small: str) -> None:
    print(f"\n9,800 images of 32 px (29 MB), {WORKERS} workers of one thread")
    print("              memory MB   first batch s   CPU s   (memory and CPU of all)")
    held: dict[bool, list[float]] = {False: [], True: []}
    for is_shared in [False, True] * PAIRS:
        found = at_once(open_and_read, WORKERS, small, is_shared)
        memory_mb, first_s, cpu_s = (sum(column) for column in zip(*found, strict=True))
        how = "shared" if is_shared else "each its own"
        print(f"{how:12} {memory_mb:10.1f} {first_s / WORKERS:15.2f} {cpu_s:7.2f}")
        held[is_shared].append(memory_mb)
    assert statistics.median(held[True]) < 0.8 * statistics.median(held[False])


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
    assert share <= 0.03
