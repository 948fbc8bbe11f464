"""`resnet ui`: what it shows of the store's address and what it starts."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from pipelines import tracking
from pipelines.cli import main, ui

STORE = "postgresql://me:hunter22@db:5432/mlflow"


def test_the_password_of_a_database_is_not_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", STORE)
    assert main.run_command(["ui", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("store: postgresql://[redacted]@db:5432/mlflow\nui:    http://127.0.0.1:")


def test_the_password_of_a_server_is_not_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter22@mlflow.example")
    assert main.run_command(["ui"]) == 0
    assert capsys.readouterr().out == "the store is a server; its UI is at https://mlflow.example\n"


def test_the_store_is_made_first_and_named_in_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, Any, Any]] = []

    class Child:
        pid = 0

        def __init__(self, arguments: list[str], env: dict[str, str], start_new_session: bool) -> None:
            assert start_new_session  # its children are ended with it, as a group
            events.append(("start", arguments, env))

        def wait(self) -> int:
            return 0

    def is_gone(group: int, number: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(tracking, "open_client", lambda uri: events.append(("open", uri, None)))
    monkeypatch.setattr(subprocess, "Popen", Child)
    monkeypatch.setattr(os, "killpg", is_gone)
    assert ui.serve(STORE, "http://127.0.0.1:5001") == 0
    (opened, store, _), (_, arguments, environment) = events
    assert (opened, store) == ("open", STORE)
    assert not [argument for argument in arguments if "hunter22" in argument]
    assert environment["MLFLOW_BACKEND_STORE_URI"] == STORE
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
