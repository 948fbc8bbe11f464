"""Register a network: its package becomes a version, the gate decides about the alias, the catalog comes last."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from pipelines.config.strict import output_values
from pipelines.metrics.deciding import find_deciding
from pipelines.registry.config import RegisterConfig
from pipelines.registry.gates import Standing
from pipelines.registry.plan import Inputs, plan_of, resolve
from pipelines.stage_output import Plan, StageResult, open_run, publish_catalog, read_catalog
from pipelines.storage import Storage

AUDIT = "audit.json"


@dataclass(frozen=True)
class RegisterResult(StageResult):
    """A finished registration."""

    version: str = ""
    """The version, `models:/NAME/VERSION`."""
    champion_moved: bool = False
    """Whether the alias moved to it."""
    reason: str = ""
    """Why or why not."""


def run(config: RegisterConfig) -> RegisterResult:
    """Register the model and let it compete for the alias.

    Raises:
        InputError: model and evaluation do not belong together.
        RegistryError: the registry refuses.
    """
    inputs = resolve(config)
    planned = plan_of(config, inputs)
    out = Storage.open(planned.out)
    standing = read_catalog(out)
    if standing is not None and standing.get("key") == planned.key:
        return _result(planned, standing, skipped=True)
    open_run(out, "register", planned.key, {})
    return _result(planned, publish_catalog(out, _register(config, inputs, planned, out)), skipped=False)


def _register(config: RegisterConfig, inputs: Inputs, planned: Plan, out: Storage) -> dict[str, Any]:
    from pipelines.registry.board import MlflowBoard
    from pipelines.registry.promote import compete
    from pipelines.registry.register import register_package
    from pipelines.registry.tags import evaluated_standing
    from pipelines.tracking import open_client, store_faults

    client = open_client(inputs.store)
    registered = register_package(client, config, inputs)
    with store_faults(inputs.store):
        decision = compete(
            MlflowBoard(client, config.name),
            config.alias,
            evaluated_standing(registered.version, inputs.evaluation),
            lambda version: _measure(client, config, inputs, out, version),
            key=planned.key,
        )
    out.put(AUDIT, json.dumps(decision.record.to_json(), indent=1, ensure_ascii=False).encode())
    dataset, deciding = inputs.description["dataset"], find_deciding(inputs.evaluation["metrics"])
    return {
        "stage": "register",
        "key": planned.key,
        "inputs": planned.inputs,
        "name": config.name,
        "version": registered.version,
        "alias": config.alias,
        "promoted": decision.champion == registered.version,
        "decision": decision.to_json(),
        "model": {
            "uri": f"models:/{config.name}/{registered.version}",
            "model_id": registered.model_id,
            "weights_sha256": str(inputs.description["weights_sha256"]),
            "train_key": str(inputs.description["train_key"]),
        },
        "dataset": {name: dataset.get(name) for name in ("uri", "version", "fingerprint")},
        "evaluation": {
            "uri": inputs.evaluation_uri,
            "key": inputs.evaluation["key"],
            "split": inputs.evaluation["dataset"]["split"],
            "split_fingerprint": inputs.evaluation["dataset"]["split_fingerprint"],
            deciding: inputs.evaluation["metrics"][deciding],
        },
        "mlflow_run_id": registered.run_id,
        "audit": AUDIT,
        "config": output_values(config),
    }


def _measure(client: Any, config: RegisterConfig, inputs: Inputs, out: Storage, version: str) -> Standing:
    """Return a champion's figures on the candidate's rows: those it is tagged with, or a new evaluation's."""
    from pipelines.registry.tags import evaluated_standing, figure_tags, tagged_standing

    wanted = inputs.evaluation["dataset"]
    tags = client.get_model_version(config.name, version).tags
    known = tagged_standing(version, tags)
    if known is not None and known.rows == wanted["split_fingerprint"]:
        return known
    from pipelines.evaluate.config import EvaluateConfig
    from pipelines.evaluate.stage import run as evaluate

    folder = out.child(f"champion/version-{version}")
    evaluate(
        EvaluateConfig(
            model=f"models:/{config.name}/{version}",
            dataset=config.dataset or f"{wanted['uri']}@v{wanted['version']}",
            split=wanted["split"],
            out=folder.uri,
            tracking=config.tracking,
        )
    )
    catalog = read_catalog(folder) or {}
    for tag, value in figure_tags(catalog, folder.uri).items():
        client.set_model_version_tag(config.name, version, tag, value)
    return evaluated_standing(version, catalog)


def _result(planned: Plan, catalog: dict[str, Any], *, skipped: bool) -> RegisterResult:
    name, version, alias = catalog["name"], catalog["version"], catalog["alias"]
    decision, deciding = catalog["decision"], find_deciding(catalog["evaluation"])
    return RegisterResult(
        stage="register",
        out=planned.out,
        key=planned.key,
        skipped=skipped,
        figures={
            "model": catalog["model"]["uri"],
            alias: f"version {decision['champion']}",
            f"test_{deciding}": catalog["evaluation"][deciding],
            "reason": decision["reason"],
        },
        next_commands=(
            shlex.join(["resnet", "models", "show", name]),
            f"resnet score ARCHIVE --model {shlex.quote(f'models:/{name}@{alias}')}",
        ),
        version=version,
        champion_moved=bool(decision["moved"]),
        reason=decision["reason"],
    )
