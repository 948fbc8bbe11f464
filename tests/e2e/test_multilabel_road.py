"""Images with any number of labels, by the commands alone: ingest, train, evaluate, register, score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.cli.main import run_command
from tests.factories import encode
from tests.unit.train.labelled_stripes import labels_of, make_striped

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


def done(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Run a command that must succeed; return what it printed as JSON."""
    code = run_command([*words, "--json"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return dict(json.loads(shown.out))


def write_photos(folder: Path) -> None:
    """Write 400 pictures of stripes, and the table that lists the labels of each."""
    table = []
    for number in range(400):
        path = folder / "photos" / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(make_striped(labels_of(number), number, size=16), "PNG"))
        table.append(json.dumps({"key": path.name, "labels": labels_of(number)}))
    (folder / "labels.jsonl").write_text("\n".join(table))


@pytest.mark.usefixtures("ray_local")
def test_from_pictures_to_scored_labels(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace}/mlflow.db")
    write_photos(workspace)
    ingested = done(capsys, "ingest", "photos", "labels=labels.jsonl", "duplicates.near=report", "--out", "data")
    assert ingested["next_commands"][-1].endswith("loss.name=bce")
    quick = ["epochs=6", "global_batch_size=32", "use_gpu=false", "model.depths=[1,1]", "model.channels=[8,16]"]
    assert run_command(["train", "data", *quick]) == 2
    assert "mend:  loss.name=bce" in capsys.readouterr().err
    trained = done(capsys, "train", "data", *quick, "loss.name=bce", "augment.flip=false", "--out", "run")
    assert trained["figures"]["val_map"] > 0.9
    assert "val_top1" not in trained["figures"]
    records = json.loads((workspace / "run" / "_catalog.json").read_text())["records"]
    assert trained["figures"]["val_map"] == max(record["val_map"] for record in records)

    measured = done(capsys, "evaluate", "run", "data", "--out", "measured")
    assert measured["figures"]["map"] > 0.9
    assert "mean average precision" in (workspace / "measured" / "mistakes.html").read_text()
    registered = done(capsys, "models", "register", "run", "--name", "stripes", "--evaluation", "measured")
    assert registered["figures"]["test_map"] == measured["figures"]["map"]
    assert registered["figures"]["champion"] == "version 1"
    assert "has a mean average precision of" in registered["figures"]["reason"]
    assert run_command(["models", "show", "stripes"]) == 0
    assert "mAP" in capsys.readouterr().out

    scored = done(capsys, "score", "photos", "--model", "models:/stripes@champion", "--out", "scored")
    assert scored["stage"] == "score"
    rows = [row for path in (workspace / "scored").rglob("part-*.parquet") for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 400
    right = 0
    for row in rows:
        of_class = dict(zip(row["names"], row["probabilities"], strict=True))
        assert {name for name, value in of_class.items() if value >= 0.5} == set(row["labels"])
        right += set(row["labels"]) == set(labels_of(int(row["key"][:3])))
    assert right > 300


@pytest.mark.usefixtures("ray_local")
def test_a_whole_run_reports_what_makes_sense(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(workspace)
    (workspace / "road.yaml").write_text(
        "name: stripes\nsource: photos\n"
        "ingest: {labels: labels.jsonl, duplicates: {near: report}}\n"
        "train:\n"
        "  model: {depths: [1, 1], channels: [8, 16]}\n"
        "  epochs: 4\n  global_batch_size: 32\n  use_gpu: false\n"
        "  loss: {name: bce}\n  augment: {flip: false}\n"
        "evaluate: {}\nregister: {}\n"
    )
    made = done(capsys, "run", "road.yaml")
    assert made["figures"]["test_map"] > 0.8
    page = (workspace / "runs" / "stripes" / "report.html").read_text()
    for words in ("whose mean average precision is", "mean average precision on test images", "Calibration"):
        assert words in page
    assert "Confusion" not in page
