"""A process that hangs on an image is ended, one that goes on is not, and memory is bounded for images tried alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from pipelines.ingest.config import ImageConfig
from pipelines.ingest.task import _bounded_memory, _prepare_here
from pipelines.ingest.watchdog import EXIT_CODE, Watchdog
from tests import factories


def test_a_hanging_image_ends_the_process() -> None:
    program = (
        "import time\n"
        "from pipelines.ingest.watchdog import Watchdog\n"
        "with Watchdog(limit_s=0.2).watching() as watchdog:\n"
        "    with watchdog.image():\n"
        "        time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], capture_output=True)
    assert done.returncode == EXIT_CODE
    assert b"an image took more than 0 s: its process is ended" in done.stderr


def test_images_that_are_done_in_time_are_left_alone() -> None:
    ended = threading.Event()
    with Watchdog(limit_s=30.0, end=ended.set).watching() as watchdog:
        for _ in range(100):
            with watchdog.image():
                pass
    assert not ended.is_set()
    with Watchdog(limit_s=0.05, end=ended.set).watching():
        assert not ended.wait(0.3)  # waiting for the source is no image
    assert not [thread for thread in threading.enumerate() if thread.name == "ingest-watchdog"]


def test_an_image_alone_has_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.ingest.task._ALONE_MEMORY_BYTES", 24 << 20)
    large = factories.encode(np.zeros((5_000, 5_000), np.uint8), "PNG")
    refusal = _prepare_here(large, ImageConfig())
    assert refusal is not None
    assert refusal.reason == "MEMORY"
    assert _prepare_here(factories.make_jpeg(), ImageConfig()) is None
    assert _prepare_here(b"no picture", ImageConfig()) is None
    with _bounded_memory(1 << 20), pytest.raises(MemoryError):
        bytearray(64 << 20)
    bytearray(64 << 20)
