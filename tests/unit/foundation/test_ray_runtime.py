"""What workers on other machines are given of the driver's environment."""

from __future__ import annotations

import os

import pytest

from pipelines import ray_runtime


@pytest.mark.parametrize(
    "name", ["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING", "GOOGLE_SERVICE_ACCOUNT_KEY"]
)
def test_keys_travel_in_the_hook_and_not_in_the_open(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "photos")
    monkeypatch.setenv(name, "correct-horse")
    passed = ray_runtime.worker_environment()
    assert passed["AZURE_STORAGE_ACCOUNT_NAME"] == "photos"
    assert name not in passed
    hook = ray_runtime._make_secrets_hook()["worker_process_setup_hook"]
    monkeypatch.delenv(name)
    hook()
    assert os.environ[name] == "correct-horse"
