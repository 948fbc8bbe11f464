"""Training steps of a shipped recipe against what this machine's cores reach in matrix products, in the same run.

python -m pytest -m benchmark -s tests/benchmarks/test_matrix_share.py

RESNET_BENCH_SECONDS is how long steps are taken at all sides together (30), RESNET_BENCH_RECIPE the recipe
(cifar-fast). A step is the project's own: normalise, shrink, forward, backward, update, average of the weights; rows
are read and augmented before. Work is counted as papers do: 2 operations a multiply-add of convolutions and the
classifier, the backward pass as two forward ones; so do the fixed patches of a whitening stem, which are under 1%.
Norms, ReLU and the rest of a step take time and count as no work.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from pipelines.config.load import find_preset, load_config
from pipelines.train.assemble import Parts, assemble
from pipelines.train.batch import Batch
from pipelines.train.collectives import World
from pipelines.train.config import TrainConfig
from pipelines.train.feed import SplitRows
from pipelines.train.network_spec import settle_spec
from pipelines.train.schedule import side_at
from pipelines.train.transfer import set_training
from resnet_models.complexity import count
from tests import factories

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

SECONDS = float(os.environ.get("RESNET_BENCH_SECONDS", "30"))
RECIPE = os.environ.get("RESNET_BENCH_RECIPE", "cifar-fast")
THREADS = 2
SIDE_PX, CLASSES, NUM_IMAGES = 32, 10, 1_000
IS_SMOKE = SECONDS < 10
TURNS = 1 if IS_SMOKE else 3
PASSES = 3
"""Forward, gradient of the inputs, gradient of the weights."""
PRODUCTS = (512,) if IS_SMOKE else (2048, 4096)
REPEATS = 5
MAX_BATCHES = 1 if IS_SMOKE else 6
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
LEAST = 0.1


@dataclass
class Side:
    """A side that the recipe gives images, and what its steps took."""

    epoch: int
    """First of its epochs, from 1."""
    epochs: int
    mmacs: float
    """Millions of multiply-adds of one image forward."""
    batches: list[Batch]
    steps_s: list[float] = field(default_factory=list)

    @property
    def image_s(self) -> float:
        """Seconds an image."""
        return statistics.median(self.steps_s) / len(self.batches[0].targets)

    @property
    def image_gflop(self) -> float:
        """Operations of an image's step, 10^9."""
        return 2 * PASSES * self.mmacs / 1e3


def product_gflops(dtype: torch.dtype) -> float:
    """Return the most 10^9 operations a second that products of square matrices reach."""
    best = 0.0
    for size in PRODUCTS:
        left, right = (torch.rand(size, size).to(dtype) for _ in range(2))
        out = torch.mm(left, right)
        for _ in range(REPEATS):
            began_s = time.perf_counter()
            torch.mm(left, right, out=out)
            best = max(best, 2 * size**3 / (time.perf_counter() - began_s) / 1e9)
    return best


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    from pipelines.ingest.config import IngestConfig, SplitConfig
    from pipelines.ingest.stage import run
    from pipelines.ingest.unit import ingest_unit

    files = [(f"{n % CLASSES}/{n:05d}.png", factories.make_png(n, SIDE_PX, SIDE_PX)) for n in range(NUM_IMAGES)]
    (tmp_path / "small.zip").write_bytes(factories.make_zip(files))
    split = SplitConfig(train=0.9, val=0.05, test=0.05)
    config = IngestConfig(source=str(tmp_path / "small.zip"), out=str(tmp_path / "dataset"), split=split)
    return run(config, lambda job, units: (ingest_unit(unit, job) for unit in units)).out


def sides_of(config: TrainConfig, parts: Parts) -> dict[int, Side]:
    """Return the sides of the recipe's images, in the order of its epochs."""
    spec = settle_spec(config.model, [str(number) for number in range(CLASSES)], (SIDE_PX, SIDE_PX))
    numbers = range(1, config.epochs + 1)
    by_epoch = {n: side_at(config.progressive, side_px=SIDE_PX, epoch=n, epochs=config.epochs) for n in numbers}
    sides = {}
    for side, epochs in Counter(by_epoch.values()).items():
        epoch = next(n for n in numbers if by_epoch[n] == side)
        whole = [batch for batch in parts.feed.batches(epoch) if len(batch.targets) == config.global_batch_size]
        sides[side] = Side(epoch, epochs, count(spec, image_size_px=side).macs / 1e6, whole[:MAX_BATCHES])
    return sides


def take_steps(parts: Parts, side: Side, seconds: float) -> None:
    """Take steps at a side and note what each took but the first, which makes the kernels for it."""
    parts.state.cursor.epoch = side.epoch - 1
    parts.step(side.batches[0], 0.1)
    until_s = time.perf_counter() + seconds
    while time.perf_counter() < until_s or len(side.steps_s) < len(side.batches):
        for batch in side.batches:
            began_s = time.perf_counter()
            parts.step(batch, 0.1)
            side.steps_s.append(time.perf_counter() - began_s)


def test_share_of_the_matrix_peak(dataset: str) -> None:
    torch.set_num_threads(THREADS)
    config = load_config(TrainConfig, find_preset("train", RECIPE), inputs={"dataset": dataset})
    parts = assemble(config, World(), torch.device("cpu"), None, SplitRows)
    set_training(parts.state.network, parts.frozen)
    sides = sides_of(config, parts)
    peaks = {name: product_gflops(dtype) for name, dtype in TYPES.items()}
    for _ in range(TURNS):
        for side in sides.values():
            take_steps(parts, side, SECONDS / TURNS / len(sides))
    peaks = {name: max(peaks[name], product_gflops(dtype)) for name, dtype in TYPES.items()}
    precision = parts.precision.name
    products = ", ".join(f"{name} {peak:,.0f}" for name, peak in peaks.items())
    print(f"\n{RECIPE}, batch {config.global_batch_size}, {precision} (config: {config.precision}), {THREADS} threads")
    print(f"products of {' and '.join(f'{size:,}' for size in PRODUCTS)} square, GFLOP/s: {products}")
    print("side px   epochs   images/s   million MACs   GFLOP/s   share of the peak in " + "   in ".join(peaks))

    def row(name: str, epochs: int, gflop: float, seconds: float) -> float:
        shares = {of: gflop / seconds / peak for of, peak in peaks.items()}
        print(
            f"{name:7} {epochs:8} {1 / seconds:10,.0f} {1e3 * gflop / 2 / PASSES:14.1f} {gflop / seconds:9,.0f}"
            + "".join(f"{share:14.2f}" for share in shares.values())
        )
        return shares[precision]

    for size, side in sides.items():
        row(str(size), side.epochs, side.image_gflop, side.image_s)
    gflop, seconds = (
        sum(getattr(side, what) * side.epochs for side in sides.values()) / config.epochs
        for what in ("image_gflop", "image_s")
    )
    share = row("all", config.epochs, gflop, seconds)
    assert IS_SMOKE or share > LEAST
