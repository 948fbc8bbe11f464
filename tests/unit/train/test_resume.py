"""`resnet train --resume RUN`: the run's folder is enough to go on, and says what it cannot become."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines.cli.train import command
from pipelines.errors import ConfigError, InputError, Unfinished
from pipelines.storage import Storage
from pipelines.tracking import TrackingConfig
from pipelines.train import stage
from pipelines.train.checkpoint import load_latest
from pipelines.train.config import TrainConfig
from pipelines.train.resume import kept_config, kept_tracking, resumed_config
from pipelines.train.state import WEIGHTS
from tests.unit.train.starts import write_start
from tests.unit.train.tiny import make_config, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def quiet(dataset: str, out: Path, **fields: Any) -> TrainConfig:
    return make_config(dataset, out=str(out), local=True, tracking={"enabled": False}, **fields)


def test_a_run_goes_on_by_its_folder_alone(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quiet(dataset, tmp_path / "whole", epochs=3)
    stage.run(whole)
    monkeypatch.chdir(Path(dataset).parent)
    cut = quiet(Path(dataset).name, tmp_path / "cut", epochs=3, max_hours=1e-9)
    with pytest.raises(Unfinished, match=f"resnet train --resume {tmp_path / 'cut'}$"):
        stage.run(cut)
    monkeypatch.chdir(tmp_path)

    # In a process's place: the command as it is typed, elsewhere, without the recipe.
    done = CliRunner().invoke(command, ["--resume", "cut", "max_hours=0", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["figures"]["epochs"] == 3
    first, second = load_latest(Storage.open(whole.out)), load_latest(Storage.open(cut.out))
    assert first is not None
    assert second is not None
    assert first.files[WEIGHTS] == second.files[WEIGHTS]
    again = CliRunner().invoke(command, ["--resume", "cut", "max_hours=0", "--json"], catch_exceptions=False)
    assert json.loads(again.stdout)["skipped"]


def begun(config: TrainConfig) -> TrainConfig:
    """Return the config of a run that was begun and cut at once."""
    config = config.model_copy(update={"max_hours": 1e-9})
    with pytest.raises(Unfinished):
        stage.run(config)
    return config


@pytest.mark.parametrize("is_moved", [False, True], ids=["elsewhere", "deleted"])
def test_a_run_that_started_from_weights_has_its_own_copy_of_them(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_moved: bool
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    write_start(Path("start"), classes=("c", "b", "a"))
    begun(quiet(dataset, tmp_path / "run", epochs=2, init={"from": "start"}, model={}))
    if is_moved:
        shutil.rmtree("start")
    monkeypatch.chdir(tmp_path / "away")
    done = CliRunner().invoke(command, ["--resume", "../run", "max_hours=0", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    catalog = json.loads((tmp_path / "run/_catalog.json").read_text())
    assert catalog["init"]["ref"] == catalog["config"]["init"]["from"] == "start"
    with pytest.raises(ConfigError, match="would be another run"):
        resumed_config(str(tmp_path / "run"), ("init.freeze_until=stage1",))
    (tmp_path / "other").mkdir()
    write_start(tmp_path / "other", classes=("a", "b", "c"))
    with pytest.raises(ConfigError, match="would be another run"):
        resumed_config(str(tmp_path / "run"), (f"init.from={tmp_path / 'other'}",))


def test_what_may_change_changes_and_the_recipe_does_not(dataset: str, tmp_path: Path) -> None:
    config = begun(quiet(dataset, tmp_path / "run", epochs=2))
    resumed = resumed_config(config.out, ("num_workers=2", "local=false"))
    assert (resumed.num_workers, resumed.local, resumed.epochs) == (2, False, 2)
    assert not resumed.tracking.enabled
    with pytest.raises(ConfigError, match=r"with epochs=5 it would be another run"):
        resumed_config(config.out, ("epochs=5",))
    with pytest.raises(ConfigError, match="epoch"):
        resumed_config(config.out, ("epoch=5",))


def test_a_run_of_a_release_that_kept_no_config_wants_its_command(dataset: str, tmp_path: Path) -> None:
    config = begun(quiet(dataset, tmp_path / "run", epochs=2))
    path = tmp_path / "run/run.json"
    standing = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in standing.items() if name != "config"}))
    with pytest.raises(InputError, match="begun by an earlier release"):
        resumed_config(config.out)
    path.write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        resumed_config(config.out)


def test_no_password_is_kept(dataset: str, tmp_path: Path) -> None:
    config = make_config(dataset, tracking={"uri": "https://me:hunter22@mlflow.example.org"}, ray={"address": "auto"})
    kept = kept_config(config)
    assert "hunter22" not in json.dumps(kept)
    assert kept["tracking"]["uri"] == ""
    assert kept["ray"]["address"] == "auto"


@pytest.mark.parametrize("secret", ["http://me:pa'ss@host:5000", "https://t0ken:@host", "https://t0ken@host"])
def test_no_login_of_the_shell_is_kept(dataset: str, monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    kept = kept_config(make_config(dataset, tracking={"experiment": "birds", "enabled": True}))
    assert (kept["tracking"]["uri"], kept["tracking"]["experiment"]) == ("", "birds")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--resume RUN"),
        (["--resume", "nothing"], "holds no training"),
        (["--resume", "nothing", "default"], "default is given as well"),
        (["--resume", "nothing", "--dataset", "d"], "--dataset d is given as well"),
        (["--resume", "nothing", "--max-hours", "0"], "max-hours"),
    ],
)
def test_what_cannot_be_gone_on_with(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, words)
    assert result.exit_code != 0
    assert said in result.output + str(result.exception)
    assert not any(tmp_path.iterdir())


def test_a_run_that_is_gone_on_with_from_elsewhere_is_recorded_where_it_was(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(dataset, out=str(tmp_path / "run"), tracking={"experiment": "birds", "enabled": True})
    monkeypatch.chdir(tmp_path)
    standing = {"stage": "train", "config": kept_config(config)}
    monkeypatch.chdir(Path(dataset).parent)
    there = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    kept = kept_tracking(standing, TrackingConfig(uri=""))
    assert (kept.uri, kept.experiment, kept.enabled) == (there, "birds", True)
    assert kept_tracking(standing, TrackingConfig(uri="http://other:5000")).uri == "http://other:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://of-this-shell:5000")
    assert kept_tracking(standing, TrackingConfig(uri="")).uri == ""  # which is this shell's
    assert kept_tracking(standing, TrackingConfig(uri="http://other:5000")).uri == "http://other:5000"
