"""The training stage: plan, MLflow run, Ray Train workers, the best epoch's package, pictures, the catalog last."""

from __future__ import annotations

import logging
import math
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipelines import capacity
from pipelines.dataset.catalog import parse_ref
from pipelines.errors import ConfigError, StorageError, Unfinished
from pipelines.metrics.deciding import deciding_figure, find_deciding
from pipelines.node_paths import check_nodes_see
from pipelines.ray_runtime import ray_session
from pipelines.stage_output import RUN, StageResult, commands_with_model, open_run, publish_catalog, read_catalog
from pipelines.storage import Storage
from pipelines.tracking import RunLog, TrackingConfig, refuse_local_store, resolve_uri
from pipelines.train import startup
from pipelines.train.batch_size import settle_batch_size
from pipelines.train.checkpoint import committed_steps
from pipelines.train.config import TrainConfig
from pipelines.train.environment import write_environment
from pipelines.train.initial import fitted_spec, ghost_size_of, keep_copy
from pipelines.train.owner import Claim, leaving_to_successor
from pipelines.train.plan import STAGE, TrainPlan
from pipelines.train.plan import plan as make_plan
from pipelines.train.records import EpochRecord
from pipelines.train.remarks import remarks_on
from pipelines.train.resume import keep_run_id, kept_config
from pipelines.train.teller import Teller, open_log

if TYPE_CHECKING:
    from pipelines.train.outcome import FitOutcome

_LOGGER = logging.getLogger(__name__)

_BUSY_ENOUGH = 0.9
"""Share of the workers' time that a batch should use at least; below it a warning says what would."""


@dataclass(frozen=True)
class TrainResult(StageResult):
    """A finished training run."""


def run(config: TrainConfig) -> TrainResult:
    """Train one network and publish it with its figures.

    Killed at any moment and started again with the same config, it goes on from its newest checkpoint, in the same
    MLflow run.

    Raises:
        ConfigError: the network does not fit the data, or GPUs are asked for where there are none.
        InputError: there is no dataset, it cannot be trained on, or `out` holds something else.
        DataError: the loss stopped being a number, or data is damaged.
        ClusterError: workers do not fit the cluster or died too often.
        Unfinished: `max_hours` are over; a checkpoint stands.
    """
    startup.begin()
    startup.mark("command read")
    plan = make_plan(config)
    store = Storage.open(plan.out)
    catalog = read_catalog(store)
    if catalog is not None and catalog["key"] == plan.key:
        return _result(plan, store, catalog, config.tracking, skipped=True)
    _refuse_early(config, plan)
    startup.mark("config checked")
    details = {"dataset": plan.dataset, "started_s": round(time.time(), 3), "config": kept_config(config)}
    standing = open_run(store, STAGE, plan.key, details)
    pinned = config.model_copy(
        update={"dataset": standing["dataset"], "out": plan.out, **_pinned_init(config, plan, store)}
    )
    pinned = settle_batch_size(pinned, store, standing)
    config, plan = _named_as_begun(config, plan, standing)
    log = open_log(config.tracking, plan, store, standing, is_background=True)
    teller = make_teller(log, store, pinned, plan, standing)
    claim = Claim(store)
    with log, leaving_to_successor(log, claim.find_successor), teller:
        teller.tell_start()
        outcome = _train(pinned, store, log, teller, claim)
        from pipelines.train.model import MODEL, write_model
        from pipelines.train.pictures import draw_pictures

        description = write_model(pinned, store, outcome.best, train_key=plan.key)
        for path, data in draw_pictures(pinned, store, outcome.records).items():
            log.log_file(path, data)
        # of the best epoch, or of the last where the best one's checkpoint is damaged
        kept = description["metrics"] or _best_figures(outcome, description)
        teller.tell_best(kept, description["weights_sha256"], step=outcome.epochs)
        teller.tell_last()
        # Before the catalog: a run killed in between is ended by the rerun, and a late run id still gets in.
        log.end()
        keep_run_id(store, log)
        catalog = publish_catalog(
            store,
            {
                "stage": STAGE,
                "key": plan.key,
                "run_id": f"{plan.key}-0",
                "mlflow_run_id": log.run_id,
                "inputs": plan.inputs,
                "dataset": description["dataset"],
                "model": {
                    "path": MODEL,
                    "weights_sha256": description["weights_sha256"],
                    "spec": description["spec"],
                },
                "best": kept,
                **({"init": _describe_init(plan)} if plan.initial else {}),
                "epochs": outcome.epochs,
                "records": [record.to_json() for record in outcome.records],
                # Addresses may hold a password, and say nothing about the network.
                "config": {
                    **config.model_dump(mode="json", exclude={"tracking", "ray"}),
                    **pinned.model_dump(mode="json", include={"global_batch_size", "optimizer", "find_batch_size"}),
                },
                **({"batch_size": standing["batch_size"]} if "batch_size" in standing else {}),
            },
        )
    return _result(plan, store, catalog, config.tracking, skipped=False)


