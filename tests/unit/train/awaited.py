"""Training whose writes are done where they are asked for, so that a test can count them and die at each."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.train import run_writer
from pipelines.train.run_writer import RunWriter


def await_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the training thread itself write what the writer's thread would."""
    monkeypatch.setattr(RunWriter, "_wake", RunWriter._write_all)


def die_after_checkpoint(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Await writes, and raise right after the given checkpoint stands."""
    saved = 0
    save = run_writer.save_checkpoint

    def save_and_die(*arguments: Any) -> None:
        nonlocal saved
        save(*arguments)
        saved += 1
        if saved == number:
            raise error

    await_writes(monkeypatch)
    monkeypatch.setattr(run_writer, "save_checkpoint", save_and_die)
