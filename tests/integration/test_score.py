"""`score` on a real local Ray: actors against a plain loop, the registry's package, a member that kills its process."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.ray_runtime import RayConfig
from pipelines.score import stage
from pipelines.score.config import ScoreConfig
from pipelines.storage import Storage
from tests.factories import make_png

pytestmark = pytest.mark.integration

CLASSES = tuple("abcdefg")
MEMBERS = {f"{'abc'[i % 3]}/{i:03d}.png": make_png(i, width=20 + i % 5, height=24) for i in range(30)}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a package with random weights: scoring does not care whether it was trained."""
    from pipelines.image.preprocess import Preprocess
    from pipelines.image.resize import Geometry
    from pipelines.package.describe import PackageDescription, write_package
    from resnet_models.resnet import build
    from resnet_models.spec import ModelSpec

    spec = ModelSpec(depth=8, block="basic", width=0.25, num_classes=len(CLASSES)).for_images(image_size_px=32)
    preprocess = Preprocess(Geometry(40, "fit"), Geometry(32, "crop"))
    folder = tmp_path_factory.mktemp("package")
    description = PackageDescription(spec, CLASSES, preprocess.to_json(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    write_package(Storage.open(folder), "", build(spec, seed=5).state_dict(), description)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("archives") / "photos"
    for key, data in {**MEMBERS, "x/text.jpg": b"not a picture"}.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(data)
    return root


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the folder into several units."""
    monkeypatch.setattr("pipelines.sources.units.MIN_UNIT_BYTES", 6_000)


def config(photos: Path, package: Path, out: Path) -> ScoreConfig:
    return ScoreConfig(
        archive=str(photos), model=str(package), out=str(out), top_k=len(CLASSES), ray=RayConfig(num_cpus=2)
    )


def looped(photos: Path, package: Path, out: Path) -> stage.ScoreResult:
    from pipelines.score.model import load_model
    from pipelines.score.unit import score_unit

    def loop(job, units):
        return (score_unit(unit, job, load_model(job.package)) for unit in units)

    return stage.run(config(photos, package, out), loop)


def fingerprint(out: Path) -> str:
    return str(json.loads((out / "_versions" / "v000001.json").read_text())["fingerprint"])


def test_two_actors_write_what_a_plain_loop_writes(photos, package, tmp_path, ray_local):
    result = stage.run(config(photos, package, tmp_path / "ray"))
    assert result.figures["members"] == len(MEMBERS) + 1
    assert result.figures["unscored"] == 1
    looped(photos, package, tmp_path / "loop")
    assert fingerprint(tmp_path / "ray") == fingerprint(tmp_path / "loop")


def test_the_registrys_package_gives_the_same_probabilities(photos, package, tmp_path, monkeypatch):
    """The bundled file, loaded by MLflow with pickle forbidden, on the same bytes: both float32, to 1e-4."""
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    import mlflow.pyfunc
    import pandas as pd

    from pipelines.package.bundle import artifacts, signature, write_bundle

    looped(photos, package, tmp_path / "out")
    mlflow.pyfunc.save_model(
        tmp_path / "model",
        python_model=str(write_bundle(tmp_path / "network.py")),
        artifacts=artifacts(package),
        signature=signature(),
        pip_requirements=["mlflow"],
    )
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    found = [
        row for path in sorted((tmp_path / "out").rglob("part-*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    scored = [row for row in found if row["names"]]
    assert len(scored) == len(MEMBERS)
    answers = model.predict(pd.DataFrame({"image": [MEMBERS[row["key"]] for row in scored]}), params={"top_k": 7})
    for row, names, probabilities in zip(scored, answers["names"], answers["probabilities"], strict=True):
        ours = dict(zip(row["names"], row["probabilities"], strict=True))
        theirs = dict(zip(names, probabilities, strict=True))
        np.testing.assert_allclose([ours[name] for name in CLASSES], [theirs[name] for name in CLASSES], atol=1e-4)


def test_a_member_that_kills_or_hangs_its_process_is_named(monkeypatch, ray_local):
    from pipelines.score import actor
    from pipelines.score.model import PackageRef
    from pipelines.score.unit import FailedAlone

    def play(package, data):
        if data == b"kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if data == b"hang":
            time.sleep(600)
        return ("EMPTY", "nothing there") if not data else ("", np.ones(3, np.float32))

    monkeypatch.setattr(actor, "_predict_here", play)
    monkeypatch.setattr(actor, "_ALONE_TIMEOUT_S", 20.0)
    package = PackageRef("nowhere", "m", "1", "f" * 64, "float32", "cpu")
    assert actor.predict_alone(package, b"fine").tolist() == [1, 1, 1]
    for data, reason in ((b"kill", "KILLED_WORKER"), (b"", "EMPTY")):
        with pytest.raises(FailedAlone) as failed:
            actor.predict_alone(package, data)
        assert failed.value.reason == reason
    monkeypatch.setattr(actor, "_ALONE_TIMEOUT_S", 1.0)
    with pytest.raises(FailedAlone) as failed:
        actor.predict_alone(package, b"hang")
    assert failed.value.reason == "TIMEOUT"
    assert failed.value.message == "no answer within 1 s"
