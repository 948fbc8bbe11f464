"""What a sweep would do: its key from the config and the dataset's fingerprint, and where its output goes."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import ConfigError, InputError
from pipelines.stage_output import Plan, default_out, stage_key
from pipelines.train.initial import Initial
from pipelines.train.plan import output_version
from pipelines.train.plan import plan as plan_training
from pipelines.tune.config import TuneConfig
from pipelines.tune.space import sample_params

OUTPUT_VERSION = 1
STAGE = "tune"


@dataclass(frozen=True)
class TunePlan(Plan):
    """The plan, and the dataset version that every trial is pinned to."""

    dataset: str = ""
    """Absolute address and version, as `open_dataset` takes it anywhere."""
    initial: Initial | None = None
    """What every trial starts from; None: random weights."""


def plan(config: TuneConfig) -> TunePlan:
    """Return the plan: the dataset's catalog is read, nothing else.

    Raises:
        ConfigError: no dataset is named, or the space holds too few points.
        InputError: there is no such dataset or version, or its images have several labels.
    """
    if not config.train.dataset:
        raise ConfigError("train.dataset is missing", mend="name one: resnet tune CONFIG --dataset DATASET")
    if config.space:
        sample_params(config, config.space)  # too small a space is refused before anything is written
    training = plan_training(config.train)
    if training.task == "multi":
        raise InputError(
            f"images of {config.train.dataset} have any number of labels; trials are compared by top-1, which such"
            " images have not",
            mend="train networks one by one: resnet train CONFIG; their figure is val_map; in a run leave tune out",
        )
    key = stage_key(STAGE, config, training.inputs, max(OUTPUT_VERSION, output_version(config.train)))
    return TunePlan(
        STAGE, key, training.inputs, config.out or default_out(STAGE, key), training.dataset, training.initial
    )
