"""The learning rate as a pure function of how far the run has come."""

from __future__ import annotations

import math

from pipelines.train.config import ScheduleConfig


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
