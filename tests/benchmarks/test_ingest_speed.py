"""Ingest against a bare loop that calls the same decode, hash and measure functions on the same archive, interleaved.

    python -m pytest -m benchmark -s tests/benchmarks/test_ingest_speed.py

`RESNET_BENCH_ARCHIVE` names a zip of class folders; without it one of 20,000 small JPEGs is made.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
import zipfile
from pathlib import Path

import pytest

from pipelines.ingest.config import ImageConfig, IngestConfig
from pipelines.ingest.quality import measure
from pipelines.ingest.stored import make_stored_image
from tests import factories

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

PAIRS = 3
NUM_MADE = 20_000
NUM_PROCESSES = 2


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("RESNET_BENCH_ARCHIVE"):
        return Path(given)
    path = tmp_path_factory.mktemp("bench") / "small.zip"
    with zipfile.ZipFile(path, "w") as target:
        for number in range(NUM_MADE):
            data = factories.encode(factories.make_pixels(number, 32, 32), "JPEG", quality=75)
            target.writestr(f"{number % 10}/{number:05d}.jpg", data)
    return path


def bare(path: Path, names: list[str], out: Path) -> int:
    """Read, decode, hash and measure members, and write their bytes into one file."""
    config = ImageConfig()
    done = 0
    with zipfile.ZipFile(path) as source, out.open("wb") as target:
        for name in names:
            image = make_stored_image(source.read(name), name, config)
            measure(image.pixels)
            target.write(image.data)
            done += 1
        target.flush()
        os.fsync(target.fileno())
    return done


def bare_rate(path: Path, folder: Path) -> float:
    with zipfile.ZipFile(path) as source:
        names = [name for name in source.namelist() if not name.endswith("/")]
    parts = [(path, names[rank::NUM_PROCESSES], folder / f"{rank}.bin") for rank in range(NUM_PROCESSES)]
    with multiprocessing.get_context("spawn").Pool(NUM_PROCESSES) as pool:
        pool.starmap(bare, [(path, names[:1], folder / "warm.bin")] * NUM_PROCESSES)
        started_s = time.perf_counter()
        done = sum(pool.starmap(bare, parts))
        return done / (time.perf_counter() - started_s)


@pytest.fixture
def rounds(archive: Path, tmp_path: Path, ray_local: None) -> list[tuple[float, float]]:
    from pipelines.ingest.stage import run

    run(IngestConfig(source=str(archive), out=str(tmp_path / "warm")))  # worker processes stand, files are cached
    pairs = []
    for number in range(PAIRS):
        peer = bare_rate(archive, tmp_path)
        figures = run(IngestConfig(source=str(archive), out=str(tmp_path / str(number)))).figures
        pairs.append((float(figures["images_per_s"]), peer))
    return pairs


def test_ingest_against_a_bare_loop(rounds: list[tuple[float, float]]) -> None:
    print("\nimages/s     ingest       bare loop    ratio")
    for ours, peer in rounds:
        print(f"        {ours:10,.0f} {peer:15,.0f} {ours / peer:8.2f}")
    print(f"median ratio {statistics.median(ours / peer for ours, peer in rounds):.2f}")
    assert all(ours > 0 and peer > 0 for ours, peer in rounds)
