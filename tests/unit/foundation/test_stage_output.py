"""Keys, run identities and catalogs of stage outputs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from pipelines.config.strict import StrictModel, runtime_field
from pipelines.errors import ClusterError, DataError, InputError
from pipelines.stage_output import (
    CATALOG,
    StageResult,
    commands_with_model,
    open_run,
    publish_catalog,
    read_catalog,
    stage_key,
)
from pipelines.storage import Storage


class Config(StrictModel):
    size: int = 1
    workers: int = runtime_field(1)


def test_key_depends_on_output_fields_inputs_and_version_only() -> None:
    key = stage_key("x", Config(), {"dataset": "f1"}, 1)
    assert len(key) == 32
    assert key == stage_key("x", Config(workers=9), {"dataset": "f1"}, 1)
    assert key == "21c768275645f244723d17c5f20abed8"
    others = [
        stage_key("y", Config(), {"dataset": "f1"}, 1),
        stage_key("x", Config(size=2), {"dataset": "f1"}, 1),
        stage_key("x", Config(), {"dataset": "f2"}, 1),
        stage_key("x", Config(), {"dataset": "f1"}, 2),
    ]
    assert len({key, *others}) == 5


def test_run_is_found_again_and_another_is_refused(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    first = open_run(storage, "train", "k1", {"mlflow_run_id": "a"})
    assert open_run(storage, "train", "k1", {"mlflow_run_id": "b"}) == first
    with pytest.raises(InputError, match=r"holds another train \(key k1\), not this train \(key k2\)"):
        open_run(storage, "train", "k2", {})


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds something else \(for example holiday.jpg\)"):
        open_run(Storage.open(tmp_path), "train", "k", {})


def test_catalog_is_published_once(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    assert read_catalog(storage) is None
    published = publish_catalog(storage, {"stage": "train", "key": "k", "n": 1})
    assert publish_catalog(storage, {"stage": "train", "key": "k", "n": 2}) == published == read_catalog(storage)
    with pytest.raises(InputError, match="published by another run"):
        publish_catalog(storage, {"stage": "train", "key": "other"})


def test_damaged_and_newer_catalogs_are_refused(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    storage.put(CATALOG, b"{")
    with pytest.raises(DataError, match="is not JSON"):
        read_catalog(storage)
    storage.put(CATALOG, b'{"format_version": 99}')
    with pytest.raises(DataError, match="format version 99, newer"):
        read_catalog(storage)


def test_result_shows_itself_escaped() -> None:
    result = StageResult("train", "runs/<x>", "k", skipped=True, figures={"top1": 0.5})
    assert "<td>runs/&lt;x&gt;</td>" in result._repr_html_()
    assert "already done" in result._repr_html_()
    assert result.to_json()["figures"] == {"top1": 0.5}


def test_errors_cross_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ClusterError("no", where="here", mend="do")))
    assert (type(error), error.what, error.where, error.mend, error.exit_code) == (ClusterError, "no", "here", "do", 4)


def test_next_commands_can_be_pasted_and_ask_the_store_that_was_named() -> None:
    catalog = {"dataset": {"uri": "data/my birds@v1"}, "model": {"path": "model"}}
    evaluate, score = commands_with_model("runs/my birds", catalog, "http://mlflow:5000")
    words = ["resnet", "evaluate", "runs/my birds", "data/my birds@v1", "tracking.uri=http://mlflow:5000"]
    assert shlex.split(evaluate) == words
    assert shlex.split(score)[4:6] == ["runs/my birds/model", "--out"]
    assert "tracking" not in commands_with_model("out", catalog, "")[0]
