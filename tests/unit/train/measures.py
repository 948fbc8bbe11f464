"""What processes that try batch sizes may do, for `find_batch_size`: each imports this file, so it is free of torch."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from unittest import mock

from pipelines.train import batch_size
from pipelines.train.batch_size import measure_sizes


def measure_full(text: str, answers: Connection) -> None:
    """Say that not even the first size fits."""
    answers.send({"reason": "20 images a batch do not fit into memory"})


def measure_killed(text: str, answers: Connection) -> None:
    """Measure until the system ends the process, as it does where memory runs out."""
    answers.send({"size": 8, "images_per_s": 1.0})
    os.kill(os.getpid(), signal.SIGKILL)


def measure_and_fail(text: str, answers: Connection) -> None:
    """Measure where something is wrong with the network."""
    with mock.patch.object(batch_size, "_measure", side_effect=RuntimeError("shapes do not match")):
        measure_sizes(text, answers)


def measure_crashed(text: str, answers: Connection) -> None:
    """Say one size and end as a bug in a library ends a process."""
    answers.send({"size": 8, "images_per_s": 1.0})
    os.kill(os.getpid(), signal.SIGSEGV)


def measure_mute(text: str, answers: Connection) -> None:
    """Say nonsense, and go on for long."""
    answers.send({"size": "many"})
    time.sleep(600)
