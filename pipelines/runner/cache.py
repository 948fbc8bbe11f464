"""Whether a stage's output stands, where it would go, and why a stage runs; reads catalogs only.

Nothing here imports torch, Ray or MLflow: a run in which everything is skipped takes no longer than reading JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Literal

from pipelines.config.strict import StrictModel, output_values
from pipelines.errors import InputError, NotFound
from pipelines.stage_output import Plan, read_catalog
from pipelines.storage import Storage

SUMMARY = "run.json"
"""What the last run of a pipeline used, beside its stages; it gives reasons, and never decides what is skipped."""

_PLANS = {
    "demo-data": "pipelines.runner.demo",
    "ingest": "pipelines.ingest.plan",
    "train": "pipelines.train.plan",
    "tune": "pipelines.tune.plan",
    "evaluate": "pipelines.evaluate.plan",
    "register": "pipelines.registry.plan",
    "score": "pipelines.score.plan",
    "report": "pipelines.runner.report_plan",
}
# Datasets and predictions have numbered versions instead of one catalog.
_VERSIONED = ("ingest", "score")
_MAX_GENERATIONS = 1000
_MAX_REASONS = 3


@dataclass(frozen=True)
class Decision:
    """What happens to one stage: skipped or run, in which folder, and why."""

    stage: str
    verdict: Literal["skip", "run"]
    reason: str
    key: str = ""
    out: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the decision as JSON values."""
        return asdict(self)


def plan_of(stage: str, config: StrictModel) -> Plan:
    """Return a stage's plan: its key and inputs, from catalogs and listings alone."""
    plan: Plan = import_module(_PLANS[stage]).plan(config)
    return plan


def published(stage: str, out: str) -> dict[str, Any] | None:
    """Return the catalog that stands in a stage's output folder, or None when the stage is not done."""
    storage = Storage.open(out)
    if stage in _VERSIONED:
        from pipelines.dataset.catalog import read_version

        return read_version(storage)
    return read_catalog(storage)


def is_of(stage: str, catalog: Mapping[str, Any] | None, key: str) -> bool:
    """Return whether a catalog is, or builds on, what a stage made under a key.

    A dataset stays what it was ingested from: patches and compaction publish versions under keys of their own.
    """
    if catalog is None:
        return False
    return key in catalog.get("sources", {}).values() if stage == "ingest" else catalog.get("key") == key


def decide(
    stage: str, config: StrictModel, root: str, *, force: bool, before: Mapping[str, Any]
) -> tuple[Decision, Plan]:
    """Return whether a stage whose inputs all stand would be skipped or run, and its plan.

    Args:
        stage: name of the stage.
        config: its section, references resolved.
        root: folder of the run; the stage's outputs are ROOT/STAGE/KEY.
        force: run it although its output stands; it then goes to the next free folder KEY-2, KEY-3, ...
        before: the stage's entry in the last run's summary, empty when there is none.
    """
    plan = plan_of(stage, config)
    standing, free = _folders(stage, f"{root.rstrip('/')}/{stage}/{plan.key[:12]}", plan.key)
    if standing and not force:
        return Decision(stage, "skip", "its output stands", plan.key, standing), plan
    return Decision(stage, "run", _reason(plan, config, force=force, before=before), plan.key, free), plan


def _folders(stage: str, base: str, key: str) -> tuple[str, str]:
    """Return the newest folder that holds the stage's output (empty when none does) and the next one to write."""
    standing = ""
    for generation in range(1, _MAX_GENERATIONS):
        candidate = base if generation == 1 else f"{base}-{generation}"
        catalog = published(stage, candidate)
        if not is_of(stage, catalog, key):
            return standing, candidate
        standing = candidate
    raise InputError(f"{base} was run again {_MAX_GENERATIONS} times", mend=f"delete some of {base}-N")


def _reason(plan: Plan, config: StrictModel, *, force: bool, before: Mapping[str, Any]) -> str:
    if force:
        return "asked for by --from"
    if not before:
        return "no earlier output"
    if before.get("key") == plan.key:
        return "its earlier output is gone or unfinished"
    changes = [
        *_differences(before.get("config", {}), output_values(config)),
        *(f"{name} changed" for name in _changed(before.get("inputs", {}), plan.inputs)),
    ]
    if not changes:
        return "this version of the stage makes another output"
    more = f" and {len(changes) - _MAX_REASONS} more" if len(changes) > _MAX_REASONS else ""
    return "; ".join(changes[:_MAX_REASONS]) + more


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            text
            for name in sorted({*before, *now})
            for text in _differences(before.get(name), now.get(name), f"{path}.{name}".strip("."))
        ]
    return [] if before == now else [f"{path} was {json.dumps(before)}, is {json.dumps(now)}"]


def read_summary(root: str) -> dict[str, dict[str, Any]]:
    """Return the last run's stages by name; empty when there was none or its summary cannot be read."""
    try:
        stages = json.loads(Storage.open(root).read(SUMMARY))["stages"]
        return {str(entry["stage"]): entry for entry in stages}
    except (NotFound, ValueError, KeyError, TypeError):
        return {}


def write_summary(root: str, name: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write what this run used, one entry a stage; unchanged bytes are not written again."""
    data = json.dumps({"name": name, "stages": list(entries)}, indent=1, ensure_ascii=False).encode()
    storage = Storage.open(root)
    try:
        if storage.read(SUMMARY) == data:
            return
    except NotFound:
        pass
    storage.put(SUMMARY, data)


def summary_entry(decision: Decision, config: StrictModel, plan_inputs: Mapping[str, str]) -> dict[str, Any]:
    """Return one stage's entry of the summary."""
    return {
        "stage": decision.stage,
        "key": decision.key,
        "out": decision.out,
        "inputs": dict(plan_inputs),
        "config": output_values(config),
    }


def waits(stage: str, sources: Sequence[str]) -> Decision:
    """Return the decision for a stage whose inputs are still to be made; its key is not known yet."""
    return Decision(stage, "run", f"after {' and '.join(sources)}")


def refuse_missing(stage: str, missing: Sequence[str]) -> InputError:
    """Return the error for `--only STAGE` whose inputs do not stand."""
    return InputError(
        f"--only {stage}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not done",
        mend=f"leave --only out, or run --only {missing[0]} first",
    )
