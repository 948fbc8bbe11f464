from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines.errors import DataError, InputError
from pipelines.ray_runtime import RaySession
from pipelines.storage import Storage
from pipelines.train import group, loop, run_writer
from pipelines.train import replay as replays
from pipelines.train.checkpoint import committed_steps, load_checkpoint
from pipelines.train.config import ReplayConfig, TrainConfig
from pipelines.train.loop import fit, fit_local, replay
from pipelines.train.step_log import read_steps
from pipelines.train.worker import train_worker
from tests.unit.train.test_loop import Killed, kill_after_checkpoint, poison
from tests.unit.train.tiny import make_config, write_dataset
from tests.unit.train.worlds import in_threads

RANDOM = {
    "model": {"depths": [1, 1], "channels": [8, 16], "stem": "cifar", "head_dropout": 0.2, "drop_path_rate": 0.2},
    "augment": {"shift_px": 1, "mixup_alpha": 0.4},
    "precision": "float64",
}
"""Everything that a careless worker would draw for itself, and batch norm."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def trained(config: TrainConfig, run: Storage) -> Storage:
    """Train and leave what the stage leaves for a replay, without MLflow."""
    outcome = fit_local(config, run, device="cpu")
    run.create("run.json", json.dumps({"stage": "train", "dataset": f"{config.dataset}@v1"}).encode())
    catalog = {
        "stage": "train",
        "key": "k",
        "inputs": {"dataset": "f"},
        "mlflow_run_id": "",
        "best": {**asdict(outcome.best), "val_top1": outcome.best.val_score},
        "model": {"weights_sha256": "0" * 64},
        "config": config.model_dump(mode="json", exclude={"tracking", "ray"}),
        "records": [record.to_json() for record in outcome.records],
    }
    run.create("_catalog.json", json.dumps(catalog).encode())
    return run


def losses_of(config: TrainConfig, run: Storage, size: int) -> dict[int, tuple[float, str]]:
    in_threads(size, lambda world: fit(config, run, world=world, device=torch.device("cpu")))
    return read_steps(run, 1, config.epochs * 4)


def test_steps_are_logged_once_each_whatever_was_killed(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(dataset, epochs=3, checkpoint_every_s=0, **RANDOM)
    whole, cut = Storage.open(tmp_path / "whole"), Storage.open(tmp_path / "cut")
    fit_local(config, whole, device="cpu")
    for number in (2, 3):
        with monkeypatch.context() as patch:
            kill_after_checkpoint(patch, number)
            with pytest.raises(Killed):
                fit_local(config, cut, device="cpu")
    fit_local(config, cut, device="cpu")
    steps = read_steps(whole, 1, 99)
    assert sorted(steps) == list(range(1, 13))
    assert read_steps(cut, 1, 99) == steps


@pytest.mark.parametrize("size", [2, 3])
def test_another_number_of_workers_computes_the_same_steps(dataset: str, tmp_path: Path, size: int) -> None:
    config = make_config(dataset, epochs=3, **RANDOM)
    one = losses_of(config, Storage.open(tmp_path / "one"), 1)
    many = losses_of(config, Storage.open(tmp_path / "many"), size)
    assert [trace for _, trace in many.values()] == [trace for _, trace in one.values()]
    for step, (loss, _) in one.items():
        assert many[step][0] == pytest.approx(loss, rel=1e-8)


@pytest.mark.slow
def test_200_steps_resumed_with_other_numbers_of_workers_agree(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_SYNC_S", 0.0)  # a checkpoint after every step
    config = make_config(dataset, epochs=50, checkpoint_every_s=0, **RANDOM)
    one = losses_of(config, Storage.open(tmp_path / "one"), 1)
    run = Storage.open(tmp_path / "many")
    for size, number in ((2, 37), (3, 61), (1, 20)):
        with monkeypatch.context() as patch:
            kill_after_checkpoint(patch, number)
            with pytest.raises(Killed):
                in_threads(size, lambda world: fit(config, run, world=world, device=torch.device("cpu")))
    many = losses_of(config, run, 2)
    assert sorted(many) == list(range(1, 201))
    assert [trace for _, trace in many.values()] == [trace for _, trace in one.values()]
    worst = max(abs(many[step][0] / loss - 1) for step, (loss, _) in one.items())
    print(f"\n200 steps, resumed with 2, 3, 1 and 2 workers: largest relative difference of a loss {worst:.1e}")
    assert worst <= 1e-8


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_window_is_done_again_across_an_epoch_without_touching_the_run(
    dataset: str, tmp_path: Path, size: int
) -> None:
    run = Storage.open(tmp_path / "run")
    config = make_config(dataset, epochs=3, ema_decay=0.5, **RANDOM)
    fit_local(config, run, device="cpu")
    before = {file.path: run.read(file.path) for file in run.list()}
    step = committed_steps(run)[0]
    figures = in_threads(
        size, lambda world: replay(config, run, step=step, steps=6, world=world, device=torch.device("cpu"))
    )
    recorded = read_steps(run, step // 4 + 1, step + 6)
    assert {file.path: run.read(file.path) for file in run.list()} == before
    for found in figures:
        assert sorted(found) == list(range(step + 1, min(step + 6, 12) + 1))
        for number, (loss, trace) in found.items():
            assert trace == recorded[number][1]
            assert loss == (recorded[number][0] if size == 1 else pytest.approx(recorded[number][0], rel=1e-10))


def test_the_certificate_says_that_a_run_can_be_had_again(dataset: str, tmp_path: Path) -> None:
    run = trained(make_config(dataset, epochs=3), Storage.open(tmp_path / "run"))
    result = replays.run(ReplayConfig(run=run.uri, window=5))
    assert result.figures["largest_loss_difference"] == "0, equal to the bit"
    (path,) = [file.path for file in run.list("replay")]
    certificate = json.loads(run.read(path))
    assert certificate["agrees"] is True
    assert certificate["last_step"] - certificate["first_step"] + 1 <= 5


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("traces", "0" * 16, "other rows"), ("losses", 9.0, "differ by")],
    ids=["ids", "losses"],
)
def test_a_run_that_cannot_be_had_again_is_told(
    dataset: str, tmp_path: Path, field: str, value: Any, words: str
) -> None:
    run = trained(make_config(dataset, epochs=2), Storage.open(tmp_path / "run"))
    log = json.loads(run.read("steps/epoch-000002.json"))
    log[field][1] = value
    run.put("steps/epoch-000002.json", json.dumps(log).encode())
    with pytest.raises(DataError, match=words):
        replays.run(ReplayConfig(run=run.uri))
    (path,) = [file.path for file in run.list("replay")]
    assert json.loads(run.read(path))["agrees"] is False


def test_a_window_ends_where_the_run_went_back(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, at_step=10, times=1)
    monkeypatch.setattr(run_writer, "prune_checkpoints", lambda *_, **__: None)
    run = trained(make_config(dataset, epochs=4, divergence={"rollbacks": 1}), Storage.open(tmp_path / "run"))
    monkeypatch.undo()
    assert committed_steps(run) == [4, 8, 12, 16]
    for seed in range(4):
        result = replays.run(ReplayConfig(run=run.uri, window=12, seed=seed))
        assert result.figures["largest_loss_difference"] == "0, equal to the bit"


def in_the_drivers_place(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let a lone worker do in this process what Ray's would; return the numbers of workers that Ray is asked for."""
    asked: list[Any] = []

    def make_trainer(workers: Any, _: Any, settings: dict[str, Any], __: str) -> SimpleNamespace:
        asked.append(workers)
        return SimpleNamespace(fit=lambda: SimpleNamespace(return_value=train_worker(settings)))

    monkeypatch.setattr(group, "_make_trainer", make_trainer)
    monkeypatch.setattr(replays, "ray_session", lambda _: nullcontext(RaySession(4.0, 0.0, 1, (4.0,))))
    return asked


