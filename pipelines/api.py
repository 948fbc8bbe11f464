"""The stages as functions, for notebooks and other orchestrators: each takes its config and returns its result.

Every function runs what the command of the same name runs, skips what is done, and returns a `StageResult`, which
shows itself in a notebook. Configs come from `load`, or from the stage's own class.

    from pipelines.api import ingest, load, train
    dataset = ingest(load("ingest", source="photos.zip"))
    network = train(load("train", "cifar-fast", dataset=dataset.out, epochs=5))
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.evaluate.config import EvaluateConfig
    from pipelines.ingest.config import IngestConfig
    from pipelines.registry.config import RegisterConfig
    from pipelines.score.config import ScoreConfig
    from pipelines.stage_output import StageResult
    from pipelines.train.config import TrainConfig
    from pipelines.tune.config import TuneConfig

__all__ = ["evaluate", "ingest", "load", "register", "score", "train", "tune"]


def load(stage: str, source: str = "", /, **values: Any) -> Any:
    """Return the config of a stage: defaults, then a preset or YAML file, then keyword values.

    Args:
        stage: ingest, train, tune, evaluate, register, score or run.
        source: name of a preset, or path of a YAML file; empty for neither.
        **values: fields of the config; write `optimizer__lr=0.1` for the dotted key `optimizer.lr`.

    Raises:
        ConfigError: a key is unknown or a value impossible.
        InputError: there is no such stage, preset or file.
    """
    from pipelines.config.load import load_config
    from pipelines.runner.target import config_path, schema_of

    inputs = {name.replace("__", "."): _plain(value) for name, value in values.items()}
    return load_config(schema_of(stage), config_path(stage, source) if source else None, (), inputs)


def ingest(config: IngestConfig) -> StageResult:
    """Turn images into a dataset; see `resnet ingest`."""
    from pipelines.ingest import stage

    return stage.run(config)


def train(config: TrainConfig) -> StageResult:
    """Train one network; see `resnet train`."""
    from pipelines.train import stage

    return stage.run(config)


def tune(config: TuneConfig) -> StageResult:
    """Search for a better network; see `resnet tune`."""
    from pipelines.tune import stage

    return stage.run(config)


def evaluate(config: EvaluateConfig) -> StageResult:
    """Measure a model on a split; see `resnet evaluate`."""
    from pipelines.evaluate import stage

    return stage.run(config)


def register(config: RegisterConfig) -> StageResult:
    """Register a trained network, and let it become champion if it is better; see `resnet models register`."""
    from pipelines.registry import stage

    return stage.run(config)


def score(config: ScoreConfig) -> StageResult:
    """Predict every image of an archive; see `resnet score`."""
    from pipelines.score import stage

    return stage.run(config)


def _plain(value: Any) -> Any:
    """Return JSON values: nested configs, tuples and paths as a YAML file would hold them."""
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return json.loads(json.dumps(value, default=str))
