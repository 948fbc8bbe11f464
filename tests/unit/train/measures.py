"""What processes that try batch sizes may do, for `find_batch_size`.

Each imports this file, so it is free of torch; those that really measure (`batch_size._measure`) import it themselves.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

from pipelines.train import batch_size
from pipelines.train.batch_size import Timed, measure_sizes
from pipelines.train.config import TrainConfig


def say(messages: Sequence[dict[str, Any]], text: str, answers: Connection) -> None:
    """Say what was measured elsewhere."""
    for message in messages:
        answers.send(message)


def measure_killed(text: str, answers: Connection) -> None:
    """Measure until the system ends the process at the second size, as it does where memory runs out."""
    _measure_until(signal.SIGKILL, text, answers)


def measure_crashed(text: str, answers: Connection) -> None:
    """Measure until the process ends at the second size as a bug in a library ends it."""
    _measure_until(signal.SIGSEGV, text, answers)


def measure_mute(text: str, answers: Connection) -> None:
    """Say nonsense, and go on for long."""
    answers.send({"size": "many"})
    time.sleep(600)


def _measure_until(number: signal.Signals, text: str, answers: Connection) -> None:
    def time_steps(config: TrainConfig, size: int, *_: Any) -> Timed:
        if size > config.global_batch_size:
            os.kill(os.getpid(), number)
        return Timed(images_per_s=1.0, num_rows=72, fixed_bytes=0, step_bytes=0)

    with mock.patch.object(batch_size, "_time_steps", time_steps):
        measure_sizes(text, answers)
