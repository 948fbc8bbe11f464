"""The installed command in a process of its own, to be killed: nothing that it starts outlives the test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]


class ResnetProcess:
    """A running `resnet` command."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def finish(self, timeout_s: float = 280.0) -> dict[str, Any]:
        """Wait for the end, which must be a success, and return what `--json` printed."""
        out, err = self.process.communicate(timeout=timeout_s)
        assert self.process.returncode == 0, err
        return dict(json.loads(out))

    def wait_until(self, ready: Callable[[], bool], timeout_s: float = 240.0) -> None:
        """Wait for something that the command does; it must not end before."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            assert self.process.poll() is None, self.process.stderr.read() if self.process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def children(self) -> list[psutil.Process]:
        """Return what the command has started, and what that has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def kill(self) -> None:
        """Kill the driver as a power cut would; Ray's own processes end a while later, and are not waited for."""
        family = self.children()
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)
        _end(family)


@contextlib.contextmanager
def resnet_process(folder: Path, *words: str, **environment: str) -> Iterator[ResnetProcess]:
    """Start `resnet WORDS --json` in a session of its own; whatever it leaves running is ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.main", *words, "--json"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    running = ResnetProcess(process)
    try:
        yield running
    finally:
        family = running.children()
        if process.poll() is None:
            process.kill()
        process.communicate()
        _end(family)


def _end(family: list[psutil.Process]) -> None:
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
