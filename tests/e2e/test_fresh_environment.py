"""A registered model where resnet-pipelines never was: an environment made from the package's own requirements file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.e2e.resnet_process import ROOT, resnet_process

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]

TOP_K = 5
TOLERANCE = 1e-4
STRANGER = """
import importlib.metadata, importlib.util, json, sys, zipfile
for name in ("pipelines", "resnet_models", "cluster", "ray"):
    assert importlib.util.find_spec(name) is None, name
assert "resnet-pipelines" not in {found.metadata["Name"] for found in importlib.metadata.distributions()}
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
with zipfile.ZipFile(sys.argv[2]) as archive:
    keys = archive.namelist()
    answers = model.predict({"image": [archive.read(key) for key in keys]}, params={"top_k": int(sys.argv[3])})
rows = zip(keys, answers["names"], answers["probabilities"], answers["reason"])
texts = lambda cell: list(cell) if isinstance(cell, (list, tuple)) or hasattr(cell, "tolist") else []
json.dump(
    [[key, texts(names), list(map(float, texts(chances))), reason if isinstance(reason, str) else ""]
     for key, names, chances, reason in rows],
    sys.stdout,
)
"""


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the demo's road with short trainings; return its folder."""
    folder = tmp_path_factory.mktemp("road")
    shorter = ["train.epochs=4", "tune.num_trials=1", "tune.train.epochs=2", "tune.grace_epochs=1"]
    uri = f"sqlite:///{folder}/runs/mlflow.db"
    with resnet_process(folder, "run", "demo", *shorter, MLFLOW_TRACKING_URI=uri) as process:
        process.finish(600.0)
    return folder


@pytest.fixture(scope="module")
def model(road: Path) -> Path:
    """Return the registered version as the registry hands it out."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{road}/runs/mlflow.db")
    return Path(mlflow.artifacts.download_artifacts("models:/digits/1", dst_path=str(road)))


@pytest.fixture(scope="module")
def python(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an environment from the package's requirements and nothing else."""
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--requirement", model / "requirements.txt"]
    subprocess.run(command, check=True, cwd=folder, timeout=900)
    return python


def scored(road: Path) -> dict[str, dict[str, Any]]:
    summary = json.loads((road / "runs/demo/run.json").read_text())
    out = next(road / entry["out"] for entry in summary["stages"] if entry["stage"] == "score")
    return {row["key"]: row for path in out.glob("data/**/part-*.parquet") for row in pq.read_table(path).to_pylist()}


def test_it_answers_there_what_resnet_score_answers_here(road: Path, model: Path, python: Path) -> None:
    (archive,) = road.glob("runs/demo/**/*.zip")
    done = subprocess.run(
        [python, "-I", "-c", STRANGER, model, archive, str(TOP_K)],
        capture_output=True, text=True, cwd=python.parent, timeout=300,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers, expected = json.loads(done.stdout), scored(road)
    with zipfile.ZipFile(archive) as opened:
        assert sorted(expected) == sorted(opened.namelist())
    assert len(answers) == len(expected)
    worst = 0.0
    for key, names, chances, reason in answers:
        row = expected[key]
        assert bool(reason) == bool(row["reason"]), key
        if not reason:
            answer = dict(zip(names, chances, strict=True))
            for name, chance in zip(row["names"], row["probabilities"], strict=True):
                # what is not among the first k there is at most as likely as the last of them
                worst = max(worst, abs(answer.get(name, chances[-1]) - chance))
    assert worst <= TOLERANCE
    print(f"\n{len(answers)} members, largest difference of a probability {worst:.1e}")


def test_its_requirements_name_neither_us_nor_an_address(model: Path) -> None:
    lines = (model / "requirements.txt").read_text().split()
    assert all("==" in line for line in lines)
    assert not [line for line in lines if "resnet" in line or "/" in line or line.startswith("ray")]
    assert sys.version_info[:2] == tuple(map(int, (model / "python_env.yaml").read_text().split()[1].split(".")[:2]))
    assert not [path for path in model.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    assert str(ROOT) not in (model / "MLmodel").read_text()
