"""Look-alikes of a real dataset: which stay, which go, and the page and table that say so."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.cli.main import run_command
from pipelines.dataset.duplicates import find_alike
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.unit import ingest_unit


def scene(seed: int) -> np.ndarray:
    """Return a smooth picture: noise would be another picture after compression."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC))


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("alike")
    files = {f"train/cat/{seed:02d}.jpg": jpeg(scene(seed), 95) for seed in range(12)}
    files |= {f"test/cat/{seed:02d}.jpg": jpeg(scene(seed), 95) for seed in range(20, 24)}
    files |= {f"val/cat/{seed:02d}.jpg": jpeg(scene(seed), 95) for seed in range(30, 32)}
    files["test/cat/again.jpg"] = jpeg(scene(3), 60)  # the same scene, compressed harder: a leak by looks only
    files["train/dog/other-name.jpg"] = jpeg(scene(5), 60)
    files["train/dog/white.jpg"] = jpeg(np.full((96, 96, 3), 255, np.uint8), 90)
    files["train/dog/grey.jpg"] = jpeg(np.full((96, 96, 3), 128, np.uint8), 90)
    for key, data in files.items():
        (root / "set" / key).parent.mkdir(parents=True, exist_ok=True)
        (root / "set" / key).write_bytes(data)
    config = IngestConfig(source=str(root / "set"), out=str(root / "out"))
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    return open_dataset(str(root / "out"))


def test_the_same_scene_compressed_again_is_found(dataset: Dataset) -> None:
    alike = find_alike(dataset)
    assert alike.counts() == {
        "images": 22,
        "clusters": 2,
        "images_in_clusters": 4,
        "clusters_across_splits": 1,
        "clusters_with_different_labels": 1,
        "leaks": 1,
        "one_colour": 2,
        "capped": 0,
    }
    assert [row["key"] for row in alike.surplus(across_splits=True)] == ["train/cat/03.jpg"]
    assert alike.surplus(across_splits=True)[0]["like"] == "test/cat/again.jpg"  # the held-out one stays
    assert len(alike.surplus(across_splits=False)) == 2


def test_the_table_can_be_excluded_and_the_page_shows_both(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, page = tmp_path / "alike.csv", tmp_path / "alike.html"
    words = ["duplicates", dataset.uri, "--across-splits", "--table", str(table), "--page", str(page)]
    assert run_command(["data", *words]) == 0
    shown = capsys.readouterr().out
    assert "clusters_across_splits          1" in shown
    assert f"resnet data exclude {dataset.uri} --from {table} --reason near-duplicate" in shown
    with table.open() as file:
        assert [row["key"] for row in csv.DictReader(file)] == ["train/cat/03.jpg"]
    html = page.read_text()
    assert "Across splits" in html
    assert "again.jpg" in html
    assert html.count("<img") == 4
    assert run_command(["data", "exclude", dataset.uri, "--from", str(table), "--reason", "near-duplicate"]) == 0
    assert find_alike(open_dataset(dataset.uri)).counts()["clusters_across_splits"] == 0
