"""SIGTERM and Ctrl-C while Ray works: a quick end, the right code, a word on how to go on, no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.factories import write_class_folder

pytestmark = [pytest.mark.e2e, pytest.mark.integration]


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found += [int(entry.name), *children_of(int(entry.name))]
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.mark.parametrize(
    ("sent", "code", "word"),
    [
        (signal.SIGTERM, 143, "terminated"),
        # Slow, as how Ray ends is the same, and `resnet ui` is ended by Ctrl-C in `test_cli_ui.py`.
        pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_working_ingest_cleanly(tmp_path: Path, sent: signal.Signals, code: int, word: str) -> None:
    write_class_folder(tmp_path / "photos", {"cat": 40, "dog": 40}, size=16)
    # The stage is held once Ray is up, so that the signal always finds it at work.
    program = (
        "import sys, time, pipelines.ingest.stage as stage, pipelines.cli.main as main\n"
        "from pipelines.ray_runtime import ray_session\n"
        "def held(config):\n"
        "    with ray_session(config.ray):\n"
        "        print('at work', file=sys.__stdout__, flush=True)\n"
        "        time.sleep(120)\n"
        "stage.run = held\n"
        "sys.argv = ['resnet', 'ingest', 'photos', '--out', 'd']\n"
        "main.main()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "at work\n"
    started = children_of(child.pid)
    child.send_signal(sent)
    sent_s = time.monotonic()
    _, error = child.communicate(timeout=60)
    assert child.returncode == code, error
    assert f"{word}: finished units stay; the same command goes on from here" in error
    assert error.endswith("next:\n  resnet ingest photos --out d\n")
    assert "Traceback" not in error
    assert "SIGTERM received" not in error
    while left := [pid for pid in started if is_running(pid)]:
        assert time.monotonic() - sent_s < 60, left
        time.sleep(0.2)
