"""A finished evaluation stands whatever becomes of MLflow."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipelines.errors import RegistryError
from pipelines.evaluate import record
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.stage import run
from pipelines.tracking import TrackingConfig
from tests.unit.evaluate.small_world import make_dataset, make_training, read_json


def test_a_fault_of_the_store_is_told_and_the_evaluation_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RegistryError("the MLflow store cannot be used: disk I/O error")

    make_dataset(tmp_path / "data")
    make_training(tmp_path / "train", mlflow_run_id="r1")
    monkeypatch.setattr(record.RunLog, "open", refuse)
    config = EvaluateConfig(
        model=str(tmp_path / "train"),
        dataset=str(tmp_path / "data"),
        out=str(tmp_path / "out"),
        tracking=TrackingConfig(uri=f"sqlite:///{tmp_path}/m.db"),
    )
    with caplog.at_level(logging.WARNING):
        assert not run(config).skipped
    assert [line.getMessage() for line in caplog.records] == [
        "the figures were not added to the model's MLflow run: the MLflow store cannot be used: disk I/O error"
    ]
    assert read_json(tmp_path / "out" / "_catalog.json")["mlflow_run_id"] == ""
    assert run(config).skipped
