"""The whole stage without Ray: units in a plain loop, a real package, real archives."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.shards import read_shard_list
from pipelines.errors import ConfigError, DataError, InputError, RegistryError
from pipelines.image.preprocess import Preprocess
from pipelines.image.resize import Geometry
from pipelines.package.describe import PackageDescription, write_package
from pipelines.ray_runtime import RayConfig
from pipelines.score import stage
from pipelines.score.catalog import read_predictions
from pipelines.score.config import ScoreConfig
from pipelines.score.model import load_model
from pipelines.score.plan import plan
from pipelines.score.unit import score_unit
from pipelines.storage import Storage
from pipelines.tracking import TrackingConfig
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec
from tests.factories import make_jpeg, make_png

CLASSES = tuple("abcdefg")
BAD = {"x/cut.png": make_png(3)[:200], "x/empty.png": b"", "x/text.jpg": b"not a picture"}
MEMBERS = {
    **{f"{'abc'[i % 3]}/{i:03d}.png": make_png(i, width=20 + i % 5, height=24) for i in range(20)},
    **{f"d/{i:03d}.jpg": make_jpeg(100 + i, width=40, height=30 + i % 3) for i in range(20)},
    **BAD,
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a package with random weights: scoring does not care whether it was trained."""
    spec = ModelSpec(depth=8, block="basic", width=0.25, num_classes=len(CLASSES)).for_images(image_size_px=32)
    preprocess = Preprocess(Geometry(40, "fit"), Geometry(32, "crop"))
    folder = tmp_path_factory.mktemp("package")
    description = PackageDescription(spec, CLASSES, preprocess.to_json(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    write_package(Storage.open(folder), "", build(spec, seed=5).state_dict(), description)
    return folder


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("archives")
    for key, data in MEMBERS.items():
        path = root / "photos" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        for key, data in MEMBERS.items():
            archive.writestr(key, data)
    with tarfile.open(root / "photos.tar", "w") as archive:
        for key in MEMBERS:
            archive.add(root / "photos" / key, arcname=key)
    return {"folder": root / "photos", "zip": root / "photos.zip", "tar": root / "photos.tar"}


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the archives into several units."""
    monkeypatch.setattr("pipelines.sources.units.MIN_UNIT_BYTES", 6_000)
    monkeypatch.setattr("pipelines.sources.units.SPANS_PER_UNIT", 2)


def loop(job, units):
    return (score_unit(unit, job, load_model(job.package)) for unit in units)


def run(archive: Path, package: Path, out: Path, run_units=loop, **changes: object):
    values = {"source_name": "photos", **changes}
    return stage.run(ScoreConfig(archive=str(archive), model=str(package), out=str(out), **values), run_units)


def rows(out: Path) -> list[dict[str, object]]:
    catalog = read_predictions(Storage.open(out))
    assert catalog is not None
    shards, _ = read_shard_list(Storage.open(out), catalog["shard_lists"][0])
    return [row for shard in shards for row in pq.read_table(out / shard.path).to_pylist()]


def never(job, units):
    raise AssertionError("nothing should be left to do")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_every_member_has_one_row_and_bad_ones_their_reason(kind, archives, package, tmp_path):
    result = run(archives[kind], package, tmp_path / "out")
    found = rows(tmp_path / "out")
    assert Counter(row["key"] for row in found) == Counter(MEMBERS.keys())
    reasons = {row["key"]: row["reason"] for row in found if row["reason"]}
    assert reasons == {"x/cut.png": "TRUNCATED", "x/empty.png": "EMPTY", "x/text.jpg": "NOT_IMAGE"}
    assert {len(row["names"]) for row in found if row["names"]} == {5}
    figures = {name: result.figures[name] for name in ("members", "scored", "unscored", "reasons")}
    assert figures == {"members": 43, "scored": 40, "unscored": 3, "reasons": "EMPTY 1, NOT_IMAGE 1, TRUNCATED 1"}
    assert len(list((tmp_path / "out").rglob("part-*.parquet"))) > 1
    left = {file.path.split("/")[0] for file in Storage.open(tmp_path / "out").list()}
    assert left == {"_versions", "data", "run.json"}


def test_neither_the_kind_of_archive_nor_the_batch_size_shows(archives, package, tmp_path):
    for kind, batch in (("folder", 64), ("zip", 7), ("tar", 1)):
        run(archives[kind], package, tmp_path / kind, batch_size=batch, top_k=7)
    one, two, three = ({row["image_id"]: row for row in rows(tmp_path / kind)} for kind in ("folder", "zip", "tar"))
    assert one.keys() == two.keys() == three.keys()
    for image_id, row in one.items():
        for other in (two[image_id], three[image_id]):
            assert row["reason"] == other["reason"]
            if row["probabilities"]:
                ours, theirs = (dict(zip(r["names"], r["probabilities"], strict=True)) for r in (row, other))
                np.testing.assert_allclose([ours[c] for c in CLASSES], [theirs[c] for c in CLASSES], atol=1e-5)


def test_a_finished_run_is_skipped_and_another_refused(archives, package, tmp_path):
    first = run(archives["zip"], package, tmp_path / "out")
    again = run(archives["zip"], package, tmp_path / "out", never, batch_size=3, num_actors=9)
    assert again.skipped
    assert (again.key, again.version) == (first.key, 1)
    with pytest.raises(InputError, match=r"holds the predictions of another run .*: its settings differ"):
        run(archives["zip"], package, tmp_path / "out", top_k=2)
    with pytest.raises(InputError, match=r"holds the predictions of another run .*: the archive changed since"):
        run(archives["tar"], package, tmp_path / "out")


def test_a_run_that_was_cut_short_goes_on_with_the_missing_units(archives, package, tmp_path):
    whole = run(archives["zip"], package, tmp_path / "whole")
    done: list[int] = []

    def two_units(job, units):
        for unit in units[:2]:
            done.append(unit.index)
            yield score_unit(unit, job, load_model(job.package))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(archives["zip"], package, tmp_path / "cut", two_units)
    assert not list((tmp_path / "cut").glob("_versions/*"))
    rest: list[int] = []

    def note(job, units):
        rest.extend(unit.index for unit in units)
        return loop(job, units)

    resumed = run(archives["zip"], package, tmp_path / "cut", note)
    assert len(done) == 2
    assert rest
    assert not set(done) & set(rest)
    assert resumed.key == whole.key
    catalogs = [json.loads((tmp_path / name / "_versions" / "v000001.json").read_text()) for name in ("whole", "cut")]
    assert catalogs[0]["fingerprint"] == catalogs[1]["fingerprint"]


def test_an_archive_or_a_model_that_changed_in_between_is_refused(archives, package, tmp_path):
    archive = tmp_path / "photos.zip"
    archive.write_bytes(archives["zip"].read_bytes())

    def stop(job, units):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(archive, package, tmp_path / "out", stop)
    other = tmp_path / "other"
    other.mkdir()
    spec = ModelSpec(depth=8, block="basic", width=0.25, num_classes=2).for_images(image_size_px=32)
    description = PackageDescription(spec, ("u", "v"), Preprocess().to_json(), (0.5,) * 3, (0.25,) * 3)
    write_package(Storage.open(other), "", build(spec, seed=6).state_dict(), description)
    with pytest.raises(InputError, match="an unfinished score run of other input: the model is another one"):
        run(archive, other, tmp_path / "out")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("e/new.png", make_png(7))
    with pytest.raises(InputError, match="an unfinished score run of other input: the archive changed since"):
        run(archive, package, tmp_path / "out")


def test_more_failures_than_allowed_publish_nothing_and_scoring_is_not_repeated(archives, package, tmp_path):
    words = r"3 of 43 members have no prediction \(EMPTY: 1, NOT_IMAGE: 1, TRUNCATED: 1\)"
    with pytest.raises(DataError, match=words):
        run(archives["zip"], package, tmp_path / "out", max_unscored_fraction=0.01)
    assert not list((tmp_path / "out").glob("_versions/*"))
    assert run(archives["zip"], package, tmp_path / "out", never, max_unscored_fraction=0.1).figures["unscored"] == 3


def test_a_folder_that_holds_something_else_is_refused(archives, package, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else \(for example thesis.txt\)"):
        run(archives["zip"], package, tmp_path / "out")


def test_a_damaged_package_is_refused_before_any_work(archives, package, tmp_path):
    broken = Storage.open(tmp_path / "package")
    for name in ("model.json", "weights.safetensors"):
        broken.put(name, Storage.open(package).read(name))
    weights = bytearray(broken.read("weights.safetensors"))
    weights[-1] ^= 1
    broken.put("weights.safetensors", bytes(weights))
    with pytest.raises(InputError, match=r"weights\.safetensors has the hash"):
        run(archives["zip"], tmp_path / "package", tmp_path / "out", never)
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_another_hash_than_expected_is_refused(archives, package, tmp_path):
    with pytest.raises(RegistryError, match=f"and model_sha256 is {'0' * 64}"):
        run(archives["zip"], package, tmp_path / "out", never, model_sha256="0" * 64)


def test_two_drivers_of_one_run_leave_one_set_of_predictions(archives, package, tmp_path):
    """The second one begins before the first publishes and ends after it has cleaned up."""
    inner: list[object] = []

    def interrupted(job, units):
        for unit in units:
            if unit.index == units[-1].index:
                inner.append(run(archives["zip"], package, tmp_path / "out"))
            yield score_unit(unit, job, load_model(job.package))

    outer = run(archives["zip"], package, tmp_path / "out", interrupted)
    assert outer.version == 1
    assert Counter(row["key"] for row in rows(tmp_path / "out")) == Counter(MEMBERS.keys())
    named = {
        row.path for row in read_shard_list(Storage.open(tmp_path / "out"), catalog_of(tmp_path)["shard_lists"][0])[0]
    }
    standing = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("part-*.parquet")}
    assert standing == named


def catalog_of(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "_versions" / "v000001.json").read_text())


def test_the_catalog_names_model_source_and_counts(archives, package, tmp_path):
    run(archives["tar"], package, tmp_path / "out")
    catalog = catalog_of(tmp_path)
    assert catalog["format"] == "resnet-pipelines/predictions"
    assert catalog["counts"] == {"members": 43, "scored": 40, "unscored": 3}
    assert catalog["source"]["name"] == "photos"
    assert {row["model_sha256"] for row in rows(tmp_path / "out")} == {catalog["model"]["weights_sha256"]}


def test_other_tools_get_the_files_and_find_every_row(archives, package, tmp_path):
    import duckdb
    import pandas as pd

    from pipelines.dataset.inspect import files

    run(archives["zip"], package, tmp_path / "out")
    paths = files(str(tmp_path / "out"))
    frame = pd.concat(map(pd.read_parquet, paths))
    assert sorted(frame["key"]) == sorted(MEMBERS)
    scored = duckdb.sql(f"select count(*) from read_parquet({paths}) where names[1] is not null").fetchall()
    assert scored == [(40,)]


def test_a_pinned_version_is_planned_without_a_registry(archives):
    pinned = ScoreConfig(archive=str(archives["zip"]), model="models:/birds/3", model_sha256="a" * 64)
    made = plan(pinned)
    assert made.inputs["model"] == "birds/3"
    assert made.inputs["weights"] == "a" * 64
    assert made.out == f"runs/score/{made.key[:12]}"
    other = plan(pinned.model_copy(update={"batch_size": 5, "num_actors": 3, "out": "elsewhere"}))
    assert other.key == made.key
    assert plan(pinned.model_copy(update={"precision": "bf16"})).key != made.key


def test_a_gpu_where_there_is_none_is_refused_before_any_work(archives, package, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="use_gpu is true and torch can use no GPU here"):
        run(archives["zip"], package, tmp_path / "out", never, use_gpu=True)
    assert not (tmp_path / "out").exists()


def test_an_alias_that_moved_in_between_is_refused_naming_the_first_version(archives, package, tmp_path, monkeypatch):
    from pipelines.package.resolve import ResolvedPackage, resolve_ref

    sha256 = resolve_ref(str(package)).weights_sha256
    versions = iter([("1", sha256), ("1", sha256), ("2", "b" * 64)])

    def resolve(ref, tracking):
        version, weights = next(versions)
        return ResolvedPackage(ref, str(package), "birds", version, weights)

    monkeypatch.setattr("pipelines.score.plan.resolve_ref", resolve)

    def first_unit(job, units):
        yield score_unit(units[0], job, load_model(job.package))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(archives["zip"], "models:/birds@champion", tmp_path / "out", first_unit)
    with pytest.raises(InputError, match="the model is another one") as refused:
        run(archives["zip"], "models:/birds@champion", tmp_path / "out")
    assert refused.value.mend == "choose another --out, or finish that run with --model models:/birds/1"


def test_an_output_inside_the_source_is_refused(archives, package):
    with pytest.raises(InputError, match=r"the output .* lies inside the source"):
        run(archives["folder"], package, archives["folder"] / "predictions", never)
    assert not (archives["folder"] / "predictions").exists()


def test_addresses_of_stores_are_not_in_the_catalog(archives, package, tmp_path):
    run(archives["zip"], package, tmp_path / "out", ray=RayConfig(address=""), tracking=TrackingConfig(uri="http://m"))
    assert not {"tracking", "ray"} & catalog_of(tmp_path)["config"].keys()
