"""Settings without effect, or of which one is too many, are named; no shipped recipe has any."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.config.load import find_preset, load_config, preset_names
from pipelines.train.config import TrainConfig
from pipelines.train.remarks import remarks_on
from resnet_models.spec import ModelSpec


@pytest.mark.parametrize(
    ("given", "remark"),
    [
        (
            {"loss": {"focal_gamma": 5}},
            "loss.focal_gamma is 5.0 and changes nothing: loss.name is cross_entropy, not focal",
        ),
        (
            {"loss": {"effective_beta": 0.5, "class_weights": "balanced"}},
            "loss.effective_beta is 0.5 and changes nothing: loss.class_weights is balanced, not effective",
        ),
        (
            {"augment": {"rand_strength": 0.5, "policy": "trivial"}},
            "augment.rand_strength is 0.5 and changes nothing: augment.policy is trivial, not rand",
        ),
        ({"optimizer": {"beta2": 0.9}}, "optimizer.beta2 is 0.9 and changes nothing: optimizer.name is sgd, not adamw"),
        (
            {"progressive": {"multiple_px": 8}},
            "progressive.multiple_px is 8 and changes nothing: progressive.start_fraction is not set",
        ),
        (
            {"sampling": "balanced", "loss": {"class_weights": "effective"}},
            "sampling is balanced and loss.class_weights is effective: rare classes count twice over; mend: give one of"
            " them",
        ),
        (
            {"init": {"from": "runs/a", "grow": True}},
            "init.grow is True and changes nothing: model is not set",
        ),
        (
            {"schedule": {"name": "constant", "final_fraction": 0.1}},
            "schedule.final_fraction is 0.1 and changes nothing: schedule.name is constant",
        ),
        (
            {"schedule": {"warmup_epochs": 0, "start_fraction": 0.01}},
            "schedule.start_fraction is 0.01 and changes nothing: schedule.warmup_epochs is 0",
        ),
        (
            {"schedule": {"name": "multi_step", "milestones": (10.0, 30.0, 60.0)}, "epochs": 30},
            "schedule.milestones [30.0, 60.0] change nothing: the run has 30 epochs",
        ),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_named(given: dict[str, Any], remark: str) -> None:
    assert remarks_on(TrainConfig.model_validate(given)) == [remark]


@pytest.mark.parametrize(
    "given",
    [
        {"loss": {"focal_gamma": 5, "name": "focal"}},
        {"augment": {"rand_strength": 0.5, "rand_operations": 3, "policy": "rand"}},
        {"optimizer": {"beta2": 0.9, "name": "adamw"}},
        {"divergence": {"rollbacks": 2, "rate_factor": 0.1}},
        {"progressive": {"multiple_px": 8, "full_at": 0.9, "start_fraction": 0.5}},
        {"init": {"from": "runs/a", "grow": True}, "model": ModelSpec(depth=50)},
        {"schedule": {"name": "multi_step", "milestones": (10.0, 29.5), "start_fraction": 0.01}, "epochs": 30},
        {"schedule": {"name": "one_cycle", "warmup_epochs": 0, "final_fraction": 0.1}},
    ],
)
def test_what_counts_is_not_named(given: dict[str, Any]) -> None:
    assert remarks_on(TrainConfig.model_validate(given)) == []


@pytest.mark.parametrize("name", preset_names("train"))
def test_no_shipped_recipe_has_any(name: str) -> None:
    assert remarks_on(load_config(TrainConfig, find_preset("train", name))) == []
