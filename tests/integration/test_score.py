"""`score` on a real local Ray: every source, agreement with the registry's package, resume, refusals."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import DataError, InputError
from pipelines.ray_runtime import RayConfig
from pipelines.score.config import ScoreConfig
from pipelines.storage import Storage
from tests.factories import make_jpeg, make_png

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_local")]

CLASSES = tuple("abcdefg")
NUM_GOOD = 40
BAD = {"x/empty.png": b"", "x/text.jpg": b"not a picture", "x/cut.png": make_png(3)[:200]}


def members() -> dict[str, bytes]:
    good = {f"{'abc'[i % 3]}/{i:03d}.png": make_png(i, width=20 + i % 5, height=24) for i in range(NUM_GOOD // 2)}
    good |= {f"d/{i:03d}.jpg": make_jpeg(100 + i, width=40, height=30 + i % 3) for i in range(NUM_GOOD // 2)}
    return {**good, **BAD}


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
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("archives")
    for key, data in members().items():
        path = root / "photos" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        for key, data in members().items():
            archive.writestr(key, data)
    with tarfile.open(root / "photos.tar", "w") as archive:
        archive.add(root / "photos", arcname=".")
    return {"folder": root / "photos", "zip": root / "photos.zip", "tar": root / "photos.tar"}


def config(archive: Path, package: Path, out: Path, **changes: object) -> ScoreConfig:
    values: dict[str, object] = {"num_actors": 2, "ray": RayConfig(num_cpus=2), **changes}
    return ScoreConfig(archive=str(archive), model=str(package), out=str(out), **values)


def run(*args: object, **changes: object):
    from pipelines.score import stage

    return stage.run(config(*args, **changes))


def read(out: Path) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    from pipelines.dataset.shards import read_shard_list
    from pipelines.score.catalog import read_predictions

    store = Storage.open(out)
    catalog = read_predictions(store)
    shards, _ = read_shard_list(store, catalog["shard_lists"][0])
    return [row for shard in shards for row in pq.read_table(Path(out, shard.path)).to_pylist()]


@pytest.fixture(scope="module")
def scored(archives: dict[str, Path], package: Path, tmp_path_factory: pytest.TempPathFactory, ray_local: None):
    """Score each kind of archive once, with other actors and batches each time."""
    root = tmp_path_factory.mktemp("scored")
    how = {"folder": (2, 64), "zip": (1, 7), "tar": (1, 1)}
    changes = {"source_name": "photos", "top_k": len(CLASSES)}
    return {
        kind: (run(archives[kind], package, root / kind, num_actors=actors, batch_size=batch, **changes), root / kind)
        for kind, (actors, batch) in how.items()
    }


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_every_member_is_scored_once_and_bad_ones_keep_their_reason(kind, scored):
    result, out = scored[kind]
    rows = read(out)
    assert Counter(str(row["key"]).removeprefix("./") for row in rows) == Counter(members().keys())
    reasons = {str(row["key"]).removeprefix("./"): row["reason"] for row in rows if row["reason"]}
    assert reasons == {"x/empty.png": "EMPTY", "x/text.jpg": "NOT_IMAGE", "x/cut.png": "TRUNCATED"}
    assert result.figures["members"] == NUM_GOOD + 3
    assert result.figures["scored"] == NUM_GOOD
    assert not result.skipped
    left = {file.path for file in Storage.open(out).list()}
    assert {path.split("/")[0] for path in left} == {"_versions", "data", "run.json"}


def test_a_second_run_reads_the_catalog_and_stops(archives, package, scored):
    first, out = scored["zip"]
    same = {"source_name": "photos", "top_k": len(CLASSES)}
    again = run(archives["zip"], package, out, num_actors=2, batch_size=9, **same)
    assert again.skipped
    assert again.key == first.key
    with pytest.raises(InputError, match=r"holds the predictions of another run .*its settings differ"):
        run(archives["zip"], package, out, **{**same, "top_k": 2})


def test_predictions_depend_neither_on_actors_nor_on_the_kind_of_archive(scored):
    one, two = ({row["image_id"]: row for row in read(scored[kind][1])} for kind in ("folder", "zip"))
    assert one.keys() == two.keys()
    for image_id, row in one.items():
        assert row["names"] == two[image_id]["names"]
        if row["probabilities"]:
            np.testing.assert_allclose(row["probabilities"], two[image_id]["probabilities"], atol=1e-5)


def test_the_registrys_package_gives_the_same_probabilities(package, scored, tmp_path, monkeypatch):
    """The bundled file, loaded by MLflow with pickle forbidden, on the same bytes: both float32, to 1e-4."""
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    import mlflow.pyfunc
    import pandas as pd

    from pipelines.package.bundle import artifacts, signature, write_bundle

    mlflow.pyfunc.save_model(
        tmp_path / "model",
        python_model=str(write_bundle(tmp_path / "network.py")),
        artifacts=artifacts(package),
        signature=signature(),
        pip_requirements=["mlflow"],
    )
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    rows = [row for row in read(scored["folder"][1]) if row["names"]]
    assert len(rows) == NUM_GOOD
    cells = [members()[str(row["key"])] for row in rows]
    answers = model.predict(pd.DataFrame({"image": cells}), params={"top_k": len(CLASSES)})
    for row, names, probabilities in zip(rows, answers["names"], answers["probabilities"], strict=True):
        ours = dict(zip(row["names"], row["probabilities"], strict=True))
        theirs = dict(zip(names, probabilities, strict=True))
        np.testing.assert_allclose([ours[name] for name in CLASSES], [theirs[name] for name in CLASSES], atol=1e-4)


def test_a_run_that_was_cut_short_goes_on_with_the_missing_units(archives, package, scored, tmp_path, monkeypatch):
    from pipelines.score import stage

    whole, whole_out = scored["folder"]
    monkeypatch.setattr("pipelines.sources.units.MIN_UNIT_BYTES", 6_000)
    changes = {"source_name": "photos", "top_k": len(CLASSES)}
    cut = config(archives["folder"], package, tmp_path / "cut", num_actors=1, **changes)
    real = stage._reports
    seen: list[int] = []

    def stop_after_two(*args: object):
        for receipt in real(*args):
            yield receipt
            seen.append(int(receipt["unit"]))
            if len(seen) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(stage, "_reports", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        stage.run(cut)
    assert not list((tmp_path / "cut").glob("_versions/*"))
    standing = {path.name for path in (tmp_path / "cut" / "_work").rglob("unit-*.json")}
    assert len(standing) >= 2

    again: list[list[int]] = []

    def note(config, session, job, units, missing):
        again.append(list(missing))
        return real(config, session, job, units, missing)

    monkeypatch.setattr(stage, "_reports", note)
    result = stage.run(cut)
    assert result.figures["members"] == whole.figures["members"]
    assert not set(seen) & set(again[0])
    by_id = {row["image_id"]: row["names"] for row in read(whole_out)}
    resumed = read(tmp_path / "cut")
    assert len(resumed) == len(by_id)
    assert {row["image_id"]: row["names"] for row in resumed} == by_id


def test_an_archive_that_changed_between_run_and_rerun_is_refused(archives, package, tmp_path, monkeypatch):
    from pipelines.score import stage

    archive = tmp_path / "photos.zip"
    shutil.copy(archives["zip"], archive)

    def stop(*args: object):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "_score", stop)
    with pytest.raises(KeyboardInterrupt):
        run(archive, package, tmp_path / "out")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("e/new.png", make_png(7))
    with pytest.raises(InputError, match="an unfinished score run of other input: the archive changed since"):
        run(archive, package, tmp_path / "out")


def test_more_failures_than_allowed_publish_nothing(archives, package, tmp_path):
    with pytest.raises(DataError, match=r"3 of 43 members have no prediction \(EMPTY: 1, NOT_IMAGE: 1, TRUNCATED: 1\)"):
        run(archives["zip"], package, tmp_path / "out", num_actors=1, max_unscored_fraction=0.01)
    assert not list((tmp_path / "out").glob("_versions/*"))
    assert run(archives["zip"], package, tmp_path / "out", max_unscored_fraction=0.1).figures["unscored"] == 3


def test_a_folder_that_holds_something_else_is_refused(archives, package, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else \(for example thesis.txt\)"):
        run(archives["zip"], package, tmp_path / "out")


def test_a_damaged_package_is_refused_before_any_work(archives, package, tmp_path):
    broken = tmp_path / "package"
    shutil.copytree(package, broken)
    weights = bytearray((broken / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "weights.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=r"weights\.safetensors has the hash"):
        run(archives["zip"], broken, tmp_path / "out")
    assert not list((tmp_path / "out").glob("data/**/*.parquet"))


def test_the_catalog_names_the_model_and_every_row_does(package, scored):
    import hashlib

    _, out = scored["tar"]
    catalog = json.loads((out / "_versions" / "v000001.json").read_text())
    sha256 = hashlib.sha256((package / "weights.safetensors").read_bytes()).hexdigest()
    assert catalog["format"] == "resnet-pipelines/predictions"
    assert catalog["model"]["weights_sha256"] == sha256
    assert catalog["counts"] == {"members": 43, "scored": 40, "unscored": 3}
    assert {row["model_sha256"] for row in read(out)} == {sha256}
