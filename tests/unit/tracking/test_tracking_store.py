"""Which MLflow store is used, and which addresses are refused; MLflow itself is not imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import ConfigError, RegistryError
from pipelines.tracking import TrackingConfig, refuse_local_store, resolve_uri


@pytest.fixture(autouse=True)
def _no_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_default_is_an_absolute_database_under_runs(tmp_path: Path) -> None:
    assert resolve_uri(TrackingConfig()) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert (tmp_path / "runs").is_dir()


def test_config_beats_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000/")
    assert resolve_uri(TrackingConfig()) == "http://mlflow:5000"
    assert resolve_uri(TrackingConfig(uri="sqlite:///deep/er/m.db")) == f"sqlite:///{tmp_path}/deep/er/m.db"
    assert (tmp_path / "deep" / "er").is_dir()


@pytest.mark.parametrize("uri", ["mlruns", "file:///data/mlruns", "/data/mlruns"])
def test_plain_folders_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_uri(TrackingConfig(uri=uri))
    assert str(caught.value) == (
        f"ConfigError: tracking.uri is {uri}; MLflow no longer keeps runs in plain folders\n"
        "  where: tracking.uri\n"
        "  mend:  give a server (http://host:5000) or a database file (sqlite:///runs/mlflow.db)"
    )


def test_database_in_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri is sqlite:///:memory:, a database without a file"):
        resolve_uri(TrackingConfig(uri="sqlite:///:memory:"))


def test_password_in_the_config_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_uri(TrackingConfig(uri="https://me:hunter22@mlflow.example"))
    assert "tracking.uri holds a password: https://[redacted]@mlflow.example" in str(caught.value)
    assert "hunter22" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_a_fault_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    uri = f"sqlite:///{tmp_path}/runs/deep/mlflow.db"
    with pytest.raises(RegistryError) as caught:
        resolve_uri(TrackingConfig(uri=uri))
    assert str(caught.value) == (
        f"RegistryError: the MLflow store cannot be used: [Errno 20] Not a directory: '{tmp_path}/runs/deep'\n"
        f"  where: {uri}\n"
        "  mend:  check that the store is there and answers, or give another tracking.uri"
    )


def test_unpickling_is_forbidden_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "")
    resolve_uri(TrackingConfig(uri="http://mlflow:5000"))
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert os.environ["MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING"] == "false"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == ""  # a stated choice stands


def test_database_file_is_refused_across_nodes() -> None:
    refuse_local_store("sqlite:////x/m.db", 1)
    refuse_local_store("http://mlflow:5000", 4)
    with pytest.raises(ConfigError, match="is a file on one machine, and this job spans 2 nodes"):
        refuse_local_store("sqlite:////x/m.db", 2)


def test_module_imports_without_mlflow() -> None:
    code = "import sys, pipelines.tracking; sys.exit(any(m in sys.modules for m in ('mlflow', 'torch', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
