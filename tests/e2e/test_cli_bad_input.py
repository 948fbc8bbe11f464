"""Bad input on the command line: a clear message and the right exit code, or a quarantined row with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines.cli.main import run_command
from tests.factories import make_jpeg, make_png, make_zip, write_class_folder

pytestmark = pytest.mark.e2e


def outcome(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = run_command(list(args))
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, shown.out, shown.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("ingest", "nowhere"), "source nowhere does not exist"),
        (("ingest", "empty"), "no images in empty; it is empty"),
        (("ingest", "cut.zip"), "cut.zip is damaged: the zip has no directory at its end: it is cut"),
        (("ingest", "labels.csv"), "labels.csv is a table (.csv), and a place that holds the images"),
        (("ingest", "photos", "split.tst=0.1"), "unknown key split.tst"),
        (("ingest", "photos", "--out", "taken"), "holds something else (for example thesis.txt)"),
        (("ingest", "photos", "--config", "phtos"), "ingest has no preset 'phtos'"),
        (("train", "nowhere"), "nowhere is no preset of train"),
        (("train", "default"), "dataset is missing"),
        (("train", "default", "--dataset", "photos", "epochs=-1"), "epochs is -1; it must be greater than"),
        (("evaluate", "nowhere", "photos"), "nowhere is no package: it holds no model.json"),
        (("evaluate", "nowhere", "photos", "device=gpu"), 'device is "gpu"; it must be text that fits the pattern'),
        (("score", "photos.zip", "--model", "nowhere"), "nowhere is no package: it holds no model.json"),
        (("run", "demo", "train.epoch=3"), "unknown key train.epoch"),
        (("run", "demo", "--only", "trian"), "--only trian: this run has no such stage"),
        (("run", "demo", "--only", "train"), "--only train: demo-data is not done"),
        (("run", "demo", "--from", "score", "--only", "evaluate"), "--from score and --only evaluate name two stages"),
        (("run", "demo", "train.out=elsewhere"), "train.out is 'elsewhere', but a run connects its stages itself"),
        (("run", "nowhere.yaml"), "config file nowhere.yaml does not exist"),
        (("data", "show", "photos"), "there is no dataset at"),
        (("config", "validate", "train", "epochs=no"), "epochs"),
        (("submit", "train", "default", "--address", "ftp://x"), "is not the address of a job server"),
    ],
)
def test_a_mistake_is_refused_with_exit_code_2(
    workspace: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str
) -> None:
    write_class_folder(workspace / "photos", {"cat": 3, "dog": 3}, size=8)
    (workspace / "empty").mkdir()
    (workspace / "taken").mkdir()
    (workspace / "taken" / "thesis.txt").write_text("mine")
    archive = make_zip([(f"cat/{i}.png", make_png(i, 8, 8)) for i in range(20)])
    (workspace / "photos.zip").write_bytes(archive)
    (workspace / "cut.zip").write_bytes(archive[: len(archive) // 2])
    (workspace / "labels.csv").write_text("path,label\n1.jpg,cat\n")
    code, _, error = outcome(capsys, *args)
    assert code == 2, error
    assert message in error
    assert (workspace / "taken" / "thesis.txt").read_text() == "mine"


@pytest.mark.integration
def test_damaged_images_are_kept_apart_and_the_rest_is_whole(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ray_local: None
) -> None:
    photos = write_class_folder(workspace / "photos", {"cat": 12, "dog": 12}, size=16)
    (photos / "cat" / "empty.jpg").write_bytes(b"")
    (photos / "cat" / "text.jpg").write_bytes(b"this is no picture\n" * 9)
    (photos / "dog" / "cut.jpg").write_bytes(make_jpeg(5)[:300])
    (photos / "bird").mkdir()
    (photos / "bird" / "one.png").write_bytes(make_png(77, 16, 16))
    code, out, error = outcome(capsys, "ingest", "photos", "--out", "d", "max_quarantined_fraction=0.5", "--json")
    assert code == 0, error
    assert json.loads(out)["figures"]["images"] == 25
    assert "1 class has one image only (bird): it can be learned from but not measured" in error
    code, out, _ = outcome(capsys, "data", "show", "d", "--json")
    facts = json.loads(out)
    reasons = {row["key"]: row["reason"] for row in facts["quarantine"]}
    assert reasons == {"cat/empty.jpg": "EMPTY", "cat/text.jpg": "NOT_IMAGE", "dog/cut.jpg": "TRUNCATED"}
    assert facts["splits"]["train"]["labels"]["bird"] == 1

    code, out, _ = outcome(capsys, "data", "verify", "d")
    assert (code, out.splitlines()[0].endswith("whole, 25 rows")) == (0, True)
    code, out, _ = outcome(capsys, "data", "files", "d", "--split", "train")
    paths = out.splitlines()
    assert code == 0
    assert all(Path(path).suffix == ".parquet" and Path(path).is_file() for path in paths)

    data = bytearray(Path(paths[0]).read_bytes())
    data[len(data) // 2] ^= 1
    Path(paths[0]).write_bytes(data)
    code, _, error = outcome(capsys, "data", "verify", "d")
    assert code == 3
    assert "is damaged: 1 problem, first data/" in error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, error = outcome(capsys, "train", "d", "epochs=1", "use_gpu=true", "tracking.enabled=false")
    assert code == 2
    assert "use_gpu is true and torch can use no GPU here" in error
