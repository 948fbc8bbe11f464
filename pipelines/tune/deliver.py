"""`resnet track` of a sweep: MLflow is told what it lacks of one that is over, from the sweep's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipelines.errors import InputError
from pipelines.stage_output import BEST_RUN, RUN, StageResult, read_catalog
from pipelines.storage import Storage
from pipelines.tracking import TrackingConfig
from pipelines.train.deliver import delivered
from pipelines.train.initial import INIT
from pipelines.train.records import work_span
from pipelines.train.resume import keep_run_id, kept_tracking
from pipelines.train.teller import open_log, tell_settings
from pipelines.tune.config import TuneConfig
from pipelines.tune.plan import STAGE
from pipelines.tune.plan import plan as make_plan
from pipelines.tune.stage import plan_trials
from pipelines.tune.sweep import TRIALS, Sweep
from pipelines.tune.telling import sweep_log, tell_outcome


def deliver(uri: str, tracking: TrackingConfig) -> StageResult:
    """Send what MLflow lacks of a finished sweep and its trials: a server that was away has it then, once.

    Raises:
        InputError: no finished sweep stands there, or its dataset is gone.
        RegistryError: MLflow is still away, or refuses.
    """
    store = Storage.open(uri)
    catalog = read_catalog(store)
    if catalog is None or catalog["stage"] != STAGE:
        raise InputError(f"{store.uri} holds no finished sweep", mend="name the folder that `resnet tune` wrote")
    standing = json.loads(store.read(RUN))
    config = _finished_config(store, catalog, standing, tracking)
    plan = replace(make_plan(config), key=catalog["key"], inputs=catalog["inputs"])
    trials = plan_trials(config, plan, store)
    best = catalog["best"]
    with open_log(config.tracking, plan, store, standing, span_s=_work_span(store, catalog, standing)) as log:
        log.begin()
        tell_settings(log, catalog["config"], dataset=plan.dataset, fingerprint=plan.inputs["dataset"])
        sweep = Sweep(trials, store, None, sweep_log(config.tracking, log, plan, store, standing), is_over=True)
        epochs_sent = sweep.tell_untold(tells_all=True)
        pictures = {file.path: store.read(file.path) for file in store.list("figures")}
        tell_outcome(log, pictures, catalog["trials"], best, catalog["model"]["weights_sha256"])
        is_whole = sweep.settle_models(best["trial"])
    keep_run_id(store, log)
    late = {**json.loads(store.read(RUN)), BEST_RUN: sweep.entries[best["trial"]].mlflow_run_id}
    store.put(RUN, json.dumps(late, indent=1).encode())
    return delivered(log, store, catalog, epochs_sent=epochs_sent, is_whole=is_whole and not sweep.is_untold())


def _finished_config(
    store: Storage, catalog: Mapping[str, Any], standing: Mapping[str, Any], tracking: TrackingConfig
) -> TuneConfig:
    """Return the config of a sweep that is over, pinned to the dataset version and the copy of weights it used."""
    values = dict(catalog["config"])
    training = {**values["train"], "dataset": standing["dataset"]}
    if (training.get("init") or {}).get("from"):
        training["init"] = {**training["init"], "from": store.child(INIT).uri}
    config = TuneConfig.model_validate_json(json.dumps({**values, "train": training, "out": store.uri}))
    return config.model_copy(update={"tracking": kept_tracking(standing, tracking)})


def _work_span(store: Storage, catalog: Mapping[str, Any], standing: Mapping[str, Any]) -> tuple[float, float]:
    """Return the Unix times between which the trials were trained."""
    spans = [work_span(store.child(f"{TRIALS}/{trial['id']}")) for trial in catalog["trials"] if trial["epochs"]]
    began_s = min(span[0] for span in spans)
    return min(float(standing.get("started_s") or began_s), began_s), max(span[1] for span in spans)
