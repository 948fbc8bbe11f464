"""A process that hangs on an image is ended, one that goes on is not, and memory is bounded for images tried alone."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import override

from pipelines.dataset.inspect import quarantined
from pipelines.dataset.reader import open_dataset
from pipelines.ingest import stage, task
from pipelines.ingest.config import ImageConfig, IngestConfig, PrivacyConfig
from pipelines.ingest.privacy import Box
from pipelines.ingest.stored import NO_PRIVACY
from pipelines.ingest.task import _bounded_memory, _prepare_here
from pipelines.ingest.unit import KILLS_BEFORE_CARE, IngestJob, ingest_unit
from pipelines.ingest.watchdog import EXIT_CODE, Watchdog
from pipelines.sources.base import Unit
from tests import factories


def test_a_hanging_image_ends_the_process() -> None:
    program = (
        "import time\n"
        "from pipelines.ingest.watchdog import Watchdog\n"
        "with Watchdog(limit_s=0.2).watching() as watchdog:\n"
        "    with watchdog:\n"
        "        time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], capture_output=True)
    assert done.returncode == EXIT_CODE
    assert b"an image took more than 0 s: its process is ended" in done.stderr


def test_images_that_are_done_in_time_are_left_alone() -> None:
    ended = threading.Event()
    with Watchdog(limit_s=30.0, end=ended.set).watching() as watchdog:
        for _ in range(100):
            with watchdog:
                pass
    assert not ended.is_set()
    with Watchdog(limit_s=0.05, end=ended.set).watching() as watchdog:
        with watchdog:
            pass
        assert not ended.wait(0.3)  # waiting for the source is no image
    assert not [thread for thread in threading.enumerate() if thread.name == "ingest-watchdog"]


def tried(data: bytes, boxes: Sequence[Box], privacy: PrivacyConfig, limit_bytes: int) -> str | None:
    """Return why an image is refused within a bound of memory; None where it is not."""
    task._ALONE_MEMORY_BYTES = limit_bytes
    refusal = _prepare_here(data, boxes, ImageConfig(), privacy)
    return None if refusal is None else refusal.reason


def allocate_within_bound() -> None:
    with _bounded_memory(1 << 20), pytest.raises(MemoryError):
        bytearray(64 << 20)
    bytearray(64 << 20)


@pytest.fixture(scope="module")
def fresh() -> Iterator[ProcessPoolExecutor]:
    """A process that did nothing else: one that has freed memory lately could be given that within the bound."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_an_image_alone_has_bounded_memory(fresh: ProcessPoolExecutor) -> None:
    large = factories.encode(np.zeros((5_000, 5_000), np.uint8), "PNG")
    assert fresh.submit(tried, large, (), NO_PRIVACY, 24 << 20).result() == "MEMORY"
    assert fresh.submit(tried, factories.make_jpeg(), (), NO_PRIVACY, 24 << 20).result() is None
    assert fresh.submit(tried, b"no picture", (), NO_PRIVACY, 24 << 20).result() is None
    fresh.submit(allocate_within_bound).result()


def test_what_is_tried_alone_is_what_the_unit_does(fresh: ProcessPoolExecutor) -> None:
    """With a box a photo is decoded whole, not at a scale, which takes the memory that the bound is about."""
    privacy, boxes = PrivacyConfig(region_column="boxes"), [Box(0, 0, 50, 50)]
    photo = factories.encode(np.zeros((6_000, 6_000, 3), np.uint8), "JPEG")
    assert fresh.submit(tried, photo, (), NO_PRIVACY, 24 << 20).result() is None
    assert fresh.submit(tried, photo, boxes, privacy, 24 << 20).result() == "MEMORY"


class _Counting(Watchdog):
    """Counts the images that it is told of."""

    def __init__(self) -> None:
        super().__init__(end=lambda: None)
        self.images = 0

    @override
    def __enter__(self) -> None:
        self.images += 1
        super().__enter__()


def test_a_unit_tells_its_watchdog_of_every_decoding(tmp_path: Path) -> None:
    folder = factories.write_class_folder(tmp_path / "set", {"cat": 6, "dog": 6})
    (folder / "cat" / "strip.png").write_bytes(factories.encode(np.zeros((10, 2_000, 3), np.uint8), "PNG"))
    counting = _Counting()
    with counting.watching():
        stage.run(
            IngestConfig(source=str(folder), out=str(tmp_path / "out"), max_quarantined_fraction=0.2),
            lambda job, units: (ingest_unit(one, job, watchdog=counting) for one in units),
        )
    assert counting.images == 12 + 2  # the refused one, and its thumbnail


def test_a_refused_image_that_kills_as_a_thumbnail_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = factories.write_class_folder(tmp_path / "set", {"cat": 6, "dog": 6})
    (folder / "cat" / "strip.png").write_bytes(factories.encode(np.zeros((10, 2_000, 3), np.uint8), "PNG"))

    def killing(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.ingest.thumbnail.decode_image", killing)
    alone = partial(_prepare_here, settings=ImageConfig(), privacy=NO_PRIVACY)
    config = IngestConfig(source=str(folder), out=str(tmp_path / "out"), max_quarantined_fraction=0.2)

    def retried(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
        (one,) = units
        for _ in range(KILLS_BEFORE_CARE):
            with pytest.raises(KeyboardInterrupt):
                ingest_unit(one, job, alone)
        yield ingest_unit(one, job, alone)

    (row,) = quarantined(open_dataset(stage.run(config, retried).out))
    assert (row["key"], row["reason"], row["thumbnail"]) == ("cat/strip.png", "ASPECT", None)
