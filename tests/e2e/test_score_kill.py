"""`resnet score`, killed without warning and run again: nothing is lost, nothing is scored twice."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.storage import Storage
from tests.e2e.resnet_process import ResnetProcess, resnet_process
from tests.factories import encode, make_pixels

pytestmark = pytest.mark.e2e

NUM_IMAGES = 60
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an archive of many units and a package whose network takes its time."""
    from pipelines.image.preprocess import Preprocess
    from pipelines.image.resize import Geometry
    from pipelines.package.describe import PackageDescription, write_package
    from resnet_models.resnet import build
    from resnet_models.spec import ModelSpec

    root = tmp_path_factory.mktemp("kill")
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        for number in range(NUM_IMAGES):
            archive.writestr(f"{number:03d}.png", encode(make_pixels(number, 700, 600), "PNG"))
        archive.writestr("broken.jpg", b"no picture")
    spec = ModelSpec(block="basic", depth=18, width=0.5, num_classes=len(CLASSES)).for_images(image_size_px=224)
    preprocess = Preprocess(Geometry(256, "crop"), Geometry(224, "crop"))
    description = PackageDescription(spec, CLASSES, preprocess.to_json(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    write_package(Storage.open(root / "package"), "", build(spec, seed=1).state_dict(), description)
    return root


def score(place: Path, out: str) -> AbstractContextManager[ResnetProcess]:
    words = ["score", "photos.zip", "--model", "package", "--out", out, "batch_size=1", "ray.num_cpus=2"]
    return resnet_process(place, *words)


def receipts(place: Path, out: str) -> set[str]:
    return {path.name for path in (place / out / "_work").glob("*/unit-*.json")}


def shards_of(place: Path, out: str) -> list[Any]:
    from pipelines.dataset.shards import read_shard_list
    from pipelines.score.catalog import read_predictions

    store = Storage.open(place / out)
    catalog = read_predictions(store)
    assert catalog is not None
    return list(read_shard_list(store, catalog["shard_lists"][0])[0])


def rows(place: Path, out: str) -> list[dict[str, Any]]:
    return [row for shard in shards_of(place, out) for row in pq.read_table(place / out / shard.path).to_pylist()]


@pytest.fixture(scope="module")
def golden(place: Path) -> tuple[str, list[dict[str, Any]]]:
    """Score once without disturbance, and without Ray."""
    from pipelines.score import stage
    from pipelines.score.config import ScoreConfig
    from pipelines.score.model import load_model
    from pipelines.score.unit import score_unit

    words = {"archive": place / "photos.zip", "model": place / "package", "out": place / "golden"}
    config = ScoreConfig(batch_size=1, **{name: str(path) for name, path in words.items()})

    def loop(job: Any, units: Any) -> Any:
        model = load_model(job.package)
        return (score_unit(unit, job, model) for unit in units)

    stage.run(config, loop)
    catalog = json.loads((place / "golden" / "_versions" / "v000001.json").read_text())
    return str(catalog["fingerprint"]), rows(place, "golden")


def check_same(place: Path, out: str, golden: tuple[str, list[dict[str, Any]]]) -> None:
    found = rows(place, out)
    assert Counter(row["image_id"] for row in found) == Counter(row["image_id"] for row in golden[1])
    assert max(Counter(row["image_id"] for row in found).values()) == 1
    assert len(found) == NUM_IMAGES + 1
    catalog = json.loads((place / out / "_versions" / "v000001.json").read_text())
    assert catalog["fingerprint"] == golden[0]
    listed = {shard.path for shard in shards_of(place, out)}
    assert {str(path.relative_to(place / out)) for path in (place / out).rglob("part-*.parquet")} == listed
    assert not list((place / out / "_work").rglob("*.*"))


@pytest.mark.timeout(600)
def test_killed_with_sigkill_and_started_again_it_goes_on(place, golden):
    with score(place, "killed") as process:
        process.wait_until(lambda: len(receipts(place, "killed")) >= 2)
        process.kill()
    before = receipts(place, "killed")
    texts = [next((place / "killed" / "_work").glob(f"*/{name}")).read_text() for name in before]
    done = {json.loads(text)["file"]["path"] for text in texts}
    assert not list((place / "killed").glob("_versions/*"))
    with score(place, "killed") as process:
        result = process.finish()
    assert result["figures"]["members"] == NUM_IMAGES + 1
    standing = {shard.path for shard in shards_of(place, "killed")}
    assert done <= standing  # what was done is not done again
    check_same(place, "killed", golden)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_is_replaced_and_the_command_ends_by_itself(place, golden):
    with score(place, "worker") as process:
        process.wait_until(lambda: len(receipts(place, "worker")) >= 1)
        workers = [child for child in process.children() if "UnitScorer" in " ".join(child.cmdline())]
        assert workers
        workers[0].kill()
        result = process.finish()
    assert result["figures"]["members"] == NUM_IMAGES + 1
    check_same(place, "worker", golden)
