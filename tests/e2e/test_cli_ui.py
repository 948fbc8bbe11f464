"""`resnet ui` serves the store's pages on the loopback and leaves nothing behind when it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.integration]


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def test_the_ui_answers_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.main", "ui", "--port", "5731"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == f"store: sqlite:///{tmp_path}/runs/mlflow.db\n"
        address = child.stdout.readline().removeprefix("ui:").strip()
        assert address.startswith("http://127.0.0.1:57")
        deadline = time.monotonic() + 200
        while not answers(address):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    assert "interrupted: " in error
    assert not answers(address)
