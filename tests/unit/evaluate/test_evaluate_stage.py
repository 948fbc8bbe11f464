"""The evaluation stage: what it refuses, what it leaves, and when it is skipped."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import uuid
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.dataset import leaks
from pipelines.errors import ConfigError, InputError
from pipelines.evaluate.plan import plan
from pipelines.evaluate.stage import EvaluateResult, run
from pipelines.stage_output import mlflow_run_of
from pipelines.storage import Storage
from tests.unit.evaluate.small_world import config, make_dataset, make_training, make_world, read_json


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def done(world: Path) -> tuple[Path, EvaluateResult]:
    out = world / "evaluation"
    return out, run(config(world, out=str(out)))


def test_catalog_files_and_figures_agree(world: Path, done: tuple[Path, EvaluateResult]) -> None:
    out, result = done
    catalog = read_json(out / "_catalog.json")
    assert catalog["format"] == "resnet-pipelines/evaluate"
    assert catalog["key"] == result.key
    assert catalog["dataset"]["split"] == "test"
    assert catalog["dataset"]["split_fingerprint"] == result.split_fingerprint
    assert catalog["metrics"]["rows"] == 27
    assert result.figures["top1"] == catalog["metrics"]["top1"]
    # the tiny world's pictures all have one perceptual hash: nothing is left without them, and nothing is known then
    assert result.figures["leaked_rows"] == 27
    assert catalog["metrics"]["top1_without_leaks_low"] == 0
    assert catalog["metrics"]["top1_without_leaks_high"] == 1
    assert "27 of these images stand in this dataset's train split too, or" in unescape(
        (out / "mistakes.html").read_text()
    )
    assert np.sum(catalog["confusion"]) == 27
    assert np.trace(catalog["confusion"]) == catalog["metrics"]["correct_rows"]
    assert sum(each["count"] for each in catalog["reliability"]) == 27
    wrong = 27 - catalog["metrics"]["correct_rows"]
    assert len(catalog["mistakes"]) == min(wrong, 60)
    table = pq.read_table(io.BytesIO((out / "predictions.parquet").read_bytes()), page_checksum_verification=True)
    assert table.num_rows == 27
    right = [row["label"] == row["predicted"] for row in table.to_pylist()]
    assert sum(right) == catalog["metrics"]["correct_rows"]
    assert all(row["names"][0] == row["predicted"] for row in table.to_pylist())
    first = {row["image_id"]: row for row in table.to_pylist()}
    for mistake in catalog["mistakes"]:
        assert first[mistake["image_id"]]["predicted"] == mistake["predicted"] != mistake["label"]
    for name in ("figures/confusion.png", "figures/reliability.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"


def test_where_the_hash_tells_nothing_apart_it_is_said(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leaks, "MAX_ACCIDENTS", -1.0)  # of no pictures are there fewer accidents
    result = run(config(world, out=str(tmp_path / "out")))
    catalog = read_json(tmp_path / "out/_catalog.json")
    assert catalog["metrics"]["leaked_rows"] == result.figures["leaked_rows"] == 18  # with the same bytes
    (told,) = catalog["warnings"]
    assert told.startswith("whether images look like one in this dataset's train split cannot be judged")
    assert f"evaluate: {told}" in caplog.messages
    assert f"{told[1:]}." in unescape((tmp_path / "out/mistakes.html").read_text())


def test_page_is_self_contained_and_shows_every_mistake(done: tuple[Path, EvaluateResult]) -> None:
    out, _ = done
    page = (out / "mistakes.html").read_text()
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("% sure") == len(read_json(out / "_catalog.json")["mistakes"])


def test_second_run_is_skipped_and_changes_nothing(world: Path, done: tuple[Path, EvaluateResult]) -> None:
    out, first = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    second = run(config(world, out=str(out), batch_size=3))
    assert second.skipped
    assert (second.figures, second.key) == (first.figures, first.key)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_another_evaluation_may_not_use_the_folder(world: Path, done: tuple[Path, EvaluateResult]) -> None:
    out, _ = done
    with pytest.raises(InputError, match="holds another evaluate"):
        run(config(world, out=str(out), split="val"))


def test_key_follows_content_not_places(world: Path, tmp_path: Path) -> None:
    key = plan(config(world)).key
    shutil.copytree(world / "train", tmp_path / "moved")
    shutil.copytree(world / "data", tmp_path / "data")
    assert plan(config(world, model=str(tmp_path / "moved"), dataset=f"{tmp_path / 'data'}@v1")).key == key
    assert plan(config(world, batch_size=7, device="cpu")).key == key
    assert plan(config(world, split="val")).key != key
    assert plan(config(world, num_bins=10)).key != key
    make_training(tmp_path / "other", seed=5)
    assert plan(config(world, model=str(tmp_path / "other"))).key != key


def test_planning_loads_nothing_heavy(world: Path) -> None:
    code = (
        "import sys\nfrom pipelines.evaluate.config import EvaluateConfig\nfrom pipelines.evaluate.plan import plan\n"
        "from pipelines.evaluate import stage\n"
        f"plan(EvaluateConfig(model={str(world / 'train')!r}, dataset={str(world / 'data')!r}))\n"
        "heavy = {'torch', 'mlflow', 'ray', 'pandas', 'pyarrow', 'cv2', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_split_that_is_not_there(world: Path) -> None:
    with pytest.raises(InputError) as caught:
        plan(config(world, split="tset"))
    assert str(caught.value) == (
        f"InputError: {world}/data@v1 has no rows in split 'tset'; it has test, train, val\n"
        "  mend:  name one of them: --split test"
    )


def test_a_dataset_that_is_not_there(world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no dataset at .*nothing: no catalog is published there"):
        plan(config(world, dataset=str(tmp_path / "nothing")))


def test_a_model_for_other_classes(world: Path, tmp_path: Path) -> None:
    make_training(tmp_path / "birds", classes=("crow", "duck", "emu", "finch"))
    with pytest.raises(InputError) as caught:
        plan(config(world, model=str(tmp_path / "birds")))
    assert str(caught.value) == (
        f"InputError: the model knows crow, duck, emu and 1 more and {world}/data@v1 has a, b, c: no class in common\n"
        "  mend:  give the dataset that the model was made for, or one with the same class names"
    )


def test_a_split_without_labels(world: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path / "bare", labelled=False)
    with pytest.raises(InputError, match=r"no row of split 'test' in .* has a label"):
        run(config(world, dataset=str(tmp_path / "bare"), out=str(tmp_path / "out")))
    assert not (tmp_path / "out" / "_catalog.json").exists()


def test_run_of_a_model_is_found_in_train_and_tune_catalogs() -> None:
    folder = Storage.open(f"memory://{uuid.uuid4().hex}/run")
    sweep = {"stage": "tune", "mlflow_run_id": "s1", "best": {"trial": "0002", "mlflow_run_id": "t2"}}
    away = {"stage": "tune", "mlflow_run_id": "", "best": {"trial": "0002", "mlflow_run_id": ""}}
    assert mlflow_run_of(folder, {"stage": "train", "mlflow_run_id": "r1"}) == "r1"
    assert mlflow_run_of(folder, sweep) == "t2"
    assert mlflow_run_of(folder, away) == mlflow_run_of(folder, {"stage": "train"}) == ""
    folder.put("run.json", json.dumps({"mlflow_run_id": "late", "best_mlflow_run_id": "late-trial"}).encode())
    assert mlflow_run_of(folder, {"stage": "train"}) == "late"
    assert mlflow_run_of(folder, {"stage": "train", "mlflow_run_id": "r1"}) == "late"  # told another store since
    assert mlflow_run_of(folder, away) == "late-trial"


def test_a_device_that_is_not_there_is_refused_before_any_work(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device is cuda and torch can use no GPU here") as refused:
        run(config(world, out=str(tmp_path / "out"), device="cuda"))
    assert refused.value.exit_code == 2
    assert not (tmp_path / "out").exists()
