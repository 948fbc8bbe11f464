"""Thirty `kill -9` of workers and drivers at random points of one run through Ray; it ends as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipelines.storage import Storage
from pipelines.train.checkpoint import committed_steps, load_latest
from pipelines.train.loop import fit_local
from pipelines.train.records import read_records
from pipelines.train.state import OPTIMIZER, WEIGHTS
from pipelines.train.step_log import read_steps
from tests.e2e.resnet_process import ResnetProcess, resnet_process
from tests.unit.train.tiny import make_config, write_dataset

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]

DRIVERS = 10
WORKERS_EACH = 2
"""Workers killed under each driver, which replaces three at most."""
EPOCHS = 160
"""More than a fast machine does before the last kill."""
CHECKPOINT_EVERY_S = 3.0
SYNC_S = 1.0
BACK_BAR_S = 20.0
"""Seconds from a kill to the next checkpoint on a machine that does nothing else."""
BACK_MOST_S = 60.0
"""The same where tests share the machine."""


def worker_of(process: ResnetProcess) -> psutil.Process | None:
    """Return the process that trains, when there is one."""
    for child in process.children():
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                return child
        except psutil.NoSuchProcess:
            continue
    return None


class Campaign:
    """One run, killed again and again."""

    def __init__(self, run: Path, seed: int) -> None:
        self.run = Storage.open(run)
        self.random = random.Random(seed)
        self.unsafe_s: list[float] = []
        """Seconds of work that each kill took away: since the newest checkpoint."""
        self.back_s: list[float] = []
        """Seconds from each kill to the next checkpoint."""
        self.killed_s = 0.0

    def reached(self) -> int:
        return max(committed_steps(self.run), default=0)

    def wait_to_kill(self, process: ResnetProcess, known: int) -> None:
        """Wait until the run is some way beyond a step, and then for a moment more."""
        process.wait_until(lambda: self.reached() > known, timeout_s=300)
        if self.killed_s:
            self.back_s.append(time.time() - self.killed_s)
        beyond = self.reached() + self.random.randrange(10, 60)
        process.wait_until(lambda: self.reached() >= beyond, timeout_s=300)
        time.sleep(self.random.uniform(0.0, 0.7))

    def note_kill(self) -> None:
        marker = Path(self.run.uri, f"checkpoints/step-{self.reached():08d}/COMMIT")
        self.killed_s = time.time()
        self.unsafe_s.append(self.killed_s - marker.stat().st_mtime)


def test_thirty_kills_of_workers_and_drivers(tmp_path: Path, one_torch_thread: None) -> None:
    counts = {"train": dict.fromkeys("abc", 400), "val": dict.fromkeys("abc", 20)}
    write_dataset(tmp_path / "dataset", counts=counts)
    settings = {"cpus_per_worker": 1, "loader_threads": 1, "checkpoint_every_s": CHECKPOINT_EVERY_S, "ema_decay": 0.9}
    config = make_config(str(tmp_path / "dataset"), epochs=EPOCHS, **settings)
    values = config.model_dump(mode="json", exclude={"tracking", "ray", "dataset", "out"})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    words = ["train", "tiny.yaml", "--dataset", "dataset", "--out", "run", "ray.num_cpus=1", "tracking.enabled=false"]
    campaign = Campaign(tmp_path / "run", seed=10)
    for _ in range(DRIVERS):
        with resnet_process(tmp_path, *words) as process:
            for _ in range(WORKERS_EACH):
                known = campaign.reached()
                campaign.wait_to_kill(process, known)
                worker = worker_of(process)
                assert worker is not None
                campaign.note_kill()
                os.kill(worker.pid, signal.SIGKILL)
            campaign.wait_to_kill(process, campaign.reached())
            campaign.note_kill()
            process.kill()
        print(f"\n{len(campaign.unsafe_s)} kills, step {campaign.reached()} of {60 * EPOCHS}", flush=True)
    with resnet_process(tmp_path, *words) as process:
        assert process.finish(600)["figures"]["epochs"] == EPOCHS

    whole = Storage.open(tmp_path / "whole")
    fit_local(config, whole, device="cpu")
    assert read_steps(campaign.run, 1, 60 * EPOCHS) == read_steps(whole, 1, 60 * EPOCHS)  # ids and losses of all steps
    ours, theirs = (read_records(run, EPOCHS) for run in (campaign.run, whole))
    assert [record.id_trace for record in ours] == [record.id_trace for record in theirs]
    mine, other = load_latest(campaign.run), load_latest(whole)
    assert mine is not None
    assert other is not None
    assert {name: mine.files[name] for name in (WEIGHTS, OPTIMIZER)} == {
        name: other.files[name] for name in (WEIGHTS, OPTIMIZER)
    }
    kills = len(campaign.unsafe_s)
    print(
        json.dumps(
            {
                "kills": kills,
                "resumed": kills,
                "most_seconds_done_twice": round(max(campaign.unsafe_s), 2),
                "checkpoint_interval_s": CHECKPOINT_EVERY_S,
                "back_s": {
                    "median": round(statistics.median(campaign.back_s), 1),
                    "most": round(max(campaign.back_s), 1),
                    "bar": BACK_BAR_S,
                },
            }
        )
    )
    assert statistics.median(campaign.back_s) <= BACK_MOST_S
    assert kills == DRIVERS * (WORKERS_EACH + 1)
    assert max(campaign.unsafe_s) <= CHECKPOINT_EVERY_S + 2 * SYNC_S  # a sync may come late, and one be in flight
