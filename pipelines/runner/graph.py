"""The stages of a run, in order, and how each gets its inputs from the ones before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.config.strict import StrictModel
from pipelines.errors import ConfigError
from pipelines.registry.selection import best_on_val
from pipelines.runner import config as schema
from pipelines.runner.config import RunConfig

DEMO = "demo-data"
REPORT = "report"


@dataclass(frozen=True)
class Node:
    """One stage of a run: its name, the stages whose outputs it reads, and whether it needs Ray."""

    stage: str
    after: tuple[str, ...]
    needs_ray: bool = False


@dataclass
class Made:
    """What a finished stage hands on: its folder, its key, and its catalog."""

    out: str
    key: str
    catalog: dict[str, Any]


def make_graph(config: RunConfig) -> tuple[Node, ...]:
    """Return the stages that a config asks for, each after everything it reads."""
    nodes: list[Node] = []
    if config.source == schema.DEMO_DIGITS:
        nodes.append(Node(DEMO, ()))
    nodes.append(Node("ingest", tuple(node.stage for node in nodes), needs_ray=True))
    nodes.append(Node("train", ("ingest",), needs_ray=True))
    candidates: tuple[str, ...] = ("train",)
    if config.tune is not None:
        nodes.append(Node("tune", ("ingest",), needs_ray=True))
        candidates = ("train", "tune")
    nodes.append(Node("evaluate", ("ingest", *candidates)))
    nodes.append(Node("register", ("ingest", *candidates, "evaluate")))
    if config.score is not None:
        nodes.append(Node("score", (*(node.stage for node in nodes if node.stage == DEMO), "register"), needs_ray=True))
    nodes.append(Node(REPORT, tuple(node.stage for node in nodes)))
    return tuple(nodes)


def check_stage(nodes: tuple[Node, ...], stage: str, flag: str) -> None:
    """Refuse a stage name that the run does not have.

    Raises:
        ConfigError: no stage of that name.
    """
    names = [node.stage for node in nodes]
    if stage and stage not in names:
        raise ConfigError(f"{flag} {stage}: this run has no such stage", mend=f"one of: {', '.join(names)}")


def stage_config(config: RunConfig, stage: str, made: Mapping[str, Made]) -> StrictModel:
    """Return a stage's section with its references replaced by what the stages before it made."""
    source = f"{made[DEMO].out}/{made[DEMO].catalog['archive']}" if DEMO in made else config.source
    dataset = dataset_of(made)
    if stage == "ingest":
        return config.ingest.model_copy(update={"source": source})
    if stage == "train":
        return config.train.model_copy(update={"dataset": dataset})
    if stage == "tune" and config.tune is not None:
        base = config.tune.train.model_copy(update={"dataset": dataset})
        return config.tune.model_copy(update={"train": base})
    if stage == "evaluate":
        return config.evaluate.model_copy(update={"model": best(made).out, "dataset": dataset})
    if stage == "register":
        evaluation = made["evaluate"].out
        return config.register.model_copy(
            update={"model": best(made).out, "evaluation": evaluation, "dataset": dataset}
        )
    if stage == "score" and config.score is not None:
        standing = made["register"].catalog
        model = f"models:/{standing['name']}/{standing['version']}"
        changes: dict[str, Any] = {"model": model, "model_sha256": standing["model"]["weights_sha256"]}
        if config.score.archive == schema.SOURCE:
            changes["archive"] = source
            changes["source_name"] = config.score.source_name or getattr(config.ingest, "source_name", "")
        return config.score.model_copy(update=changes)
    raise ConfigError(f"this run has no stage {stage!r}")


def best(made: Mapping[str, Made]) -> Made:
    """Return the candidate for registration, the best on `val` of train and tune; a tie goes to train."""
    candidates = {stage: made[stage] for stage in ("train", "tune") if stage in made}
    return candidates[best_on_val({stage: one.catalog for stage, one in candidates.items()})]


def dataset_of(made: Mapping[str, Made]) -> str:
    """Return the dataset of a run at the version that it made; before that, the reference to it."""
    if "ingest" not in made:
        return schema.DATASET
    standing = made["ingest"]
    return f"{standing.out}@v{standing.catalog['version']}"
