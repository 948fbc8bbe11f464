"""What a registration would do: its key and inputs, from catalogs alone; needs neither torch nor MLflow."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.errors import ConfigError, InputError
from pipelines.evaluate.plan import package_digest
from pipelines.package.resolve import REGISTRY_SCHEME, ResolvedPackage, read_description, resolve_ref
from pipelines.redact import redact_address
from pipelines.registry.config import CHOSEN_BY, RegisterConfig
from pipelines.stage_output import Plan, default_out, read_catalog, stage_key
from pipelines.storage import Storage
from pipelines.tracking import resolve_uri

OUTPUT_VERSION = 1
"""Raise it when the same inputs give another output."""


@dataclass(frozen=True)
class Inputs:
    """A registration's inputs, checked against each other."""

    package: ResolvedPackage
    description: dict[str, Any]
    """Contents of the package's `model.json`."""
    digest: str
    """Hash of what decides the package's answers."""
    training: dict[str, Any]
    """The catalog of train or tune that made it; empty for a bare package folder."""
    evaluation: dict[str, Any]
    """The evaluation's catalog."""
    evaluation_uri: str
    store: str
    """Address of the MLflow store."""


def plan(config: RegisterConfig) -> Plan:
    """Return the registration's key, inputs and folder.

    Raises:
        InputError: model or evaluation is missing, or the evaluation is of another network.
        ConfigError: tracking is turned off.
    """
    return plan_of(config, resolve(config))


def plan_of(config: RegisterConfig, inputs: Inputs) -> Plan:
    """Return the plan of a registration whose inputs are resolved."""
    fingerprints = {
        "model": inputs.digest,
        "evaluation": str(inputs.evaluation["key"]),
        "rows": str(inputs.evaluation["dataset"]["split_fingerprint"]),
        "registry": redact_address(inputs.store),
    }
    key = stage_key("register", config, fingerprints, OUTPUT_VERSION)
    return Plan("register", key, fingerprints, config.out or default_out("register", key))


def resolve(config: RegisterConfig) -> Inputs:
    """Return the inputs behind the addresses in the config.

    Raises:
        InputError, ConfigError: as `plan`.
    """
    if not config.tracking.enabled:
        raise ConfigError(
            "tracking.enabled is false, and a registration needs the MLflow registry",
            where="tracking.enabled",
            mend="leave it out, or do not register",
        )
    if config.model.startswith(REGISTRY_SCHEME):
        raise InputError(
            f"{config.model} is registered already",
            mend=f"to make it {config.alias}: resnet models promote NAME VERSION; to register, give a training folder",
        )
    package = resolve_ref(config.model, config.tracking)
    description = read_description(package, config.tracking)
    evaluation, uri = _read_evaluation(config.evaluation)
    _check_fit(config, evaluation, uri, package_digest(description))
    training = read_catalog(Storage.open(config.model)) or {}
    digest = package_digest(description)
    return Inputs(package, description, digest, training, evaluation, uri, resolve_uri(config.tracking))


def _read_evaluation(address: str) -> tuple[dict[str, Any], str]:
    storage = Storage.open(address)
    catalog = read_catalog(storage)
    if catalog is None or catalog.get("stage") != "evaluate":
        what = "holds no catalog" if catalog is None else f"is an output of {catalog.get('stage')}"
        raise InputError(
            f"{storage.uri} is no finished evaluation: it {what}",
            where="evaluation",
            mend="make one: resnet evaluate MODEL DATASET, and give its out folder",
        )
    return catalog, storage.uri


def _check_fit(config: RegisterConfig, evaluation: Mapping[str, Any], uri: str, digest: str) -> None:
    again = shlex.join(["resnet", "evaluate", config.model, evaluation["dataset"]["uri"]])
    measured = evaluation["inputs"]["model"]
    if measured != digest:
        raise InputError(
            f"the evaluation measured another network ({measured[:12]}) than {config.model} ({digest[:12]})",
            where=uri,
            mend=again,
        )
    if views := len(evaluation.get("views", ())):
        raise InputError(
            f"the evaluation is a mean over {views} views of each image, and the model answers from one",
            where=uri,
            mend=f"leave the views out: {again}",
        )
    split = evaluation["dataset"]["split"]
    if split in CHOSEN_BY:
        raise InputError(
            f"the evaluation is of split {split!r}, by which the network was trained or chosen",
            where=uri,
            mend=f"{again} --split test",
        )
