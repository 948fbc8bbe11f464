"""The driver's side of a sweep over folders written by hand: what is run, stopped, tried again, left alone."""

import json
import threading
import uuid
from typing import Any

import pytest

from pipelines.config.load import load_config
from pipelines.errors import Superseded
from pipelines.storage import Storage
from pipelines.tracking import TrackingConfig
from pipelines.train.config import TrainConfig
from pipelines.train.owner import find_successor, note_path
from pipelines.train.records import EpochRecord, write_record
from pipelines.train.worker import STOP
from pipelines.tune import sweep as sweep_module
from pipelines.tune.journal import Journal, TrialEntry
from pipelines.tune.search import Asha
from pipelines.tune.space import TrialPlan
from pipelines.tune.sweep import Sweep, best_record, trial_job
from pipelines.tune.telling import SweepLog

LOG = SweepLog(TrackingConfig(enabled=False), lambda: "", "key")


@pytest.fixture
def storage() -> Storage:
    return Storage.open(f"memory://{uuid.uuid4().hex}/sweep")


def record(epoch: int, top1: float, *, loss: float = 1.0) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        step=10 * epoch,
        train_loss=1.0,
        train_top1=0.5,
        val_loss=loss,
        val_top1=top1,
        lr=0.1,
        images_per_s=100.0,
        elapsed_s=1.0,
        data_wait_fraction=0.0,
        id_trace="0" * 16,
    )


def write_trial(storage: Storage, trial: str, figures: list[float], *, checkpointed: bool = True) -> None:
    run = storage.child(f"trials/{trial}")
    for epoch, figure in enumerate(figures, start=1):
        write_record(run, record(epoch, figure))
        if checkpointed or epoch < len(figures):
            run.put(f"checkpoints/step-{10 * epoch:08d}/COMMIT", b"{}")


def plans(*params: dict[str, Any], refused: str = "") -> list[TrialPlan]:
    made = [TrialPlan(f"{i + 1:04d}", p, TrainConfig(dataset="d")) for i, p in enumerate(params)]
    return made + ([TrialPlan(f"{len(made) + 1:04d}", {"model.depth": 21}, None, refused)] if refused else [])


def names(sweep: Sweep) -> list[str]:
    return [plan.trial for plan in sweep.unfinished()]


def asha() -> Asha:
    return Asha(grace_epochs=2, reduction_factor=3, max_epochs=9)


def entries(storage: Storage) -> dict[str, dict[str, Any]]:
    return {file.path[-9:-5]: json.loads(storage.read(file.path)) for file in storage.list("journal")}


def test_a_fresh_sweep_runs_every_trial_and_writes_down_its_end(storage: Storage) -> None:
    sweep = Sweep(plans({"a": 1}, {"a": 2}), storage, asha(), LOG)
    assert names(sweep) == ["0001", "0002"]
    assert {entry["status"] for entry in entries(storage).values()} == {"running"}
    write_trial(storage, "0001", [0.2, 0.6, 0.5])
    sweep.follow("0001")
    sweep.end("0001", "finished")
    assert names(sweep) == ["0002"]
    ended = entries(storage)["0001"]
    assert (ended["status"], ended["epochs"], ended["val_top1"], ended["best_epoch"]) == ("finished", 3, 0.6, 2)


def test_ended_trials_are_left_alone_and_failed_ones_tried_again(storage: Storage) -> None:
    journal = Journal(storage)
    for number, status in enumerate(["finished", "stopped", "failed", "running"], start=1):
        journal.open(f"{number:04d}", {"a": number})
        journal.write(TrialEntry(f"{number:04d}", {"a": number}, status=status, reason="why"))  # type: ignore[arg-type]
    sweep = Sweep(plans(*({"a": number} for number in range(1, 5))), storage, asha(), LOG)
    assert names(sweep) == ["0003", "0004"]
    assert entries(storage)["0003"]["status"] == "running"
    assert entries(storage)["0003"]["reason"] == ""
    assert entries(storage)["0001"]["reason"] == "why"


