"""`resnet track` of a training: MLflow is told what it lacks of a run that is over, from the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipelines.errors import RegistryError
from pipelines.redact import redact
from pipelines.stage_output import RUN, StageResult
from pipelines.storage import Storage
from pipelines.tracking import RunLog, TrackingConfig
from pipelines.train.plan import STAGE, TrainPlan
from pipelines.train.records import EpochRecord, work_span
from pipelines.train.replay import CERTIFICATES, tell_certificate
from pipelines.train.resume import finished_catalog, finished_config, keep_run_id, kept_tracking
from pipelines.train.stage import make_teller
from pipelines.train.teller import open_log


def deliver(uri: str, tracking: TrackingConfig) -> StageResult:
    """Send what MLflow lacks of a finished run: a server that was away until the end has it then, once.

    Raises:
        InputError: no finished training run stands there.
        RegistryError: MLflow is still away, or refuses.
    """
    store = Storage.open(uri)
    catalog = finished_catalog(store)
    standing = json.loads(store.read(RUN))
    config = finished_config(store, catalog)
    config = config.model_copy(update={"tracking": kept_tracking(standing, tracking)})
    plan = TrainPlan(STAGE, catalog["key"], catalog["inputs"], store.uri, dataset=standing["dataset"])
    span_s = work_span(store)
    with open_log(config.tracking, plan, store, standing, span_s=span_s, is_background=True) as log:
        log.begin()
        teller = make_teller(log, store, config, plan, standing)
        teller.begin()
        teller.tell_start()
        new = sum(teller.tell_epoch(EpochRecord.from_json(record)) for record in catalog["records"])
        for file in store.list("figures"):
            log.log_file(file.path, store.read(file.path))
        for file in sorted(store.list(CERTIFICATES), key=lambda file: file.modified):
            tell_certificate(log, file.path, store.read(file.path))
        teller.tell_best(catalog["best"], catalog["model"]["weights_sha256"], step=len(catalog["records"]))
        teller.tell_rest()
    keep_run_id(store, log)
    return delivered(log, store, catalog, epochs_sent=new)


def delivered(
    log: RunLog, store: Storage, catalog: Mapping[str, Any], *, epochs_sent: int, is_whole: bool = True
) -> StageResult:
    """Return what `resnet track` says of a run that MLflow has all of now.

    Args:
        log: its log, ended.
        store: its folder.
        catalog: its catalog.
        epochs_sent: epochs that MLflow had not.
        is_whole: MLflow has all of what else belongs to the run.

    Raises:
        RegistryError: it has not.
    """
    if log.num_waiting or not log.run_id or not is_whole:
        raise RegistryError(
            "MLflow is still away", where=redact(log.uri), mend="start it, and run the same command again"
        )
    figures: dict[str, float | int | str] = {
        "epochs_sent": epochs_sent,  # steps, files and models are sent where they lack, and not counted
        "mlflow_run_id": log.run_id,
        "store": redact(log.uri),
    }
    return StageResult("track", store.uri, catalog["key"], skipped=False, figures=figures)
