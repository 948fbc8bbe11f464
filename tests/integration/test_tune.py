"""Sweeps on a real Ray: trials side by side, stopped early, dying, failing, resumed, in MLflow as a tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from pipelines.errors import DataError, InputError
from pipelines.package.describe import parse_description
from pipelines.plots.params import describe_params
from pipelines.stage_output import mlflow_run_of, read_catalog
from pipelines.storage import Storage
from pipelines.tracking import TrackingConfig, open_client
from pipelines.train.checkpoint import committed_steps
from pipelines.train.samples import SampleReader
from pipelines.tune import stage
from pipelines.tune.config import TuneConfig
from pipelines.tune.deliver import deliver
from pipelines.tune.stage import TuneResult
from pipelines.tune.sweep import Sweep
from tests.unit.train.tiny import make_config, write_dataset

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

SPACE = {"model.width": {"choice": [0.5, 1.0]}, "optimizer.lr": {"loguniform": [0.02, 0.3]}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"))


def make_sweep(dataset: str, out: Path | str, mlflow_uri: str, **changes: Any) -> TuneConfig:
    training = make_config(dataset, epochs=changes.pop("epochs", 3), **changes.pop("train", {}))
    values = {
        "train": training.model_dump(mode="json"),
        "space": SPACE,
        "num_trials": 3,
        "out": str(out),
        "tracking": {"uri": mlflow_uri, "experiment": "tune-tests"},
    }
    return TuneConfig.model_validate_json(json.dumps(values | changes))


def journal(out: Path) -> dict[str, dict[str, Any]]:
    return {path.stem[-4:]: json.loads(path.read_text()) for path in sorted((out / "journal").iterdir())}


def told_models(mlflow_uri: str, run_id: str) -> list[int]:
    """Return the steps of a trial's models in MLflow; they are READY and ranked from 1."""
    client = open_client(mlflow_uri)
    experiment = client.get_run(run_id).info.experiment_id
    found = [each for each in client.search_logged_models([experiment]) if each.source_run_id == run_id]
    assert {str(model.status) for model in found} <= {"READY"}
    assert sorted(int(model.tags["resnet.rank"]) for model in found) == list(range(1, len(found) + 1))
    return sorted(int(model.params["step"]) for model in found)


def assert_told_as_a_training(out: str, mlflow_uri: str) -> None:
    """MLflow holds of each whole trial what it holds of a training: every point once, and models of what is kept."""
    store, client = Storage.open(out), open_client(mlflow_uri)
    entries = journal(Path(out))
    catalog, started_s = read_catalog(store), json.loads(store.read("run.json"))["started_s"]
    assert catalog is not None
    for trial in catalog["trials"]:
        folder, run = store.child(f"trials/{trial['id']}"), client.get_run(entries[trial["id"]]["mlflow_run_id"])
        steps = {name: 12 for name in ("step_loss", "step_lr", "step_images_per_s")}
        for name, last in {"train_loss": 3, "val_top1": 3, **steps}.items():
            points = client.get_metric_history(run.info.run_id, name)
            assert [point.step for point in points] == list(range(1, last + 1)), name
        taken = [point.step for point in SampleReader(folder, started_s).read_new()]
        told = client.get_metric_history(run.info.run_id, "system/worker_0/cpu_cores_used")
        assert sorted(point.step for point in told) == sorted(taken) != []
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.source.name"] == "resnet tune"
        assert run.data.tags["resnet.version"] == json.loads(folder.read("environment.json"))["code"]["version"]
        assert run.data.params["global_batch_size"] == "20"
        assert run.data.tags["sampled"] == describe_params(trial["params"])
        assert not [name for name in run.data.tags if name.startswith("resumed.")]
        is_best = trial["id"] == catalog["best"]["trial"]
        kept = told_models(mlflow_uri, run.info.run_id)
        assert kept == committed_steps(folder)
        assert bool(kept) == is_best
        assert len(run.outputs.model_outputs if run.outputs else ()) == len(kept)