def _train(config: TrainConfig, store: Storage, log: RunLog, teller: Teller, claim: Claim) -> FitOutcome:
    """Train what is left to train; each epoch's figures go to MLflow as they appear, unless they are there."""
    from pipelines.train.outcome import read_outcome

    has_kept_id = False

    def begin_log() -> None:
        log.begin()
        keep_run_id(store, log)
        teller.begin()
        teller.follow()
        startup.mark("MLflow run open")

    def start() -> None:
        _keep_environment(store)
        begin_log()

    def on_epoch(record: EpochRecord) -> bool:
        nonlocal has_kept_id
        if log.run_id and not has_kept_id:  # once: run.json is not read, and cannot fail to be, at every epoch
            keep_run_id(store, log)
            has_kept_id = True
        teller.tell_epoch(record)
        return True

    outcome = read_outcome(config, store)
    if outcome is None or outcome.stopped:
        ends_at_s = time.time() + config.max_hours * 3600 if config.max_hours else math.inf
        if config.local:
            from pipelines.train.alone import train_alone

            # MLflow takes as long to import as torch: the first step does not wait for it.
            was_told = train_alone(config, store, on_epoch=on_epoch, on_start=start, claim=claim, ends_at_s=ends_at_s)
        else:
            was_told = _train_in_ray(config, store, on_epoch, start, claim, ends_at_s)
        outcome = read_outcome(config, store)
        if outcome is None or outcome.stopped:
            raise _unfinished(config, store, outcome, was_told=was_told, is_over=time.time() >= ends_at_s)
    else:
        begin_log()
        for record in outcome.records:
            on_epoch(record)
    return outcome


def _train_in_ray(
    config: TrainConfig,
    store: Storage,
    on_epoch: Callable[[EpochRecord], bool],
    start: Callable[[], None],
    claim: Claim,
    ends_at_s: float,
) -> bool:
    """Train in Ray's workers; return whether SIGTERM came here."""
    from pipelines.train.group import RAY_MODULES, train_in_workers

    with ray_session(config.ray, imports=RAY_MODULES) as session:
        startup.mark("Ray up")
        if config.tracking.enabled:
            refuse_local_store(resolve_uri(config.tracking), session.num_nodes)
        places = {"--dataset": parse_ref(config.dataset)[0], "--out": f"{store.uri}/{RUN}"}
        check_nodes_see(session.num_nodes, places)
        # MLflow is imported and its run opened while the workers come up.
        ended = train_in_workers(
            config, store, session, on_epoch=on_epoch, meanwhile=start, claim=claim, ends_at_s=ends_at_s
        )
    return ended.was_told


def _unfinished(
    config: TrainConfig, store: Storage, outcome: FitOutcome | None, *, was_told: bool, is_over: bool
) -> Unfinished:
    """Return what is said of a run that was left with a checkpoint, and why it was."""
    if was_told:
        why = "the run was told to end (SIGTERM)"
    elif is_over:
        why = f"max_hours={config.max_hours:g} is over"
    else:
        why = "by its newest checkpoint that is whole the run stopped"
    anew = " for as long once more (--max-hours changes that)" if is_over and not was_told else ""
    return Unfinished(
        f"{why} after {outcome.epochs if outcome else 0} of {config.epochs} epochs, at step"
        f" {max(committed_steps(store), default=0)}; nothing is published",
        where=store.uri,
        mend=f"the same command goes on from the checkpoint that was left{anew}, or: resnet train --resume"
        f" {shlex.quote(store.uri)}",
    )


def check(config: TrainConfig) -> None:
    """Refuse what is known to fail, without running anything; for `--dry-run`.

    Raises:
        ConfigError: weights, workers or GPUs do not fit.
        InputError: there is no dataset, or no model where `init.from` says.
    """
    _refuse_early(config, make_plan(config))


