"""What a run's folder says of how it is trained: for going on with it, and for looking at it again when it is done."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from pipelines.config.load import load_config
from pipelines.errors import ConfigError, InputError, NotFound
from pipelines.package.describe import DESCRIPTION_FILE
from pipelines.redact import redact
from pipelines.stage_output import RUN, read_catalog
from pipelines.storage import Storage
from pipelines.tracking import RunLog, TrackingConfig, resolve_uri
from pipelines.train.config import TrainConfig
from pipelines.train.initial import INIT
from pipelines.train.plan import STAGE, plan


def kept_config(config: TrainConfig) -> dict[str, Any]:
    """Return what a run's folder keeps of its config; the parts that hold an address with a password are left out."""
    return keep(config.model_dump(mode="json", exclude={"dataset", "out"}), config.tracking)


def keep(values: dict[str, Any], tracking: TrackingConfig) -> dict[str, Any]:
    """Return config values as an output folder keeps them: with the store that `tracking` comes to, without secrets."""
    if tracking.enabled:  # a folder that is gone on with from elsewhere is recorded where it was
        with contextlib.suppress(ConfigError):  # told by whoever opens the store
            values["tracking"]["uri"] = resolve_uri(tracking)
    if "@" in urlsplit(values["tracking"]["uri"]).netloc:  # whatever stands there is for nobody else
        values["tracking"]["uri"] = ""
    return {name: value for name, value in values.items() if redact(text := json.dumps(value)) == text}


def keep_run_id(store: Storage, log: RunLog) -> None:
    """Write the id of a run or a sweep in MLflow into its `run.json`, as soon as there is one, and where that is."""
    if not log.run_id:
        return
    standing = json.loads(store.read(RUN))
    if standing.get("mlflow_run_id") == log.run_id:
        return
    now: dict[str, Any] = {"mlflow_run_id": log.run_id}
    if "config" in standing:
        now["config"] = {**standing["config"], **keep({"tracking": log.place}, TrackingConfig(enabled=False))}
    store.put(RUN, json.dumps({**standing, **now}, indent=1).encode())


def kept_tracking(standing: Mapping[str, Any], asked: TrackingConfig) -> TrackingConfig:
    """Return where a run or a sweep is recorded: the store that is asked for, else the one of this shell, else its own.

    Args:
        standing: its `run.json`.
        asked: what the command says.
    """
    kept = _here((standing.get("config") or {}).get("tracking") or {})
    changed = {name: getattr(asked, name) for name in asked.model_fields_set if getattr(asked, name)}
    return TrackingConfig.model_validate({**kept, "enabled": True, **changed})


def _here(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return a kept `tracking` for this shell: the same store may have another address here, or be no more."""
    return {**kept, "uri": ""} if os.environ.get("MLFLOW_TRACKING_URI") else dict(kept)


def resumed_config(run: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Return the config that a run goes on with: the one it began with, pinned to its dataset version.

    Args:
        run: the folder or bucket prefix that `resnet train` wrote.
        overrides: `key=value` texts. What computes the run's weights cannot change; `num_workers`, `max_hours`,
            `local`, `ray.address`, `tracking.uri` and the like can, and the last two must be given again where they
            hold a password.

    Raises:
        InputError: no training stands there, or one of a release that kept no config.
        ConfigError: an override is impossible, or would make another run of it.
    """
    store = Storage.open(run)
    standing = _read_standing(store)
    values = dict(standing.get("config") or (read_catalog(store) or {}).get("config") or {})
    if not values:
        raise InputError(
            f"{store.uri} was begun by an earlier release, which did not write its config down",
            mend=f"give the command that began it again, with --out {shlex.quote(run)}",
        )
    values |= {"dataset": standing["dataset"], "out": store.uri, **_own_start(values, store)}
    values |= {"tracking": _here(values["tracking"])} if "tracking" in values else {}
    config = load_config(TrainConfig, None, overrides, values)
    if plan(config).key != standing["key"]:
        changed = f"with {' '.join(overrides)} it" if overrides else "by this release it"
        raise ConfigError(
            f"{store.uri} was begun otherwise: {changed} would be another run",
            mend="leave out what changes the recipe (num_workers, max_hours, local and the like may change), or start a"
            f" new run, from these weights with init.from={shlex.quote(store.uri)}: resnet train CONFIG --out OTHER",
        )
    return config


def finished_catalog(store: Storage) -> dict[str, Any]:
    """Return the catalog of a training that is done.

    Raises:
        InputError: there is none.
    """
    catalog = read_catalog(store)
    if catalog is None or catalog["stage"] != STAGE:
        raise InputError(
            f"{store.uri} holds no finished training run",
            mend="name the folder that `resnet train` wrote; one that is not done goes on by: resnet train --resume"
            f" {shlex.quote(store.uri)}",
        )
    return catalog


def finished_config(store: Storage, catalog: Mapping[str, Any]) -> TrainConfig:
    """Return the config of a training that is done, pinned to the dataset version and the copy of weights it used."""
    values = {**catalog["config"], "dataset": _read_standing(store)["dataset"]}
    return TrainConfig.model_validate_json(json.dumps({**values, **_own_start(values, store)}))


def _own_start(values: Mapping[str, Any], store: Storage) -> dict[str, Any]:
    """Return the change by which a run starts from its own copy: what `init.from` named may be gone, or elsewhere.

    The key is of what the weights are, so that it is the same. Where the run was killed before it had its copy, the
    first address has to do.
    """
    init, copy = values.get("init") or {}, store.child(INIT)
    return {"init": {**init, "from": copy.uri}} if init.get("from") and copy.exists(DESCRIPTION_FILE) else {}


def _read_standing(store: Storage) -> dict[str, Any]:
    """Return `run.json` of a training."""
    try:
        standing = json.loads(store.read(RUN))
    except NotFound:
        standing = None
    except ValueError:
        raise InputError(f"{store.address(RUN)} is damaged", mend="give the command that began the run again") from None
    if not isinstance(standing, dict) or standing.get("stage") != STAGE:
        raise InputError(f"{store.uri} holds no training", mend="name the folder that `resnet train` wrote")
    return standing
