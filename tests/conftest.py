"""Shared by all tests: a quiet environment, one local Ray and one MLflow store for the whole run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a machine with other work on it is no fault
settings.load_profile("untimed")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the address of one SQLite store that all integration tests share."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Keep one embedded Ray of two CPUs for the whole test run."""
    from pipelines.ray_runtime import RayConfig, ray_session

    with ray_session(RayConfig(num_cpus=2)):
        yield


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Have torch take sums in the order of a worker of one thread, for the same bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run a test in an empty folder, so that default outputs land there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
