"""The tuning stage: plan, trials, MLflow runs, the best trial's package, pictures, the catalog last."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipelines.dataset.catalog import parse_ref
from pipelines.errors import DataError, InputError, StorageError
from pipelines.node_paths import check_nodes_see
from pipelines.plots.params import describe_params
from pipelines.ray_runtime import ray_session
from pipelines.stage_output import RUN, StageResult, commands_with_model, open_run, publish_catalog, read_catalog
from pipelines.storage import Storage
from pipelines.tracking import RunLog, TrackingConfig, refuse_local_store, resolve_uri
from pipelines.train.environment import write_environment
from pipelines.train.initial import INIT, keep_copy, starting_spec
from pipelines.train.owner import leaving_to_successor
from pipelines.train.resume import keep, keep_run_id
from pipelines.train.teller import open_log, tell_settings
from pipelines.tune.config import TuneConfig
from pipelines.tune.plan import STAGE, TunePlan
from pipelines.tune.plan import plan as make_plan
from pipelines.tune.search import Asha
from pipelines.tune.space import TrialPlan, make_trials
from pipelines.tune.sweep import TRIALS, Sweep
from pipelines.tune.telling import sweep_log, tell_outcome

if TYPE_CHECKING:
    from pipelines.dataset.reader import Dataset

_LOGGER = logging.getLogger(__name__)

LOSERS = "_work/losers.json"
"""Stands while a published sweep may hold checkpoints of trials that lost."""


@dataclass(frozen=True)
class TuneResult(StageResult):
    """A finished sweep."""


def run(config: TuneConfig) -> TuneResult:
    """Run a sweep and publish its leaderboard and the best trial's model.

    Killed at any moment and started again with the same config, it runs no finished trial again and goes on with
    unfinished ones from their last checkpoints, in the same MLflow runs.

    Raises:
        ConfigError: the space is too small, or none of the sampled trainings is possible.
        InputError: there is no dataset, it cannot be trained on, or `out` holds something else.
        DataError: every trial failed.
        ClusterError: not even one trial fits the cluster.
        Superseded: the same command was given again elsewhere, and goes on with this sweep.
    """
    plan = make_plan(config)
    store = Storage.open(plan.out)
    catalog = read_catalog(store)
    if catalog is not None and catalog["key"] == plan.key:
        if store.exists(LOSERS):  # it was killed before they were gone
            _drop_losers(store, catalog)
        return _result(plan, store, catalog, config.tracking, skipped=True)
    trials = plan_trials(config, plan, store)
    kept = keep({"tracking": config.tracking.model_dump(mode="json")}, config.tracking)
    details = {"dataset": plan.dataset, "started_s": round(time.time(), 3), "config": kept}
    standing = open_run(store, STAGE, plan.key, details)
    if plan.initial:
        keep_copy(plan.initial, store, config.tracking)
    with open_log(config.tracking, plan, store, standing) as log:
        tell_settings(log, _values(config), dataset=plan.dataset, fingerprint=plan.inputs["dataset"])
        asha = None
        if config.scheduler == "asha":
            asha = Asha(
                grace_epochs=config.grace_epochs,
                reduction_factor=config.reduction_factor,
                max_epochs=config.train.epochs,
            )
        sweep = Sweep(trials, store, asha, sweep_log(config.tracking, log, plan, store, standing))

        def begin() -> None:
            log.begin()
            keep_run_id(store, log)
            sweep.claim()

        with leaving_to_successor(log, sweep.find_successor):
            if sweep.unfinished():
                _run_trials(config, sweep, plan.dataset, store, begin)
            else:
                begin()
            sweep.check_owner()
            store.put(LOSERS, b"{}")
            catalog = _publish(config, plan, store, sweep, trials, log)
    _drop_losers(store, catalog)
    return _result(plan, store, catalog, config.tracking, skipped=False)


def _drop_losers(store: Storage, catalog: dict[str, Any]) -> None:
    """Delete the checkpoints of all trials but the best: a sweep of large networks would fill a disk with them."""
    losers = {trial["id"] for trial in catalog["trials"]} - {catalog["best"]["trial"]}
    for file in store.list(TRIALS):
        _, trial, *place = file.path.split("/")
        if trial in losers and place[0] == "checkpoints":
            store.delete(file.path)
    store.delete(LOSERS)


def _run_trials(config: TuneConfig, sweep: Sweep, dataset: str, store: Storage, begin: Callable[[], None]) -> None:
    """Run the trials that are left; `begin` takes the sweep, once nothing is left that may refuse the command."""
    with ray_session(config.ray) as session:
        if config.tracking.enabled:
            refuse_local_store(resolve_uri(config.tracking), session.num_nodes)
        check_nodes_see(session.num_nodes, {"--dataset": parse_ref(dataset)[0], "--out": f"{store.uri}/{RUN}"})
        from pipelines.tune.drive import run_trials  # it imports Ray Tune, which Ray's settings must precede

        try:
            write_environment(store)  # trials keep a copy
        except StorageError as error:
            _LOGGER.warning("by what the trials are trained cannot be written down: %s", error)
        run_trials(config, sweep, session, begin)


def plan_trials(config: TuneConfig, plan: TunePlan, store: Storage) -> list[TrialPlan]:
    """Sample every trial and fit it to the data, before Ray is started."""
    from pipelines.dataset.reader import open_dataset

    dataset = open_dataset(plan.dataset)
    # A trial records nothing itself: the driver does, from what the trial leaves in its folder.
    update: dict[str, Any] = {"dataset": plan.dataset, "out": "", "tracking": TrackingConfig(enabled=False)}
    update |= {"num_workers": config.workers_per_trial, "min_workers": 0}
    if plan.initial:  # trials start from the sweep's own copy
        update["init"] = config.train.init.model_copy(update={"from": store.child(INIT).uri})
        update["model"] = starting_spec(config.train, plan.initial)
    pinned = config.model_copy(update={"train": config.train.model_copy(update=update)})
    return make_trials(pinned, image_size_px=_input_size_px(dataset), num_classes=len(dataset.classes))


def _input_size_px(dataset: Dataset) -> int:
    """Return the shorter side of what networks will see, from the first training image."""
    from pipelines.image.preprocess import Preprocess, prepare_stored

    if not dataset.row_groups("train"):
        raise InputError(f"{dataset.ref} has no rows in split 'train'", mend="ingest images into it first")
    images = dataset.read_group("train", 0, ["image"]).column("image").combine_chunks()
    pixels = prepare_stored(images.field("bytes")[0].as_py(), Preprocess.from_json(dataset.preprocess))
    return int(min(pixels.shape[:2]))


def _publish(
    config: TuneConfig, plan: TunePlan, store: Storage, sweep: Sweep, trials: Sequence[TrialPlan], log: RunLog
) -> dict[str, Any]:
    """Choose the best trial, write its model, pictures and the catalog."""
    from pipelines.train.model import MODEL, write_model
    from pipelines.train.state import Best
    from pipelines.tune.report import can_win, draw_pictures, ranked

    sweep.tell_untold()
    board = [_row(sweep, plan_of.trial) for plan_of in trials]
    winner = ranked(board)[0]
    if not can_win(winner):
        reasons = [row["reason"] for row in board if row["status"] == "failed"]
        raise DataError(
            f"all {len(board)} trials failed; the first: {reasons[0] if reasons else board[0]['reason']}",
            where=store.address("journal"),
            mend="mend the cause and run the same command again: failed trials are then tried again",
        )
    record = sweep.best_of(winner["id"])
    training = next(trial.config for trial in trials if trial.trial == winner["id"])
    assert record is not None
    assert training is not None
    best = Best(record.epoch, record.step, record.val_score, record.val_loss)
    description = write_model(training, sweep.run_of(winner["id"]), best, train_key=plan.key)
    # of the best epoch, or of the last where the best one's checkpoint is damaged
    kept = description["metrics"] or asdict(best)
    outcome = {
        "trial": winner["id"],
        **{name: kept[name] for name in ("epoch", "val_top1", "val_loss")},
        "params": winner["params"],
        "mlflow_run_id": winner["mlflow_run_id"],
    }
    tell_outcome(log, draw_pictures(store, board), board, outcome, description["weights_sha256"])
    sweep.settle_models(winner["id"])
    # Before the catalog: a run killed in between is ended by the rerun, and a late run id still gets in.
    log.end()
    return publish_catalog(
        store,
        {
            "stage": STAGE,
            "key": plan.key,
            "run_id": f"{plan.key}-0",
            "mlflow_run_id": log.run_id,
            "inputs": plan.inputs,
            "dataset": description["dataset"],
            "model": {
                "path": f"{TRIALS}/{winner['id']}/{MODEL}",
                "weights_sha256": description["weights_sha256"],
                "spec": description["spec"],
            },
            "best": outcome,
            "trials": board,
            "config": _values(config),
        },
    )


def _row(sweep: Sweep, trial: str) -> dict[str, Any]:
    """Return a trial as the catalog lists it."""
    entry, records, best = sweep.entries[trial], sweep.records.get(trial, []), sweep.best_of(trial)
    return {
        "id": trial,
        "params": entry.params,
        "status": entry.status,
        "reason": entry.reason,
        "epochs": entry.epochs,
        "val_top1": best.val_score if best else None,
        "val_loss": best.val_loss if best else None,
        "best_epoch": best.epoch if best else 0,
        "elapsed_s": records[-1].elapsed_s if records else 0.0,
        "mlflow_run_id": entry.mlflow_run_id,
        "curve": [[record.epoch, record.val_score] for record in records],
    }


def _values(config: TuneConfig) -> dict[str, Any]:
    """Return the settings that are told and kept: addresses may hold a password, and say nothing about the networks."""
    return config.model_dump(mode="json", exclude={"tracking": True, "ray": True, "train": {"tracking", "ray"}})


def _result(
    plan: TunePlan, store: Storage, catalog: dict[str, Any], tracking: TrackingConfig, *, skipped: bool
) -> TuneResult:
    counts = Counter(trial["status"] for trial in catalog["trials"])
    figures: dict[str, float | int | str] = {
        "val_top1": catalog["best"]["val_top1"],
        "best": f"trial {catalog['best']['trial']}: {describe_params(catalog['best']['params'])}",
        "trials": len(catalog["trials"]),
        **{status: counts[status] for status in ("finished", "stopped", "failed", "refused") if counts[status]},
        "model": store.address(catalog["model"]["path"]),
        "mlflow_run_id": catalog["mlflow_run_id"],
    }
    commands = commands_with_model(plan.out, catalog, tracking.uri)
    return TuneResult(STAGE, plan.out, plan.key, skipped, figures, commands)
