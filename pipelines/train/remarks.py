"""What is said of a recipe before it is trained: settings without effect, and two that do the same."""

from __future__ import annotations

from functools import reduce
from typing import Any

from pipelines.train.config import ScheduleConfig, TrainConfig

_BELONGS_TO = (
    ("loss.focal_gamma", "loss.name", "focal"),
    ("loss.effective_beta", "loss.class_weights", "effective"),
    ("augment.rand_operations", "augment.policy", "rand"),
    ("augment.rand_strength", "augment.policy", "rand"),
    ("optimizer.beta2", "optimizer.name", "adamw"),
    ("divergence.rate_factor", "divergence.rollbacks", None),
    ("progressive.full_at", "progressive.start_fraction", None),
    ("progressive.multiple_px", "progressive.start_fraction", None),
    ("init.grow", "model", None),
)
"""A setting, the one it belongs to, and the value of that one with which it counts; None: any but the default."""


def remarks_on(config: TrainConfig) -> list[str]:
    """Return what is to be said of a recipe.

    Nothing of it is an error: who sets `progressive.start_fraction=1` on a preset need not take back the rest of it.
    """
    usual = TrainConfig()
    remarks = []
    if config.sampling == "balanced" and config.loss.class_weights != "none":
        remarks.append(
            f"sampling is balanced and loss.class_weights is {config.loss.class_weights}: rare classes count"
            " twice over; mend: give one of them"
        )
    for setting, owner, value in _BELONGS_TO:
        given, there = _at(config, setting), _at(config, owner)
        counts = there != _at(usual, owner) if value is None else there == value
        if counts or given == _at(usual, setting):
            continue
        why = f"{owner} is not set" if value is None else f"{owner} is {there}, not {value}"
        remarks.append(f"{setting} is {given} and changes nothing: {why}")
    return remarks + _remarks_on_schedule(config.schedule, usual.schedule, config.epochs)


def _remarks_on_schedule(schedule: ScheduleConfig, usual: ScheduleConfig, epochs: int) -> list[str]:
    remarks = []
    if schedule.name in ("constant", "multi_step") and schedule.final_fraction != usual.final_fraction:
        why = f"schedule.name is {schedule.name}"
        remarks.append(f"schedule.final_fraction is {schedule.final_fraction} and changes nothing: {why}")
    if not schedule.warmup_epochs and schedule.start_fraction != usual.start_fraction:
        why = "schedule.warmup_epochs is 0"
        remarks.append(f"schedule.start_fraction is {schedule.start_fraction} and changes nothing: {why}")
    if late := [epoch for epoch in schedule.milestones if epoch >= epochs]:
        remarks.append(f"schedule.milestones {late} change nothing: the run has {epochs} epochs")
    return remarks


def _at(config: TrainConfig, path: str) -> Any:
    return reduce(getattr, path.split("."), config)
