"""A trial may be ended after any epoch: what its process took of the machine stands before the epoch is reported."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from pipelines.storage import Storage
from pipelines.train import machine_use
from pipelines.train.machine_use import MachineUse
from pipelines.train.samples import SampleReader


def test_samples_stand_after_an_epoch_and_nothing_comes_behind_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_use, "_EVERY_S", 60.0)
    run, written = Storage.open(tmp_path), []
    put = run.put

    def count(path: str, data: bytes, *, lasts: bool = True) -> None:
        written.append(path)
        put(path, data, lasts=lasts)

    monkeypatch.setattr(run, "put", count)
    reader = SampleReader(run, 0.0)
    with MachineUse(run, 0, torch.device("cpu")) as use:
        time.sleep(0.15)
        for _ in range(3):
            use.settle()
        assert len(reader.read_new()) == len(written) == 1
        time.sleep(1.05)
        use.settle()
        time.sleep(1.05)
    assert not reader.read_new()  # the sweep may have looked for the last time
    assert len(written) == 1