def test_impossible_trials_are_written_down_and_never_run(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    sweep = Sweep(plans({"a": 1}, refused="model: depth is 21: no"), storage, asha(), LOG)
    assert names(sweep) == ["0001"]
    assert entries(storage)["0002"]["status"] == "refused"
    assert entries(storage)["0002"]["reason"] == "model: depth is 21: no"
    assert "trial 0002 is not run: model: depth is 21: no" in caplog.text


def test_a_trial_left_at_its_rung_is_decided_on_resume(storage: Storage) -> None:
    write_trial(storage, "0001", [0.2, 0.6, 0.7])
    write_trial(storage, "0002", [0.1, 0.3])
    write_trial(storage, "0003", [0.9])
    sweep = Sweep(plans({"a": 1}, {"a": 2}, {"a": 3}), storage, asha(), LOG)
    assert names(sweep) == ["0001", "0002", "0003"]  # a command that is refused decides nothing
    sweep.claim()
    assert names(sweep) == ["0001", "0003"]
    stopped = entries(storage)["0002"]
    assert (stopped["status"], stopped["reason"]) == ("stopped", "behind at epoch 2 with 30.0%")
    assert sweep.is_stopped("0002")


def test_an_epoch_without_its_checkpoint_decides_nothing_yet(storage: Storage) -> None:
    write_trial(storage, "0001", [0.2, 0.6])
    write_trial(storage, "0002", [0.1, 0.3], checkpointed=False)
    sweep = Sweep(plans({"a": 1}, {"a": 2}), storage, asha(), LOG)
    sweep.claim()
    assert names(sweep) == ["0001", "0002"]


def test_a_sweep_without_a_stopping_rule_stops_nothing(storage: Storage) -> None:
    sweep = Sweep(plans({"a": 1}, {"a": 2}), storage, None, LOG)
    assert sweep.should_stop("0001", 2, 0.9) is False
    assert sweep.should_stop("0002", 2, 0.1) is False


def test_workers_that_were_asked_to_end_may_have_done_so_already(storage: Storage) -> None:
    sweep = Sweep(plans({"a": 1}, {"a": 2}), storage, asha(), LOG)
    sweep.claim()
    for trial, figure in (("0001", 0.9), ("0002", 0.1)):
        if sweep.should_stop(trial, 2, figure):
            sweep.ask_to_end(trial)
    assert sweep.run_of("0002").exists(note_path(STOP, sweep.owner_of("0002")))
    assert not sweep.run_of("0001").exists(note_path(STOP, sweep.owner_of("0001")))
    assert sweep.should_stop("0002", 6, 0.1) is False  # asked once
    write_trial(storage, "0002", [0.1] * 4)
    sweep.end("0002", "stopped")
    assert entries(storage)["0002"]["reason"] == "behind at epoch 2 with 10.0%"
    assert entries(storage)["0002"]["epochs"] == 4
    sweep.should_stop("0001", 2, 0.9)
    write_trial(storage, "0001", [0.9] * TrainConfig().epochs)
    sweep.end("0001", "stopped")
    assert entries(storage)["0001"]["status"] == "finished"


def test_of_two_sweeps_that_begin_at_once_one_has_the_folder_and_all_trials(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (Sweep(plans({"a": 1}, {"a": 2}), storage, asha(), LOG) for _ in range(2))
    claim, claimed = sweep_module.claim_run, list[str]()

    def claim_between(run: Storage, token: str = "") -> str:
        claimed.append(run.uri)
        if len(claimed) == 2:  # the other does all of it after one's first trial
            other.claim()
        return claim(run, token)

    monkeypatch.setattr(sweep_module, "claim_run", claim_between)
    one.claim()
    for sweep in (one, other):
        has_it = sweep is one
        for trial in ("0001", "0002"):
            assert (find_successor(sweep.run_of(trial), sweep.owner_of(trial)) is None) == has_it
    with pytest.raises(Superseded):
        other.check_owner()
    claimed.clear()
    late = Sweep(plans({"a": 1}, {"a": 2}), storage, asha(), LOG)

    def claim_behind(run: Storage, token: str = "") -> str:
        taken = claim(run, token)
        if run.uri == storage.uri:
            claim(storage)
        return taken

    monkeypatch.setattr(sweep_module, "claim_run", claim_behind)
    with pytest.raises(Superseded):
        late.claim()


def test_what_became_of_a_trial_that_a_newer_sweep_has_taken_is_not_written_down(storage: Storage) -> None:
    older = Sweep(plans({"a": 1}), storage, asha(), LOG)
    older.claim()
    older.check_owner()
    write_trial(storage, "0001", [0.2, 0.6])
    older.follow("0001")
    newer = Sweep(plans({"a": 1}), storage, asha(), LOG)
    newer.claim()
    for refused in (
        older.check_owner,
        lambda: older.end("0001", "stopped"),
        lambda: older.end("0001", "failed", "why"),
    ):
        with pytest.raises(Superseded):
            refused()
    assert entries(storage)["0001"]["status"] == "running"
    newer.end("0001", "finished")
    assert entries(storage)["0001"]["status"] == "finished"


def test_a_stopped_trial_has_its_best_checkpoint_waited_for(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipelines.tune.sweep._LOOK_S", 0.01)
    sweep = Sweep(plans({"a": 1}), storage, asha(), LOG)
    write_trial(storage, "0001", [0.2, 0.6], checkpointed=False)
    marker = "trials/0001/checkpoints/step-00000020/COMMIT"
    commit = threading.Timer(0.3, lambda: storage.put(marker, b"{}"))
    commit.start()
    sweep.await_best("0001")
    assert storage.exists(marker)
    commit.join()
    assert not caplog.text
    storage.delete(marker)
    monkeypatch.setattr("pipelines.tune.sweep._CHECKPOINT_S", 0.05)
    sweep.await_best("0001")
    assert "trial 0001: the checkpoint of its best epoch is not there yet" in caplog.text


def test_a_failed_trial_keeps_its_reason_and_says_so(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    sweep = Sweep(plans({"a": 1}), storage, asha(), LOG)
    sweep.end("0001", "failed", "the loss became nan")
    assert entries(storage)["0001"]["reason"] == "the loss became nan"
    assert entries(storage)["0001"]["val_top1"] is None
    assert "trial 0001 failed: the loss became nan" in caplog.text


def test_the_best_epoch_is_the_one_whose_weights_are_kept() -> None:
    records = [record(1, 0.5), record(2, 0.9, loss=0.4), record(3, 0.9, loss=0.3), record(4, 0.9, loss=0.3)]
    best = best_record(records)
    assert best is not None
    assert best.epoch == 3
    assert best_record([]) is None


def test_an_epoch_whose_weights_could_not_be_written_is_not_the_one_to_win(storage: Storage) -> None:
    sweep = Sweep(plans({"a": 1}), storage, asha(), LOG)
    write_trial(storage, "0001", [0.7, 0.8, 0.75, 0.65, 0.6])
    storage.delete("trials/0001/checkpoints/step-00000020/COMMIT")
    sweep.end("0001", "finished")
    best = sweep.best_of("0001")
    assert best is not None
    assert (best.epoch, best.val_score) == (3, 0.75)
    assert (entries(storage)["0001"]["best_epoch"], entries(storage)["0001"]["val_top1"]) == (3, 0.75)


def test_a_job_holds_all_that_a_process_needs(storage: Storage) -> None:
    config = load_config(TrainConfig, None, ["dataset=d@v1", "model.depth=14", "num_workers=5"])
    process: dict[str, Any] = {"workers": 2, "cpus": 3, "use_gpu": False, "timeout_s": 9.0}
    job = json.loads(trial_job(TrialPlan("0007", {}, config), storage, owner="token", **process))
    training = TrainConfig.model_validate_json(json.dumps(job["config"]))
    assert (training.num_workers, training.cpus_per_worker, training.out) == (2, 3, storage.uri)
    assert (training.model.depth, training.dataset) == (14, "d@v1")
    assert {key: job[key] for key in ("trial", "run", "cpus", "use_gpu", "timeout_s")} == {
        "trial": "0007",
        "run": storage.uri,
        "cpus": 3,
        "use_gpu": False,
        "timeout_s": 9.0,
    }
