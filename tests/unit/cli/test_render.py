"""Results, tables and numbers as a terminal shows them."""

from __future__ import annotations

import json

import pytest

from pipelines.cli import render
from pipelines.stage_output import StageResult

RESULT = StageResult("train", "runs/train/abc", "k" * 32, False, {"val_top1": 0.98125, "images": 12345}, ("resnet ui",))


def test_a_result_shows_figures_and_next_commands(capsys: pytest.CaptureFixture[str]) -> None:
    render.result(RESULT)
    assert capsys.readouterr().out == (
        "train: runs/train/abc\n  val_top1  0.9812\n  images    12,345\nnext:\n  resnet ui\n"
    )


def test_a_skipped_result_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    render.result(StageResult("ingest", "d", "k", True))
    assert capsys.readouterr().out == "ingest: d  (already done, nothing was run)\n"


def test_a_result_as_json_is_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    render.result(RESULT, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "stage": "train",
        "out": "runs/train/abc",
        "key": "k" * 32,
        "skipped": False,
        "figures": {"val_top1": 0.98125, "images": 12345},
        "next_commands": ["resnet ui"],
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 猫 🐈", "plain ä 猫 🐈"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\nb\r", "a\\x0ab\\x0d"),
        ("\x9b31m", "\\x9b31m"),
        ("tab\tstays", "tab\tstays"),
        ("half \udcff byte", "half \\udcff byte"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
    ],
)
def test_clean_escapes_what_could_drive_a_terminal(text: str, shown: str) -> None:
    assert render.clean(text) == shown


def test_a_table_lines_up(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(("class", "train"), [("cat", 1200), ("a \x1b", 7)])
    assert capsys.readouterr().out == "class   train\ncat     1,200\na \\x1b  7\n"
