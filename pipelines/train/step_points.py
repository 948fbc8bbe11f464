"""The curve of an epoch's steps: a point every so many of them, made from the step log."""

from __future__ import annotations

import math
from itertools import pairwise

from pipelines.tracking_records import Point
from pipelines.train.config import TrainConfig
from pipelines.train.schedule import rate_at
from pipelines.train.step_log import StepLog

POINTS = 30
"""Points of an epoch where `log_every_steps` leaves it to us: a curve, and one message to MLflow."""


def step_points(log: StepLog, config: TrainConfig, *, steps_per_epoch: int) -> list[Point]:
    """Return `step_loss`, `step_lr` and `step_images_per_s` of an epoch, every point at the last of its steps.

    Loss and speed are means over the steps since the point before; every point stands for as many, give or take one.
    Steps count the same, as the log has no rows: the last batch of an epoch, which may be short, weighs like others.

    Args:
        log: the steps of the epoch.
        config: the run as it was done: found batch size and rate included.
        steps_per_epoch: steps of a whole epoch; of one that an earlier release began, the log lacks the first.
    """
    number = len(log.losses)
    every = config.log_every_steps or math.ceil(steps_per_epoch / POINTS)
    count = math.ceil(number / every)
    edges = [round(number * index / max(1, count)) for index in range(count + 1)]
    points = []
    for start, end in pairwise(edges):
        step = log.first + end - 1
        rate = rate_at(config.schedule, step=step - 1, steps_per_epoch=steps_per_epoch, epochs=config.epochs)
        figures = {
            "step_loss": sum(log.losses[start:end]) / (end - start),
            "step_lr": config.optimizer.lr * rate * log.rate_scales[end - 1],
        }
        speeds = log.images_per_s[start:end]
        if all(speeds):  # as if steps were of equal size: the mean is then that of the seconds they took
            figures["step_images_per_s"] = len(speeds) / sum(1.0 / speed for speed in speeds)
        points.append(Point(step, figures, log.ended_s[end - 1]))
    return points
