"""The learning rate, and the side of the images, as pure functions of how far the run has come."""

from __future__ import annotations

import math

from pipelines.train.config import ProgressiveConfig, ScheduleConfig


def rate_at(schedule: ScheduleConfig, *, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of a step as a fraction of the peak.

    The rate moves once a step: a straight rise from `start_fraction` to 1 over the warm-up, then the shape's fall,
    which reaches `final_fraction` at the last step.

    Args:
        schedule: the shape.
        step: steps done before this one, from 0.
        steps_per_epoch: steps of one epoch.
        epochs: epochs of the whole run.
    """
    last = max(1, steps_per_epoch * epochs - 1)
    # A short run cannot be all warm-up: the peak must be reached.
    warmup = min(schedule.warmup_epochs * steps_per_epoch, last)
    if step < warmup:
        return schedule.start_fraction + (1.0 - schedule.start_fraction) * step / warmup
    if schedule.name == "multi_step":
        return schedule.gamma ** sum(step >= milestone * steps_per_epoch for milestone in schedule.milestones)
    if schedule.name == "constant" or last == warmup:
        return 1.0
    progress = min(1.0, (step - warmup) / (last - warmup))
    if schedule.name == "cosine":
        remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        remaining = (1.0 - progress) ** (schedule.power if schedule.name == "polynomial" else 1.0)
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * remaining


def side_at(progressive: ProgressiveConfig, *, side_px: int, epoch: int, epochs: int) -> int:
    """Return the side of the images in an epoch.

    Args:
        progressive: how they grow.
        side_px: the full side.
        epoch: counted from 1.
        epochs: epochs of the whole run.
    """
    grown = min(1.0, (epoch - 1) / max(1.0, progressive.full_at * epochs - 1))
    if grown == 1.0 or progressive.start_fraction == 1.0:
        return side_px
    wanted = side_px * (progressive.start_fraction + (1.0 - progressive.start_fraction) * grown)
    step = progressive.multiple_px
    return int(min(side_px, max(step, round(wanted / step) * step)))
