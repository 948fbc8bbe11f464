"""Looks at a training before it is run for hours: two steps of everything, and a range test of the learning rate.

Both work in a throwaway folder, in this process, with the loop's own parts; nothing is published or tracked.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from pipelines import capacity
from pipelines.errors import DataError
from pipelines.progress import Progress
from pipelines.stage_output import StageResult
from pipelines.storage import Storage
from pipelines.train.assemble import Parts, assemble
from pipelines.train.batch import Batch
from pipelines.train.batch_size import as_one_worker, unrecorded
from pipelines.train.checkpoint import load_checkpoint, save_checkpoint
from pipelines.train.collectives import World
from pipelines.train.config import TrainConfig
from pipelines.train.evaluation import evaluate
from pipelines.train.feed import SplitRows
from pipelines.train.group import warn_unusable_gpu
from pipelines.train.model import MODEL, write_model
from pipelines.train.plan import plan as make_plan
from pipelines.train.precision import resolve_device
from pipelines.train.process_memory import peak_bytes
from pipelines.train.schedule import side_at
from pipelines.train.stage import check
from pipelines.train.transfer import set_training

SMOKE_STEPS = 2
LOWEST, HIGHEST = 1e-4, 10.0
"""Ends of the range test, as multiples of `optimizer.lr`."""
_SMOOTHING = 0.9
_ENOUGH = 4.0
"""The test ends where the smoothed loss is so many times its lowest."""


@dataclass(frozen=True)
class RangePoint:
    """One step of a range test."""

    lr: float
    loss: float
    """Mean over the step's rows."""
    smooth: float
    """Exponential mean of it, without the bias of its start."""


def smoke(config: TrainConfig) -> StageResult:
    """Take two steps, evaluate, write a checkpoint and a package, read them again; say what the whole would take.

    Progressive images come in their first and in their last size. Of several workers this process is one.

    Raises:
        PipelineError: what would have ended the run.
    """
    from pipelines.package.load import load_package

    whole = _pinned(config)
    config = as_one_worker(whole, whole.global_batch_size)
    with tempfile.TemporaryDirectory(prefix="resnet-smoke-") as folder:
        run = Storage.open(folder)
        parts, device_name = _open(config)
        areas = _areas_of_epochs(config, parts)
        # The largest images decide whether memory suffices; the smallest are timed too where they are others.
        epochs = [config.epochs] if areas[0] == areas[-1] else [1, config.epochs]
        timed = {areas[epoch - 1]: _timed_step(parts, epoch) for epoch in epochs}
        step_s, num_images = timed[areas[-1]]
        started_s = time.perf_counter()
        val = evaluate(
            parts.state.network,
            parts.state.kept_weights(),
            parts.val_rows,
            parts.step.prepare,
            world=World(),
            device=resolve_device(device_name),
            precision=parts.precision,
        )
        evaluation_s = time.perf_counter() - started_s
        parts.state.cursor.epoch = 1
        save_checkpoint(run, parts.state.cursor.step, parts.state.to_files(parts.identity))
        checkpoint = load_checkpoint(run, parts.state.cursor.step)
        parts.state.load_files(checkpoint, parts.identity)
        parts.state.cursor.best.step = checkpoint.step
        write_model(config, run, parts.state.cursor.best)
        load_package(str(Path(folder) / MODEL))
    # A step's time rises with the pixels of an image above what it costs at any size.
    by_area = np.interp(areas, list(timed), [spent_s for spent_s, _ in timed.values()])
    num_batches = math.ceil(parts.feed.num_rows / whole.global_batch_size)
    whole_s = num_batches * float(by_area.sum()) + config.epochs * evaluation_s / whole.num_workers
    workers = f" with {whole.num_workers} workers like this process" if whole.num_workers > 1 else ""
    figures_shown: dict[str, float | int | str] = {
        "steps": f"{parts.state.cursor.step} of {config.epochs * num_batches:,}",
        "device": f"{device_name}, {parts.precision.name}",
        "images_per_s": round(num_images / step_s, 1),
        "val_loss": val["val_loss"],
        "peak_memory_mb": peak_bytes() >> 20,
        "whole_run_would_take": _duration(whole_s) + workers,
    }
    return StageResult("train --smoke", "nothing was kept", "", skipped=False, figures=figures_shown)


