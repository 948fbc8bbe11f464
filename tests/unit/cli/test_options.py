"""What the options that several commands share refuse before any work is done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.cli.main import run_command
from pipelines.storage import Storage
from tests.unit.dataset.rows import ingest

WRITERS = {
    "sheet-page": ("data", "sheet", "{set}", "--page", "{file}"),
    "sheet-numbers": ("data", "sheet", "{set}", "--page", "{beside}", "--numbers", "{file}"),
    "quarantine": ("data", "quarantine", "show", "{set}", "--page", "{file}"),
    "duplicates-page": ("data", "duplicates", "{set}", "--page", "{file}"),
    "duplicates-table": ("data", "duplicates", "{set}", "--table", "{file}"),
    "describe": ("describe", "resnet18", "--svg", "{file}"),
    "find-lr": ("train", "{set}", "--find-lr", "{file}"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_cannot_be_written_is_refused_first(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage.open(tmp_path / "set")
    ingest(storage, {0: range(4)})
    (tmp_path / "folder.png").mkdir()
    for file, message in (
        ("my no/x.png", f"there is no folder {tmp_path}/my no\n  mend:  mkdir -p '{tmp_path}/my no', or name"),
        ("folder.png", "it is a folder"),
    ):
        places = {"set": storage.uri, "file": str(tmp_path / file), "beside": str(tmp_path / "beside.html")}
        assert run_command([word.format(**places) for word in WRITERS[name]]) == 2
        assert f"{tmp_path / file} cannot be written: {message}" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["folder.png", "set"]


def test_a_file_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_command(["describe", "resnet18", "--svg", "~/net.svg"]) == 0
    assert f"drawn: {tmp_path}/net.svg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--smoke", "--find-lr", "{tmp}/x.png"), "--smoke and --find-lr are two looks at a training"),
        (("--find-lr", "{tmp}/x.svg"), "--find-lr draws a PNG, and"),
    ],
    ids=["both", "no-png"],
)
def test_a_range_test_that_cannot_be_is_refused_before_anything_is_ingested(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["train", str(tmp_path), *(word.format(tmp=tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err