def test_exactly_as_many_workers_as_asked_for_and_the_certificate_says_who_ran(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(dataset, epochs=3, num_workers=4, min_workers=1, use_gpu="auto")
    run = trained(config, Storage.open(tmp_path / "run"))
    asked = in_the_drivers_place(monkeypatch)
    monkeypatch.setattr(group, "choose_gpu", lambda *_: False)
    result = replays.run(ReplayConfig(run=run.uri, workers=3, window=4))
    assert asked == [(3, 3)]
    (path,) = [file.path for file in run.list("replay")]
    certificate = json.loads(run.read(path))
    assert (certificate["workers"], certificate["workers_then"]) == (1, 4)  # one ran here, whatever was asked for
    assert (certificate["device"], certificate["precision"]) == ("cpu", "float32")
    assert path.endswith("-workers-1.json")
    assert result.figures["workers"] == "1 (the run had up to 4)"


def test_of_a_damaged_checkpoint_another_is_taken(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_writer, "prune_checkpoints", lambda *_, **__: None)
    run = trained(make_config(dataset, epochs=3), Storage.open(tmp_path / "run"))
    run.put("checkpoints/step-00000004/weights.safetensors", b"cut")
    for seed in range(4):
        result = replays.run(ReplayConfig(run=run.uri, window=2, seed=seed))
        assert result.figures["steps"] == "9 to 10, from the checkpoint of step 8"
    assert "weights.safetensors has 3 bytes" in caplog.text
    assert "another window is looked for" in caplog.text
    run.put("steps/epoch-000003.json", b"")
    with pytest.raises(DataError, match=r"damaged|cannot be used"):
        replays.run(ReplayConfig(run=run.uri, window=2))


def test_what_cannot_be_replayed_is_refused(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished training run"):
        replays.run(ReplayConfig(run=str(tmp_path)))
    run = trained(make_config(dataset, epochs=1), Storage.open(tmp_path / "run"))
    assert load_checkpoint(run, committed_steps(run)[-1]).step == 4
    with pytest.raises(InputError, match="kept no checkpoint that recorded steps follow"):
        replays.run(ReplayConfig(run=run.uri))
