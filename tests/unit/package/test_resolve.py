"""What is said when the registry cannot be asked; MLflow's client is not the real one."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import NoReturn

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from pipelines.errors import RegistryError
from pipelines.package import resolve
from pipelines.tracking import TrackingConfig

STORE = "https://me:hunter22@mlflow.example"


def refuse(*args: object, **kwargs: object) -> NoReturn:
    raise MlflowException(f"API request to {STORE}/api failed")


@pytest.fixture(autouse=True)
def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every call to the registry fail with the store's address in the message."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", STORE)
    monkeypatch.setattr(resolve, "open_client", lambda uri: SimpleNamespace(get_model_version=refuse))
    monkeypatch.setattr(resolve, "process_wide", lambda uri: contextlib.nullcontext())
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", refuse)


def test_the_password_of_the_store_is_not_in_the_error() -> None:
    with pytest.raises(RegistryError) as caught:
        resolve.resolve_ref("models:/net/1")
    assert str(caught.value) == (
        "RegistryError: the registry cannot be asked for 'net': "
        "API request to https://[redacted]@mlflow.example/api failed\n"
        "  where: https://[redacted]@mlflow.example"
    )


def test_the_password_of_the_store_is_not_in_the_error_of_a_file() -> None:
    with pytest.raises(RegistryError) as caught:
        resolve.read_artifact("models:/net/1", "model.json", TrackingConfig())
    assert "cannot fetch model.json of models:/net/1: API request to https://[redacted]@" in str(caught.value)
    assert "hunter22" not in str(caught.value)
