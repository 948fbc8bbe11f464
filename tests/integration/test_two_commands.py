"""A newer command on the folder of one that trains or sweeps on a real Ray: the older stops and says for whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import Superseded
from pipelines.ray_runtime import RayConfig, ray_session
from pipelines.stage_output import read_catalog
from pipelines.storage import Storage
from pipelines.train.checkpoint import committed_steps
from pipelines.train.group import train_in_workers
from pipelines.train.outcome import read_outcome
from pipelines.train.owner import check_owner, claim_run
from pipelines.train.records import EpochRecord
from pipelines.tune import stage
from pipelines.tune.sweep import Sweep
from tests.integration.test_tune import journal, make_sweep
from tests.unit.train.tiny import make_config, write_dataset

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]


def test_workers_of_the_older_command_stop_and_a_rerun_goes_on(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    run = Storage.open(tmp_path / "run")
    config = make_config(dataset, num_workers=2, cpus_per_worker=1, epochs=400)
    newer: list[str] = []

    def claim_in_first(record: EpochRecord) -> bool:
        if not newer:
            newer.append(claim_run(run))
        return True

    with ray_session(RayConfig()) as session:
        with pytest.raises(Superseded, match="another command trains in this folder now"):
            train_in_workers(config, run, session, on_epoch=claim_in_first)
        check_owner(run, newer[0])
        standing = committed_steps(run)
        assert standing
        outcome = read_outcome(config, run)
        assert outcome is not None
        assert outcome.stopped
        train_in_workers(config, run, session, on_epoch=lambda record: record.epoch <= outcome.epochs)
    assert committed_steps(run)[-1] > standing[-1]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_older_of_two_sweeps_stops_and_leaves_the_folder_to_the_newer(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    dataset, follow = write_dataset(tmp_path / "dataset"), Sweep.follow
    how = {"workers_per_trial": workers, "scheduler": "none"}
    config = make_sweep(dataset, tmp_path / "out", mlflow_uri, epochs=8, num_trials=2, **how)
    store, newer = Storage.open(config.out), []

    def claim_in_first(sweep: Sweep, trial: str) -> None:
        follow(sweep, trial)
        if not newer:
            newer.extend([claim_run(store), *(claim_run(sweep.run_of(plan.trial)) for plan in sweep.unfinished())])

    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "follow", claim_in_first)
        with pytest.raises(Superseded, match="another command trains in this folder now"):
            stage.run(config)
    check_owner(store, newer[0])
    assert read_catalog(store) is None
    assert {entry["status"] for entry in journal(tmp_path / "out").values()} == {"running"}
    assert stage.run(config).figures["finished"] == 2


def test_a_sweep_whose_trials_have_ended_publishes_nothing_once_a_newer_has_the_folder(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_sweep(write_dataset(tmp_path / "dataset"), tmp_path / "out", mlflow_uri, epochs=1, num_trials=1)
    store, end = Storage.open(config.out), Sweep.end

    def end_and_claim(sweep: Sweep, *how: str) -> None:
        end(sweep, *how)  # type: ignore[arg-type]
        claim_run(store)

    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "end", end_and_claim)
        with pytest.raises(Superseded):
            stage.run(config)
    assert read_catalog(store) is None
    assert stage.run(config).figures["finished"] == 1
