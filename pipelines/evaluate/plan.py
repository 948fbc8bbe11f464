"""What an evaluation would do: which package, which rows, its key and its folder; needs neither torch nor pyarrow."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.dataset.catalog import DATASET_FORMAT, format_ref, parse_ref, read_version
from pipelines.errors import InputError
from pipelines.evaluate.config import EvaluateConfig
from pipelines.package.resolve import ResolvedPackage, read_description, resolve_ref
from pipelines.stage_output import Plan, canonical_json, default_out, stage_key
from pipelines.storage import Storage

OUTPUT_VERSION = 2
"""Raise it when the same inputs give another output."""

# What decides a package's answers; where its data lay and what it once scored do not.
_ANSWERING = ("spec", "classes", "preprocess", "mean", "std", "weights_sha256")


_LABELS = {"single": "one label", "multi": "any number of labels"}


@dataclass(frozen=True)
class Inputs:
    """An evaluation's inputs, resolved: they stay the same whatever aliases and versions do later."""

    package: ResolvedPackage
    description: dict[str, Any]
    """Contents of the package's `model.json`."""
    dataset: str
    """`DATASET@vN`."""
    catalog: dict[str, Any]
    """The dataset's catalog."""
    split_fingerprint: str


def plan(config: EvaluateConfig) -> Plan:
    """Return the evaluation's key, inputs and folder.

    Raises:
        InputError: the model or the dataset cannot be evaluated.
        RegistryError: the registry lacks the model.
    """
    return plan_of(config, resolve(config))


def plan_of(config: EvaluateConfig, inputs: Inputs) -> Plan:
    """Return the plan of an evaluation whose inputs are resolved."""
    fingerprints = {
        "model": package_digest(inputs.description),
        "rows": inputs.split_fingerprint,
        "classes": _digest(inputs.catalog["classes"]),
        # which of the rows training has seen, or nearly
        "train": str(inputs.catalog["splits"].get("train", {}).get("fingerprint", "")),
    }
    key = stage_key("evaluate", config, fingerprints, OUTPUT_VERSION)
    return Plan("evaluate", key, fingerprints, config.out or default_out("evaluate", key))


def resolve(config: EvaluateConfig) -> Inputs:
    """Return the inputs behind the addresses in the config.

    Raises:
        InputError: there is no such model, dataset, version or split, or they have no class in common.
        RegistryError: the registry lacks the model.
    """
    package = resolve_ref(config.model, config.tracking)
    description = read_description(package, config.tracking)
    uri, version = parse_ref(config.dataset)
    storage = Storage.open(uri)
    catalog = read_version(storage, version, stage_format=DATASET_FORMAT)
    if catalog is None:
        raise InputError(
            f"there is no dataset at {storage.uri}: no catalog is published there",
            mend=f"make one: resnet ingest SOURCE --out {shlex.quote(uri)}",
        )
    dataset = format_ref(storage.uri, int(catalog["version"]))
    _check(config, dataset, catalog, description)
    fingerprint = str(catalog["splits"][config.split]["fingerprint"])
    return Inputs(package, description, dataset, catalog, fingerprint)


def package_digest(description: Mapping[str, Any]) -> str:
    """Return a hash of what decides a package's answers."""
    said = {name: description[name] for name in ("task", "threshold") if name in description}  # of several labels
    return _digest({name: description[name] for name in _ANSWERING} | said)


def check_rows(split: str, dataset: str, catalog: Mapping[str, Any]) -> None:
    """Refuse a split without rows.

    Args:
        split: its name.
        dataset: `DATASET@vN`, for the message.
        catalog: the dataset's.

    Raises:
        InputError: it has none, or there is no such split.
    """
    splits = catalog["splits"]
    if split not in splits or not splits[split]["rows"]:
        with_rows = sorted(name for name, part in splits.items() if part["rows"])
        raise InputError(
            f"{dataset} has no rows in split {split!r}; it has {', '.join(with_rows) or 'none'}",
            mend=f"name one of them: --split {with_rows[0]}" if with_rows else "ingest some images",
        )


def _check(config: EvaluateConfig, dataset: str, catalog: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    check_rows(config.split, dataset, catalog)
    if catalog["task"] not in _LABELS:
        raise InputError(
            f"{dataset} has the task {catalog['task']!r}; only classification is evaluated",
            mend="give a dataset with classes",
        )
    if (task := description.get("task", "single")) != catalog["task"]:
        raise InputError(
            f"the model gives {_LABELS[task]} an image and images of {dataset} have {_LABELS[catalog['task']]}",
            mend=f"give a dataset with {_LABELS[task]} an image, or another model",
        )
    if not set(catalog["classes"]) & set(description["classes"]):
        raise InputError(
            f"the model knows {_some(description['classes'])} and {dataset} has {_some(catalog['classes'])}: "
            "no class in common",
            mend="give the dataset that the model was made for, or one with the same class names",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
