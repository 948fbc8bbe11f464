"""The driver's side of a run, without Ray: following, ending, packing, drawing."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines.errors import ConfigError, DataError, InputError, RegistryError
from pipelines.package.load import load_package
from pipelines.ray_runtime import RaySession
from pipelines.storage import Storage
from pipelines.train import group, stage
from pipelines.train.checkpoint import load_checkpoint
from pipelines.train.group import choose_gpu
from pipelines.train.loop import fit_local
from pipelines.train.model import write_model
from pipelines.train.outcome import FitOutcome, read_outcome
from pipelines.train.owner import claim_run, note_path
from pipelines.train.pictures import draw_pictures
from pipelines.train.records import EpochRecord, write_record
from pipelines.train.state import read_kept_weights
from pipelines.train.worker import FAILURE, STOP, describe_failure, read_failure, rebuild_failure, train_worker
from tests.unit.train.notes import make_record
from tests.unit.train.tiny import make_config, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def trained(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, FitOutcome]:
    run = Storage.open(tmp_path_factory.mktemp("run"))
    return run, fit_local(make_config(dataset, epochs=3, ema_decay=0.8), run, device="cpu")


def settings_of(dataset: str, run: Storage, **changes: Any) -> dict[str, Any]:
    config = make_config(dataset, **changes)
    return {"config": config.model_dump_json(), "run": run.uri, "threads": 1, "use_gpu": False}


def test_a_lone_worker_returns_an_error_that_would_only_come_again(dataset: str, tmp_path: Path) -> None:
    run = Storage.open(tmp_path)
    assert train_worker(settings_of(dataset, run)) == {}
    settings = settings_of(dataset, run.child("other"), model={"depths": [1], "num_classes": 9})
    failure = train_worker(settings)["failure"]
    assert failure["type"] == "ConfigError"
    assert failure["what"] == "model.num_classes is 9: the data has 3 classes"


def test_a_noted_error_ends_the_next_attempt_at_once(dataset: str, tmp_path: Path) -> None:
    run = Storage.open(tmp_path)
    error = DataError("a row cannot be decoded", where="row 7", mend="verify")
    run.put(FAILURE, json.dumps(describe_failure(error)).encode())
    assert train_worker(settings_of(dataset, run)) == {"failure": describe_failure(error)}
    assert not run.exists("records/epoch-000001.json")
    noted = read_failure(run, "")
    assert noted is not None
    assert str(rebuild_failure(noted)) == "DataError: a row cannot be decoded\n  where: row 7\n  mend:  verify"


def test_what_another_command_noted_ends_nothing(dataset: str, tmp_path: Path) -> None:
    run = Storage.open(tmp_path)
    run.put(note_path(FAILURE, "older"), json.dumps(describe_failure(DataError("a row cannot be decoded"))).encode())
    run.put(note_path(STOP, "older"), b"{}")
    owner = claim_run(run)
    assert train_worker(settings_of(dataset, run) | {"owner": owner}) == {}
    last = read_outcome(make_config(dataset), run)
    assert last is not None
    assert not last.stopped


def test_errors_survive_the_trip_from_the_worker() -> None:
    for error in (ConfigError("a"), InputError("b", mend="c"), DataError("d")):
        rebuilt = rebuild_failure(describe_failure(error))
        assert (type(rebuilt), str(rebuilt)) == (type(error), str(error))
    assert isinstance(rebuild_failure({"type": "Unheard", "what": "x", "where": "", "mend": ""}), DataError)


def session(num_gpus: float, num_nodes: int = 2) -> RaySession:
    return RaySession(4.0, num_gpus, num_nodes)


def test_gpus_are_taken_where_there_are_enough(dataset: str) -> None:
    auto, demanded = (
        make_config(dataset, use_gpu="auto", num_workers=2),
        make_config(dataset, use_gpu=True, num_workers=2),
    )
    assert choose_gpu(auto, session(2))
    assert not choose_gpu(auto, session(1))
    assert not choose_gpu(make_config(dataset, use_gpu=False), session(2))
    assert choose_gpu(demanded, session(2))
    with pytest.raises(ConfigError, match="use_gpu is true for 2 workers, and the cluster has 1 GPUs"):
        choose_gpu(demanded, session(1))


class Trainer:
    """Stands in for Ray's: it ends once `ended` is set."""

    def __init__(self, ended: threading.Event) -> None:
        self._ended = ended

    def fit(self) -> SimpleNamespace:
        self._ended.wait(10)
        return SimpleNamespace(return_value={})