@pytest.fixture(scope="module")
def swept(dataset: str, mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[TuneConfig, TuneResult]:
    """A sweep of whole trials; `before` beside it is its folder before the losers' checkpoints went."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    drop, settle = stage._drop_losers, Sweep.settle_models

    def look_and_settle(sweep: Sweep, winner: str) -> None:
        for entry in sweep.entries.values():  # while a sweep goes on, each of its trials has models
            assert told_models(mlflow_uri, entry.mlflow_run_id) == committed_steps(sweep.run_of(entry.trial))
        settle(sweep, winner)

    def copy_and_drop(*arguments: Any) -> None:
        shutil.copytree(out, out.with_name("before"))
        drop(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "_drop_losers", copy_and_drop)
        patch.setattr(Sweep, "settle_models", look_and_settle)
        config = make_sweep(dataset, out, mlflow_uri, scheduler="none")
        return config, stage.run(config)


def test_a_sweep_leaves_a_leaderboard_and_the_best_model(swept: tuple[TuneConfig, TuneResult]) -> None:
    config, result = swept
    store = Storage.open(config.out)
    catalog = read_catalog(store)
    assert catalog is not None
    assert [trial["id"] for trial in catalog["trials"]] == ["0001", "0002", "0003"]
    assert {trial["status"] for trial in catalog["trials"]} == {"finished"}
    figures = [trial["val_top1"] for trial in catalog["trials"]]
    assert catalog["best"]["val_top1"] == max(figures) == result.figures["val_top1"]
    best = catalog["trials"][int(catalog["best"]["trial"]) - 1]
    assert best["params"] == catalog["best"]["params"]
    description = parse_description(store.read(f"{catalog['model']['path']}/model.json"), "model.json")
    assert description["spec"]["width"] == best["params"]["model.width"]
    assert description["metrics"]["val_top1"] == catalog["best"]["val_top1"]
    assert description["train_key"] == result.key
    for picture in ("leaderboard", "values", "curves"):
        assert store.read(f"figures/{picture}.png").startswith(b"\x89PNG")
    for trial in catalog["trials"]:
        assert [epoch for epoch, _ in trial["curve"]] == list(range(1, trial["epochs"] + 1))
        has_checkpoints = bool(store.list(f"trials/{trial['id']}/checkpoints"))
        assert has_checkpoints == (trial["id"] == catalog["best"]["trial"])  # losers would fill a disk


def test_mlflow_holds_one_parent_and_a_child_for_each_trial(
    swept: tuple[TuneConfig, TuneResult], mlflow_uri: str
) -> None:
    config, result = swept
    catalog = read_catalog(Storage.open(config.out))
    assert catalog is not None
    client = open_client(mlflow_uri)
    parent = client.get_run(str(result.figures["mlflow_run_id"]))
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best_val_top1"] == result.figures["val_top1"]
    assert parent.data.tags["best_trial"] == catalog["best"]["trial"]
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", max_results=50
    )
    assert {run.info.run_id for run in children} == {trial["mlflow_run_id"] for trial in catalog["trials"]}
    for trial in catalog["trials"]:
        run = client.get_run(trial["mlflow_run_id"])
        assert run.info.status == "FINISHED"
        assert run.data.tags["status"] == trial["status"]
        assert run.data.params["optimizer.lr"] == str(trial["params"]["optimizer.lr"])
        points = client.get_metric_history(run.info.run_id, "val_top1")
        assert [[point.step, point.value] for point in points] == trial["curve"]
    assert_told_as_a_training(config.out, mlflow_uri)


def test_the_same_sweep_again_is_skipped_without_heavy_imports(swept: tuple[TuneConfig, TuneResult]) -> None:
    config, result = swept
    code = """
import sys
from pipelines.tune.config import TuneConfig
from pipelines.tune import stage
result = stage.run(TuneConfig.model_validate_json(sys.stdin.read()))
print(result.skipped, result.key, [name for name in ("torch", "ray", "mlflow", "pyarrow") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=config.model_dump_json(),
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert done.stdout.split() == ["True", result.key, "[]"], done.stderr


def test_checkpoints_that_a_killed_sweep_left_go_when_it_is_run_again(swept: tuple[TuneConfig, TuneResult]) -> None:
    config, _ = swept
    store = Storage.open(config.out)
    catalog = read_catalog(store)
    assert catalog is not None
    left = [f"trials/{trial['id']}/checkpoints/step-00000004/COMMIT" for trial in catalog["trials"]]
    for path in (*left, stage.LOSERS):
        store.put(path, b"{}")
    assert stage.run(config).skipped
    assert [store.exists(path) for path in left] == [
        trial["id"] == catalog["best"]["trial"] for trial in catalog["trials"]
    ]


def test_mlflow_that_was_away_is_told_of_a_whole_sweep_later(
    swept: tuple[TuneConfig, TuneResult], mlflow_uri: str, tmp_path: Path
) -> None:
    """Twice, to the same end; runs end when the work did."""
    out, client = tmp_path / "out", open_client(mlflow_uri)
    shutil.copytree(swept[0].out, out)
    for path in (out / "run.json", out / "_catalog.json", *(out / "journal").iterdir()):
        path.write_text(re.sub(r'("mlflow_run_id": )"\w+"', r'\1""', path.read_text()))
    late = TrackingConfig(uri=mlflow_uri, experiment="late-sweep")
    seen = []
    for epochs in (9, 0):
        told = deliver(str(out), late)
        assert told.figures["epochs_sent"] == epochs
        sweep = client.get_run(str(told.figures["mlflow_run_id"]))
        trials = client.search_runs([sweep.info.experiment_id], f"tags.`mlflow.parentRunId` = '{sweep.info.run_id}'")
        assert {run.info.status for run in (sweep, *trials)} == {"FINISHED"}
        seen.append({run.info.run_id: (run.info.start_time, run.info.end_time) for run in (sweep, *trials)})
    assert seen[0] == seen[1]
    assert len(seen[0]) == 4
    swept_ms = (out / "_catalog.json").stat().st_ctime * 1000  # a copy of it: later than the sweep
    assert all(began_ms < ended_ms < swept_ms for began_ms, ended_ms in seen[0].values())
    assert_told_as_a_training(str(out), mlflow_uri)
    store = Storage.open(out)
    catalog = read_catalog(store)
    assert catalog is not None
    assert mlflow_run_of(store, catalog) == journal(out)[catalog["best"]["trial"]]["mlflow_run_id"] != ""
    assert sweep.data.tags["best_trial"] == catalog["best"]["trial"]
    assert not [name for name in sweep.data.tags if name.startswith("resumed.")]
    with pytest.raises(InputError, match="holds no finished sweep"):
        deliver(str(tmp_path), late)


def test_a_folder_of_another_sweep_is_refused(swept: tuple[TuneConfig, TuneResult]) -> None:
    config, _ = swept
    with pytest.raises(InputError, match="holds another tune"):
        stage.run(config.model_copy(update={"seed": 5}))


def test_a_sweep_goes_on_from_what_stands(swept: tuple[TuneConfig, TuneResult], mlflow_uri: str) -> None:
    """Ended trials keep their files; a running one goes on; MLflow shows every epoch once."""
    config, first = swept
    out = Path(config.out)
    shutil.rmtree(out)
    shutil.copytree(out.with_name("before"), out)
    before = journal(out)
    (out / "_catalog.json").unlink()
    entry = before["0002"] | {"status": "running", "reason": "", "epochs": 0, "val_top1": None, "best_epoch": 0}
    (out / "journal" / "trial-0002.json").write_text(json.dumps(entry))
    for folder in ("records", "steps"):
        (out / "trials" / "0002" / folder / "epoch-000003.json").unlink()  # as if killed after the second epoch
    for path in (out / "trials" / "0002" / "checkpoints" / "step-00000012").iterdir():
        path.unlink()
    untouched = {path: path.stat().st_mtime_ns for path in (out / "trials").rglob("epoch-*.json")}

    second = stage.run(config)

    assert second.figures["mlflow_run_id"] == first.figures["mlflow_run_id"]
    assert second.figures["val_top1"] == first.figures["val_top1"]
    assert journal(out) == before
    assert untouched == {path: path.stat().st_mtime_ns for path in untouched}
    assert_told_as_a_training(config.out, mlflow_uri)


def test_a_trial_that_fails_is_marked_and_the_sweep_ends(dataset: str, mlflow_uri: str, tmp_path: Path) -> None:
    space = {"optimizer.lr": {"choice": [0.1, 1e12]}}  # the loss of the second becomes inf or nan
    config = make_sweep(dataset, tmp_path / "out", mlflow_uri, space=space, num_trials=2, epochs=2)
    result = stage.run(config)
    entries = journal(tmp_path / "out")
    by_rate = {entry["params"]["optimizer.lr"]: entry for entry in entries.values()}
    assert by_rate[0.1]["status"] == "finished"
    assert by_rate[1e12]["status"] == "failed"
    assert "the loss became" in by_rate[1e12]["reason"]
    assert result.figures["failed"] == 1
    assert open_client(mlflow_uri).get_run(by_rate[1e12]["mlflow_run_id"]).info.status == "FAILED"


def test_a_sweep_in_which_all_fail_says_why_and_can_be_run_again(dataset: str, mlflow_uri: str, tmp_path: Path) -> None:
    space = {"optimizer.lr": {"choice": [1e12, 1e13]}}
    config = make_sweep(dataset, tmp_path / "out", mlflow_uri, space=space, num_trials=2, epochs=2)
    with pytest.raises(DataError) as caught:
        stage.run(config)
    assert caught.value.what.startswith("all 2 trials failed; the first: the loss became")
    assert "failed trials are then tried again" in caught.value.mend
    assert not (tmp_path / "out" / "_catalog.json").exists()
    assert {entry["status"] for entry in journal(tmp_path / "out").values()} == {"failed"}


def test_a_process_that_dies_is_replaced_and_its_trial_goes_on(
    dataset: str, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial's process is killed from inside at epoch 2, once; the trial still reaches its last epoch."""
    import pipelines.tune.sweep as sweep_module

    killed: list[int] = []
    follow = sweep_module.Sweep.follow

    def follow_and_kill(self: Any, trial: str) -> None:
        follow(self, trial)
        if not killed and len(self.records[trial]) == 2:
            pids = [actor_pid for actor_pid in _trial_pids() if actor_pid not in killed]
            killed.extend(pids)
            for pid in pids:
                os.kill(pid, 9)

    monkeypatch.setattr(sweep_module.Sweep, "follow", follow_and_kill)
    config = make_sweep(dataset, tmp_path / "out", mlflow_uri, scheduler="none", num_trials=2, epochs=4)
    stage.run(config)
    assert killed
    assert [(entry["status"], entry["epochs"]) for entry in journal(tmp_path / "out").values()] == [("finished", 4)] * 2


def _trial_pids() -> list[int]:
    mine = psutil.Process().children(recursive=True)
    return [process.pid for process in mine if "ResourceTrainable" in " ".join(process.cmdline())]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trials_of_two_workers_run_as_ray_train_runs(dataset: str, mlflow_uri: str, tmp_path: Path) -> None:
    """On two CPUs: one trial at a time, the second ended early with its workers, nothing held afterwards."""
    space = {"optimizer.lr": {"choice": [0.1, 1e-6]}}
    config = make_sweep(
        dataset, tmp_path / "out", mlflow_uri, workers_per_trial=2, num_trials=2, space=space, seed=3, epochs=20
    )
    stage.run(config)
    first, second = journal(tmp_path / "out").values()
    assert first["params"]["optimizer.lr"] == 0.1  # the seed decides which comes first
    assert (first["status"], first["epochs"]) == ("finished", 20)
    assert second["status"] == "stopped"
    assert 1 <= second["epochs"] < 20  # its workers are told in the middle of a later epoch
    assert second["reason"].startswith("behind at epoch 1 with ")
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 2.0:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)
