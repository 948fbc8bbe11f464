"""Appending 1% to the CIFAR dataset against ingesting it whole, Ray's start aside: as a new source, and as a grown one.

    python -m pytest -m benchmark -s tests/benchmarks/test_append_speed.py

`RESNET_BENCH_SMALL` names a zip of small JPEGs in class folders, such as CIFAR-10 as files, in place of 2,000 made
ones; `RESNET_BENCH_MEMBERS` takes the first so many. Only with 50,000 the shares are held to their bar.
"""

from __future__ import annotations

import io
import os
import shutil
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from pipelines.ingest.config import IngestConfig
from tests.benchmarks.bench_images import small_images

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

ROUNDS = 5
LIMIT = 0.05


def write(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as target:
        for name, data in members:
            target.writestr(name, data)
    return path


def turned(data: bytes) -> bytes:
    """Return another picture of the same kind."""
    out = io.BytesIO()
    ImageOps.mirror(Image.open(io.BytesIO(data))).rotate(90).save(out, "JPEG", quality=90)
    return out.getvalue()


def seconds(source: Path, out: Path, **values: bool) -> tuple[float, dict[str, float | int | str]]:
    """Return what an ingest took without Ray's start, and its figures."""
    from pipelines.ingest.stage import run

    started_s = time.perf_counter()
    figures = run(IngestConfig(source=str(source), out=str(out), **values)).figures
    return time.perf_counter() - started_s - float(figures.get("ray_start_s", 0)), figures


def test_one_percent_more(tmp_path: Path, ray_local: None) -> None:
    whole = small_images()[: int(os.environ.get("RESNET_BENCH_MEMBERS", "50000"))]
    news = [
        (f"{name.rpartition('/')[0]}/new-{place}.jpg", turned(data)) for place, (name, data) in enumerate(whole[::100])
    ]
    sources = {
        "a new source": write(tmp_path / "more.zip", news),
        "a grown source": write(tmp_path / "grown" / "whole.zip", [*whole, *news]),
    }
    base = write(tmp_path / "whole.zip", whole)
    seconds(sources["a new source"], tmp_path / "warm")  # workers stand, modules are loaded
    full_s, _ = seconds(base, tmp_path / "base")
    print(f"\n{len(whole):,} images whole: {full_s:.2f} s, Ray's start aside")
    shares: list[float] = []
    for kind, source in sources.items():
        took = []
        for number in range(ROUNDS):
            out = shutil.copytree(tmp_path / "base", tmp_path / f"{kind} {number}")
            elapsed_s, figures = seconds(source, out, append=True, moved=True)
            assert figures["added"] == len(news)
            took.append(elapsed_s)
        shares.append(sorted(took)[ROUNDS // 2] / full_s)
        seconds_each = ", ".join(f"{elapsed_s:.2f}" for elapsed_s in took)
        print(f"{len(news)} images more, as {kind}: {seconds_each} s; median share {shares[-1]:.3f}")
    assert len(whole) < 50_000 or max(shares) <= LIMIT
