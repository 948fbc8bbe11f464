"""`resnet models`: addresses, and next commands that ask the same store."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.registry import listing
from pipelines.registry.audit import make_record
from pipelines.registry.listing import ModelRow
from pipelines.registry.promote import Decision

STORE = "http://mlflow:5000"
ROW = ModelRow("digits", {"champion": "2"}, 2, "2", True, 0.0)


@pytest.fixture(autouse=True)
def quiet_registry(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    """Answer as a registry with one model would."""
    record = make_record(alias="champion", action="promote", version="1", before="2", moves=True, reason="by hand")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(listing, "list_models", lambda tracking: [ROW])
    monkeypatch.setattr(listing, "show_model", lambda name, tracking: ROW)
    monkeypatch.setattr(listing, "promote_version", lambda *args, **kwargs: Decision(True, "1", "2", "by hand", record))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["list"], ["resnet models show digits"]),
        (["list", "--tracking", STORE], [f"resnet models show digits --tracking {STORE}"]),
        (
            ["show", "digits", "--tracking", STORE],
            [
                f"resnet score ARCHIVE --model models:/digits/2 tracking.uri={STORE}",
                f"resnet models open digits 2 --tracking {STORE}",
            ],
        ),
        (["promote", "digits", "1", "--tracking", STORE], [f"resnet models show digits --tracking {STORE}"]),
    ],
)
def test_next_commands_ask_the_same_store(
    capsys: pytest.CaptureFixture[str], command: list[str], expected: list[str]
) -> None:
    assert main.run_command(["models", *command]) == 0
    assert [line.strip() for line in capsys.readouterr().out.partition("next:\n")[2].splitlines()] == expected


def test_the_page_of_a_database_is_where_resnet_ui_serves_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_command(["models", "open", "digits", "v2", "--tracking", "sqlite:///m.db"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "http://127.0.0.1:5000/#/models/digits/versions/2\n"
    assert shown.err.endswith("next:\n  resnet ui uri=sqlite:///m.db\n")


def test_the_page_of_a_server_is_shown_without_its_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter22@mlflow.example")
    assert main.run_command(["models", "open", "digits"]) == 0
    assert capsys.readouterr().out == "https://mlflow.example/#/models/digits\n"


def test_an_address_that_is_no_store_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_command(["models", "open", "digits", "--tracking", "mlruns"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ConfigError: tracking.uri is mlruns; MLflow no longer keeps runs in plain folders\n")
