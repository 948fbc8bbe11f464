"""A newer command on the folder of one that trains in real Ray Train workers: they stop together and say for whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import Superseded
from pipelines.ray_runtime import RayConfig, ray_session
from pipelines.storage import Storage
from pipelines.train.checkpoint import committed_steps
from pipelines.train.group import train_in_workers
from pipelines.train.outcome import read_outcome
from pipelines.train.owner import check_owner, claim_run
from pipelines.train.records import EpochRecord
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
