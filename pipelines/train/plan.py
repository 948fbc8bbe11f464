"""What a training run would do: its key from the config and the dataset's fingerprint, and where its output goes."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.dataset.catalog import DATASET_FORMAT, format_ref, parse_ref, read_version
from pipelines.errors import ConfigError, InputError
from pipelines.stage_output import Plan, canonical_json, default_out, stage_key
from pipelines.storage import Storage
from pipelines.train.config import TrainConfig
from pipelines.train.initial import Initial, find_initial, starting_spec

OUTPUT_VERSION = 1
STAGE = "train"


@dataclass(frozen=True)
class TrainPlan(Plan):
    """The plan, and the dataset version that the run is pinned to."""

    dataset: str = ""
    """Absolute address and version, as `open_dataset` takes it anywhere."""
    classes: tuple[str, ...] = ()
    """Classes of the data."""
    task: str = "single"
    """Whether images have one label (`single`) or any number of them (`multi`)."""
    initial: Initial | None = None
    """What the run starts from; None: random weights."""


def plan(config: TrainConfig) -> TrainPlan:
    """Return the plan: the dataset's catalog is read, and with `init.from` that model's description.

    Raises:
        ConfigError: no dataset is named, or `init` names what the network lacks.
        InputError: there is no such dataset, version or model.
        RegistryError: the registry lacks the model or cannot be reached.
    """
    if not config.dataset:
        raise ConfigError("dataset is missing", mend="name one: resnet train CONFIG --dataset DATASET")
    uri, version = parse_ref(config.dataset)
    storage = Storage.open(uri)
    catalog = read_version(storage, version, stage_format=DATASET_FORMAT)
    if catalog is None:
        raise InputError(
            f"there is no dataset at {storage.uri}: no catalog is published there",
            mend=f"make one: resnet ingest SOURCE --out {shlex.quote(uri)}",
        )
    check_labels(catalog, uri)
    check_recipe(config, str(catalog["task"]), uri)
    inputs = {
        "dataset": str(catalog["fingerprint"]),
        # The same stored rows can be shown to a network in another geometry.
        "preprocess": hashlib.sha256(canonical_json(catalog["preprocess"])).hexdigest()[:16],
    }
    classes = tuple(catalog.get("classes") or ())
    initial = find_initial(config)
    starting_spec(config, initial)
    if initial:
        inputs |= initial.key_inputs(config, classes)
    key = stage_key(STAGE, config, inputs, output_version(config))
    out = config.out or default_out(STAGE, key)
    dataset = format_ref(storage.uri, int(catalog["version"]))
    return TrainPlan(
        STAGE, key, inputs, out, dataset=dataset, classes=classes, task=str(catalog["task"]), initial=initial
    )


def output_version(config: TrainConfig) -> int:
    """Return the output version of a run: batches in pieces, and rows that are drawn evenly, were others once."""
    return 2 if config.accumulate > 1 or config.sampling != "all" else OUTPUT_VERSION


def check_labels(catalog: Mapping[str, Any], uri: str) -> None:
    """Refuse a dataset whose images have no classes, saying how they get some.

    Raises:
        InputError: its labels are numbers, or there are none.
    """
    if catalog["task"] not in ("single", "multi"):
        raise InputError(
            f"{uri} has {catalog['task']} labels, and a network is trained on classes",
            mend="ingest the images with one label each, into another place: resnet ingest SOURCE labels=TABLE.csv"
            " task=single --out OTHER",
        )
    if not catalog.get("classes"):
        raise InputError(
            f"none of the {catalog['rows']:,} images of {uri} has a label, and there is nothing to learn without",
            mend=f"write a table with the columns key and label: resnet data relabel {shlex.quote(uri)} TABLE.csv",
        )


def check_recipe(config: TrainConfig, task: str, uri: str) -> None:
    """Refuse what has no sense for images with any number of labels.

    Raises:
        ConfigError: the loss takes one class to be right, or rows are weighed or drawn by their class.
    """
    if task != "multi":
        return
    if config.loss.name != "bce":
        raise ConfigError(
            f"loss.name is {config.loss.name}, and images of {uri} have any number of labels; {config.loss.name} takes"
            " exactly one class to be right",
            mend="loss.name=bce",
        )
    for field, value, usual in (
        ("loss.class_weights", config.loss.class_weights, "none"),
        ("sampling", config.sampling, "all"),
    ):
        if value != usual:
            raise ConfigError(
                f"{field} is {value}, and images of {uri} have any number of labels, so that a row has no class to be"
                " weighed by",
                mend=f"{field}={usual}",
            )