def test_what_is_done_while_workers_come_up_is_done_before_any_record_is_handed_on(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, ended, told = Storage.open(tmp_path / "run"), threading.Event(), list[str]()
    write_record(run, make_record(1))

    def open_log() -> None:
        time.sleep(0.1)  # several looks at the run, each of which would hand the record on
        told.append("opened")

    def on_epoch(record: EpochRecord) -> bool:
        told.append(f"epoch {record.epoch}")
        ended.set()
        return True

    monkeypatch.setattr(group, "_POLL_S", 0.01)
    monkeypatch.setattr(group, "_make_trainer", lambda *_: Trainer(ended))
    machine = RaySession(2.0, 0.0, 1, (2.0,))
    outcome = group.train_in_workers(make_config(dataset), run, machine, on_epoch=on_epoch, meanwhile=open_log)
    assert outcome == group.Ended({}, was_told=False)
    assert told == ["opened", "epoch 1"]

    def refuse() -> None:
        raise RegistryError("the store refuses")

    ended.clear()
    with pytest.raises(RegistryError, match="the store refuses"):
        group.train_in_workers(make_config(dataset), run, machine, on_epoch=on_epoch, meanwhile=refuse)
    ended.set()


def test_a_gpu_that_torch_cannot_use_is_said_aloud(
    dataset: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(group.os.path, "exists", lambda path: path == "/proc/driver/nvidia/version")
    assert not choose_gpu(make_config(dataset, use_gpu="auto"), session(1, num_nodes=1))
    assert "an NVIDIA driver is loaded, but torch" in caplog.text
    assert "training runs on CPUs" in caplog.text


def test_the_package_holds_the_averaged_weights_of_the_best_epoch(
    dataset: str, trained: tuple[Storage, FitOutcome]
) -> None:
    run, outcome = trained
    description = write_model(make_config(dataset), run, outcome.best, train_key="k")
    package = load_package(f"{run.uri}/model")
    expected = read_kept_weights(load_checkpoint(run, outcome.best.step))
    for name, value in package.network.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert description["metrics"]["val_top1"] == outcome.best.val_score
    assert description["metrics"]["epoch"] == outcome.best.epoch
    assert description["dataset"]["version"] == 1
    assert description["classes"] == ["a", "b", "c"]


def test_a_damaged_best_checkpoint_is_replaced_by_the_last_and_said(
    dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Storage.open(tmp_path)
    outcome = fit_local(make_config(dataset, epochs=3), run, device="cpu")
    first = next(record for record in outcome.records if record.epoch != 3)
    best = type(outcome.best)(first.epoch, first.step, 1.0, 0.0)
    run.delete(f"checkpoints/step-{best.step:08d}/weights.safetensors")
    description = write_model(make_config(dataset), run, best)
    assert description["metrics"]["epoch"] == 3
    assert "the last epoch is kept in place of the best" in caplog.text
    for file in run.list("checkpoints"):
        run.delete(file.path)
    with pytest.raises(DataError, match=r"no checkpoint of .* is whole"):
        write_model(make_config(dataset), run, best)


def test_pictures_are_drawn_from_records_and_the_first_batch(dataset: str, trained: tuple[Storage, FitOutcome]) -> None:
    run, outcome = trained
    pictures = draw_pictures(make_config(dataset), run, outcome.records)
    assert set(pictures) == {"figures/curves.png", "figures/mosaic.jpg"}
    for path, data in pictures.items():
        assert run.read(path) == data
        width, height = Image.open(io.BytesIO(data)).size
        assert min(width, height) > 100


def test_workers_that_share_a_batch_unevenly_are_warned_of(dataset: str, caplog: pytest.LogCaptureFixture) -> None:
    from pipelines.train.plan import plan
    from pipelines.train.stage import _refuse_early

    for workers in (1, 2, 48):
        config = make_config(dataset, global_batch_size=64, num_workers=workers)
        _refuse_early(config, plan(config))
    (said,) = caplog.messages
    assert said == (
        "48 workers share the 64 lanes of a batch unevenly and are busy 67% of the time;"
        " a number that divides 64 would keep all of them busy"
    )


def test_a_network_that_does_not_fit_is_refused_before_anything_is_written(dataset: str, tmp_path: Path) -> None:
    config = make_config(dataset, model={"depth": 18}, out=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"model\.depth is 18"):
        stage.run(config)
    assert not (tmp_path / "run").exists()