def _areas_of_epochs(config: TrainConfig, parts: Parts) -> list[int]:
    """Return the pixels of an image in each epoch."""
    shape, progressive, epochs = parts.train_rows.image_shape, config.progressive, config.epochs
    return [
        math.prod(side_at(progressive, side_px=side, epoch=epoch, epochs=epochs) for side in shape)
        for epoch in range(1, epochs + 1)
    ]


def _timed_step(parts: Parts, epoch: int) -> tuple[float, int]:
    """Take the first steps as an epoch would; return the seconds of the last one and its images.

    Raises:
        DataError: the loss is no number.
    """
    parts.state.cursor.epoch = epoch - 1
    for batch in islice(parts.feed.batches(epoch), SMOKE_STEPS):
        started_s = time.perf_counter()
        figures = parts.step(batch, 1.0).tolist()
        spent_s = time.perf_counter() - started_s
        parts.state.cursor.step += 1
        if not math.isfinite(figures[0]):
            raise DataError("the loss of the first steps is no number", mend="lower optimizer.lr, or verify the data")
    return spent_s, len(batch.targets)


def find_rate(config: TrainConfig, *, steps: int = 200) -> tuple[StageResult, list[RangePoint]]:
    """Raise the learning rate step by step until the loss breaks, and say which rate to take (arXiv:1506.01186).

    Suggested is a third of the rate at which the smoothed loss is lowest: past it the loss no longer falls, and the
    peak of a schedule that stays there for long must lie below. Progressive images have their last, full side here.
    Whole batches are taken by this process alone, in pieces where memory is short, however many workers the run has.

    Args:
        config: the run; its schedule is not looked at, and the rates go from 1/10,000 to 10 times its own.
        steps: steps of the whole range.

    Raises:
        DataError: the loss broke before it fell.
    """
    config = _pinned(config)
    parts, device_name = _open(config)
    parts.state.cursor.epoch = config.epochs - 1  # most steps of a run see images as large as there
    points: list[RangePoint] = []
    mean = 0.0
    with Progress(steps, label="find-lr", unit="steps") as progress:
        for number, batch in enumerate(islice(_endless(parts), steps)):
            progress.advance()
            factor = LOWEST * (HIGHEST / LOWEST) ** (number / max(1, steps - 1))
            loss = parts.step(batch, factor).tolist()[0] / batch.global_rows
            parts.state.cursor.step += 1
            if not math.isfinite(loss):
                break
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            smooth = mean / (1 - _SMOOTHING ** (number + 1))
            points.append(RangePoint(factor * config.optimizer.lr, loss, smooth))
            if smooth > _ENOUGH * min(point.smooth for point in points):
                break
    lowest = min(points, key=lambda point: point.smooth, default=None)
    if lowest is None or lowest.smooth > 0.98 * points[0].smooth:
        raise DataError(
            "the loss did not fall at any rate",
            mend="test another range with a smaller or larger optimizer.lr, or more steps",
        )
    figures: dict[str, float | int | str] = {
        "steps": len(points),
        "device": device_name,
        "loss": f"{points[0].smooth:.3f} at the start, lowest {lowest.smooth:.3f} at a rate of {lowest.lr:.2g}",
        "suggested": f"optimizer.lr={suggested_rate(points):g} held for long, {lowest.lr:.1g} as a warmed-up peak",
    }
    result = StageResult("train --find-lr", "nothing was kept", "", skipped=False, figures=figures)
    return result, points


def suggested_rate(points: list[RangePoint]) -> float:
    """Return a third of the rate at the lowest smoothed loss."""
    return float(f"{min(points, key=lambda point: point.smooth).lr / 3:.1e}")


def _pinned(config: TrainConfig) -> TrainConfig:
    """Return the config with its dataset pinned, recorded nowhere; what the run would refuse is refused."""
    check(config)
    return unrecorded(config.model_copy(update={"dataset": make_plan(config).dataset}))


def _open(config: TrainConfig) -> tuple[Parts, str]:
    if config.use_gpu is True:
        capacity.check_gpu(use_gpu=True)
    elif config.use_gpu == "auto":
        warn_unusable_gpu()
    device = resolve_device("cpu" if config.use_gpu is False else "auto")
    parts = assemble(config, World(), device, None, SplitRows)
    set_training(parts.state.network, parts.frozen)
    return parts, device.type


def _endless(parts: Parts) -> Iterator[Batch]:
    epoch = 0
    while True:
        epoch += 1
        yield from parts.feed.batches(epoch)


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
