"""What the driver makes of a run's records and notes: handed on, and said."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from pipelines.storage import Storage
from pipelines.train.follow import Follower
from pipelines.train.records import write_record
from tests.unit.train.notes import make_record, note_progress


def test_a_follower_hands_on_every_record_once_and_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Storage.open(tmp_path)
    note_progress(run, loss=3.0)  # of an attempt before this one
    seen: list[int] = []
    with Follower(run, lambda record: seen.append(record.epoch)) as follower:
        follower.poll()
        assert seen == []
        for epoch in (1, 2):
            write_record(run, make_record(epoch))
        follower.poll()
        follower.poll()
        note_progress(run, epoch=3, images=50)
        follower.poll()
        note_progress(run, epoch=3, images=40)  # restarted behind it
        follower.poll()
        write_record(run, make_record(3))
        note_progress(run, epoch=3, images=100, loss=1.0)
    assert seen == [1, 2, 3]
    assert "train: 100/100 images" in capsys.readouterr().err


def test_each_epoch_is_said_with_what_would_make_it_wait_less(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Storage.open(tmp_path)
    write_record(run, make_record(1))  # said by an earlier attempt
    with Follower(run, lambda _: None) as follower:
        write_record(run, make_record(2, images_per_s=1234.5, data_wait_fraction=0.04))
        follower.poll()
        assert capsys.readouterr().err == ""
        note_progress(run, epoch=3, step=9)
        follower.poll()
        write_record(run, make_record(3, val_top1=None, val_map=0.5, data_wait_fraction=0.34))
        follower.poll()
        follower.poll()
    assert capsys.readouterr().err.splitlines() == [
        "train: epoch 2/9, loss 1.000, val_top1 52.0%, 1,234 images/s, waited for data 4% of the time",
        "train: epoch 3/9, loss 1.000, val_map 50.0%, 100 images/s, waited for data 34% of the time;"
        " to wait less: loader_threads=8 decodes faster",
        "train: 5/100 images, 0.00/s, in 0 s  epoch 3  step 9  loss 1.250  val 52.0%  data-wait 12%",
    ]


class Terminal(io.StringIO):
    """Says that somebody is looking."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_epochs_stand_above_the_live_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, terminal = Storage.open(tmp_path), Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Follower(run, lambda _: None) as follower:
        note_progress(run)
        follower.poll()
        write_record(run, make_record(1))
        note_progress(run, epoch=2, images=50, wait_fraction=None)
    lines = terminal.getvalue().split("\n")
    assert lines[0].startswith("\r\x1b[Ktrain: epoch 1/9, loss 1.000, val_top1 51.0%")
    assert "train: 50/100 images" in lines[1]
    assert "val 51.0%  data-wait 0%" in lines[1]


def test_an_epoch_that_is_done_again_otherwise_is_said_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Storage.open(tmp_path)
    write_record(run, make_record(1))
    with Follower(run, lambda _: None) as follower:
        note_progress(run)
        follower.poll()
        write_record(run, make_record(1, lr=0.05))
    assert "epoch 1/9" in capsys.readouterr().err
