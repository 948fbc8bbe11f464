"""`resnet ingest`, killed without warning and run again: the same rows and fingerprint as uninterrupted."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pipelines.dataset import inspect
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.unit import ingest_unit
from tests import factories
from tests.e2e.resnet_process import ResnetProcess, resnet_process

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NUM_IMAGES = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an archive of many units, with a bad file and copies that leak."""
    root = tmp_path_factory.mktemp("kill")
    files = [(f"{'abc'[i % 3]}/{i:03d}.png", factories.make_png(i, 700, 600)) for i in range(NUM_IMAGES)]
    files += [(f"a/copy{i}.png", files[i][1]) for i in range(6)] + [("b/broken.jpg", b"no picture")]
    (root / "photos.zip").write_bytes(factories.make_zip(files))
    return root


def ingest(place: Path, out: str) -> AbstractContextManager[ResnetProcess]:
    return resnet_process(place, "ingest", "photos.zip", "--out", out, "ray.num_cpus=1")


def rows(dataset: Dataset) -> set[tuple[str, ...]]:
    columns = ["image_id", "key", "label", "source_sha256", "stored_sha256"]
    found = [
        (split, *map(str, row.values()))
        for split in dataset.splits
        for row in dataset.table(split, columns).to_pylist()
    ]
    assert len(found) == len(set(found))
    return set(found)


def test_killed_driver_and_the_same_command_again(place: Path) -> None:
    config = IngestConfig(source=str(place / "photos.zip"), out=str(place / "golden"))
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    golden = open_dataset(str(place / "golden"))
    assert golden.catalog["counts"]["dropped"] > 0

    with ingest(place, "killed") as process:
        process.wait_until(lambda: len(list((place / "killed").glob("_work/*/unit-*.json"))) >= 2)
        process.kill()
    assert not (place / "killed" / "_versions").exists()
    done = [json.loads(path.read_text()) for path in (place / "killed").glob("_work/*/unit-*.json")]
    assert len(done) >= 2

    with ingest(place, "killed") as process:
        result = process.finish()
    dataset = open_dataset(str(place / "killed"))
    assert not result["skipped"]
    assert dataset.fingerprint == golden.fingerprint
    assert rows(dataset) == rows(golden)
    assert dataset.catalog["counts"] == golden.catalog["counts"]
    assert list(inspect.verify(dataset)) == []
    names = {shard.path for shard in dataset.shards()}
    untouched = {file["path"] for receipt in done for file in receipt["files"]}
    # what was done is not done again: its shards live on, or were written anew without their leaks
    assert all(path in names or f"{path.rpartition('-')[0]}-leaks-dropped.parquet" in names for path in untouched)
    on_disk = {str(path.relative_to(place / "killed")) for path in (place / "killed" / "data").rglob("part-*")}
    assert on_disk == names

    with ingest(place, "killed") as process:
        assert process.finish()["skipped"]