def _refuse_early(config: TrainConfig, plan: TrainPlan) -> None:
    """Refuse what is known to fail before Ray and its workers are started."""
    if config.local:
        from pipelines.train.alone import check_alone

        check_alone(config)
    if config.use_gpu is True and not (config.ray.address or os.environ.get("RAY_ADDRESS")):
        capacity.check_gpu(use_gpu=True)
    for remark in remarks_on(config):
        _LOGGER.warning("%s", remark)
    from pipelines.dataset.reader import open_dataset
    from pipelines.train.pixels import input_shape

    dataset = open_dataset(plan.dataset)
    spec = fitted_spec(config, plan.initial, dataset.classes, input_shape(dataset))
    if plan.initial:
        from pipelines.train.transfer import refuse_misfit

        refuse_misfit(config, plan.initial, dataset)
    from pipelines.dataset.order import make_lanes, sharing_efficiency

    lanes, ghosts = make_lanes(config.global_batch_size, ghost_size_of(spec))
    most = ghosts or lanes
    if config.num_workers > most:
        raise ConfigError(
            f"num_workers is {config.num_workers}; a global batch of {config.global_batch_size} is shared by"
            f" {most} at most" + (", one ghost batch each" if ghosts else ""),
            mend=f"set num_workers={most} or a larger global_batch_size",
        )
    busy = sharing_efficiency(config.num_workers, lanes, ghosts)
    if busy < _BUSY_ENOUGH:
        _LOGGER.warning(
            "%d workers share the %d %s of a batch unevenly and are busy %.0f%% of the time;"
            " a number that divides %d would keep all of them busy",
            *(config.num_workers, most, "ghost batches" if ghosts else "lanes", 100 * busy, most),
        )


def make_teller(
    log: RunLog, store: Storage, config: TrainConfig, plan: TrainPlan, standing: Mapping[str, Any]
) -> Teller:
    """Return who tells the log; a run that an earlier release began counts the seconds of its samples from 1970."""
    return Teller(log, store, config, plan, float(standing.get("started_s", 0.0)))


def _keep_environment(store: Storage) -> None:
    """Write down by what a run is trained, whatever MLflow says; no training ends for want of it."""
    try:
        write_environment(store)
    except StorageError as error:
        _LOGGER.warning("by what the run is trained cannot be written down: %s", error)


def _pinned_init(config: TrainConfig, plan: TrainPlan, store: Storage) -> dict[str, Any]:
    """Return the change of the config that has the run start from its own copy of what `init.from` names."""
    if plan.initial is None:
        return {}
    return {"init": config.init.model_copy(update={"from": keep_copy(plan.initial, store, config.tracking)})}


def _named_as_begun(config: TrainConfig, plan: TrainPlan, standing: Mapping[str, Any]) -> tuple[TrainConfig, TrainPlan]:
    """Return both with the start called what it was at first: `--resume` reads the run's own copy, which is no name."""
    ref = ((standing.get("config") or {}).get("init") or {}).get("from")
    if plan.initial is None or not ref:
        return config, plan
    init = config.init.model_copy(update={"from": ref})
    return config.model_copy(update={"init": init}), replace(plan, initial=replace(plan.initial, ref=ref))


def _describe_init(plan: TrainPlan) -> dict[str, Any]:
    assert plan.initial is not None
    words = plan.initial.describe(plan.classes)
    return {"ref": plan.initial.ref, "words": words, **plan.initial.to_json(plan.classes)}


def _best_figures(outcome: FitOutcome, description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the best epoch's figures where its record is gone."""
    best, deciding = outcome.best, deciding_figure(description.get("task", "single"))
    return {"epoch": best.epoch, f"val_{deciding}": best.val_score, "val_loss": best.val_loss}


def _result(
    plan: TrainPlan, store: Storage, catalog: dict[str, Any], tracking: TrackingConfig, *, skipped: bool
) -> TrainResult:
    records = catalog["records"]
    last, deciding = records[-1], find_deciding(catalog["best"], "val_")
    figures: dict[str, float | int | str] = {
        deciding: catalog["best"][deciding],
        "best_epoch": catalog["best"]["epoch"],
        "epochs": catalog["epochs"],
        "images_per_s": round(last["images_per_s"], 1),
        "elapsed_s": round(last["elapsed_s"], 1),
        "model": f"{store.uri}/{catalog['model']['path']}",
        "mlflow_run_id": catalog["mlflow_run_id"],
    }
    if "init" in catalog:
        figures["started_from"] = catalog["init"]["words"]
    commands = commands_with_model(plan.out, catalog, tracking.uri)
    return TrainResult(STAGE, plan.out, plan.key, skipped, figures, commands)
