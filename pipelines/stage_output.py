"""What every stage leaves behind: a key, a run identity, a catalog published last, and a result that shows itself."""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.config.strict import StrictModel, output_values
from pipelines.errors import AlreadyExists, DataError, InputError, NotFound
from pipelines.redact import redact
from pipelines.storage import Storage

CATALOG = "_catalog.json"
RUN = "run.json"
BEST_RUN = "best_mlflow_run_id"
"""Name in the `run.json` of a sweep: the run of its best trial, where MLflow was told of it late."""
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What a stage would do: its key, the fingerprints it depends on, and where its output goes."""

    stage: str
    key: str
    inputs: dict[str, str]
    out: str


@dataclass(frozen=True)
class StageResult:
    """What a stage returns; a notebook shows it as a table."""

    stage: str
    out: str
    key: str
    skipped: bool
    figures: dict[str, float | int | str] = field(default_factory=dict)
    next_commands: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))  # type: ignore[no-any-return]

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(str(name))}</td><td>{html.escape(str(value))}</td></tr>"
            for name, value in {"out": self.out, "key": self.key, **self.figures}.items()
        )
        state = " (already done)" if self.skipped else ""
        return f"<b>{html.escape(self.stage)}{state}</b><table>{rows}</table>"


def commands_with_model(out: str, catalog: Mapping[str, Any], tracking_uri: str) -> tuple[str, str]:
    """Return what usually follows a training or a sweep, ready to paste: evaluate its model, score an archive.

    Args:
        out: its folder.
        catalog: its catalog.
        tracking_uri: the MLflow store that was named for it, which the evaluation has to ask too; empty for the usual.
    """
    evaluate = ["resnet", "evaluate", out, catalog["dataset"]["uri"]]
    evaluate += [f"tracking.uri={redact(tracking_uri)}"] * bool(tracking_uri)
    score = ["resnet", "score", "ARCHIVE", "--model", f"{out}/{catalog['model']['path']}", "--out", "PREDICTIONS"]
    return shlex.join(evaluate), shlex.join(score)


def mlflow_run_of(store: Storage, catalog: Mapping[str, Any]) -> str:
    """Return the MLflow run in which the model was made that a training or a sweep left; empty when it has none.

    What `run.json` names is of the store that it names: MLflow may have been told later, or another one. Else it is
    what the catalog names.
    """
    is_sweep = catalog.get("stage") == "tune"
    try:
        standing = json.loads(store.read(RUN))
    except (NotFound, ValueError):
        standing = None
    if isinstance(standing, dict) and (late := standing.get(BEST_RUN if is_sweep else "mlflow_run_id")):
        return str(late)
    return str((catalog["best"] if is_sweep else catalog).get("mlflow_run_id") or "")


def stage_key(stage: str, config: StrictModel, inputs: Mapping[str, str], output_version: int) -> str:
    """Return the stage's key: 32 hex digits of its output-affecting config, its inputs and its output version.

    Worker counts, addresses, log settings and the output folder are not in it (`runtime_field`).
    """
    material = {
        "stage": stage,
        "config": output_values(config),
        "inputs": dict(inputs),
        "output_version": output_version,
    }
    return hashlib.sha256(canonical_json(material)).hexdigest()[:32]


def canonical_json(value: object) -> bytes:
    """Return JSON with sorted keys and no spaces, so that equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def default_out(stage: str, key: str) -> str:
    """Return the output folder of a stage whose config names none."""
    return f"runs/{stage}/{key[:12]}"


def open_run(storage: Storage, stage: str, key: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run that stands in an output folder, creating it when there is none.

    A killed command finds its own run here and goes on with it; `details` (an MLflow run id, say) are those of
    whoever came first.

    Raises:
        InputError: the folder holds another run, or files that are no run at all.
    """
    identity = {"format_version": FORMAT_VERSION, "stage": stage, "key": key, **details}
    if not storage.exists(RUN) and (foreign := _first_foreign(storage)):
        raise InputError(
            f"output folder {storage.uri} holds something else (for example {foreign})",
            mend="choose an empty folder or another --out",
        )
    try:
        storage.create(RUN, json.dumps(identity, indent=1).encode())
        return identity
    except AlreadyExists:
        standing = _read_json(storage, RUN)
    if standing.get("key") != key:
        raise InputError(
            f"output folder {storage.uri} holds another {standing.get('stage', 'run')} (key {standing.get('key')}),"
            f" not this {stage} (key {key})",
            mend="choose another --out, or run the same config again",
        )
    return standing


def read_catalog(storage: Storage) -> dict[str, Any] | None:
    """Return the stage's published catalog, or None while the stage is not done."""
    try:
        return _read_json(storage, CATALOG)
    except NotFound:
        return None


def publish_catalog(storage: Storage, catalog: Mapping[str, Any]) -> dict[str, Any]:
    """Publish a stage's catalog by create-if-absent, the last thing that a stage does; return the one that stands.

    Raises:
        InputError: a catalog of another key stands there.
    """
    whole = {"format": f"resnet-pipelines/{catalog['stage']}", "format_version": FORMAT_VERSION, **catalog}
    try:
        storage.create(CATALOG, json.dumps(whole, indent=1, ensure_ascii=False).encode())
        return whole
    except AlreadyExists:
        standing = _read_json(storage, CATALOG)
    if standing.get("key") != whole.get("key"):
        raise InputError(
            f"{storage.address(CATALOG)} was published by another run (key {standing.get('key')})",
            mend="choose another --out",
        )
    return standing


def _first_foreign(storage: Storage) -> str:
    for file in storage.list():
        if not file.path.startswith("_work/"):
            return file.path
    return ""


def _read_json(storage: Storage, path: str) -> dict[str, Any]:
    try:
        value = json.loads(storage.read(path))
    except ValueError as error:
        raise DataError(f"{storage.address(path)} is not JSON: {error}", mend="choose another --out") from error
    if not isinstance(value, dict):
        raise DataError(f"{storage.address(path)} does not hold a JSON object", mend="choose another --out")
    if int(value.get("format_version", 1)) > FORMAT_VERSION:
        raise DataError(
            f"{storage.address(path)} has format version {value['format_version']}, newer than this program reads",
            mend="upgrade resnet-pipelines",
        )
    return value
