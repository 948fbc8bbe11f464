"""`resnet data` where it makes new versions: what is printed, as JSON too, and what can be pasted next."""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path

import pytest

from pipelines.cli.main import run_command
from pipelines.storage import TEMPORARY, Storage
from tests.unit.dataset.rows import image_id, ingest


@pytest.fixture
def uri(tmp_path: Path) -> str:
    storage = Storage.open(tmp_path / "set")
    ingest(storage, {0: range(12)})
    return storage.uri


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = run_command(["data", *words])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_relabel_then_diff_and_log(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "c.csv"
    table.write_text("key,label\n0.png,owl\n3.png,owl\n")
    shown = said(capsys, "relabel", uri, str(table))
    assert "set: 2 images relabelled, published as v2" in shown
    assert f"resnet data diff {uri}@v1 {uri}@v2" in shown
    assert "nothing was published" in said(capsys, "relabel", uri, str(table))
    shown = said(capsys, "diff", f"{uri}@v1", f"{uri}@v2")
    assert "cat -> owl" in shown
    assert json.loads(said(capsys, "diff", f"{uri}@v1", f"{uri}@v2", "--json"))["counts"]["relabelled"] == 2
    shown = said(capsys, "log", uri)
    assert "v1" in shown
    assert "patch" in shown
    assert [line["stage"] for line in json.loads(said(capsys, "log", uri, "--json"))] == ["ingest", "patch"]


def test_retract_compact_and_purge(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "retract", uri, image_id(4), "--reason", "consent withdrawn")
    assert "1 image retracted, published as v2" in shown
    assert f"resnet data compact {uri} --purge" in shown
    found = json.loads(said(capsys, "retract", uri, image_id(4), "--json"))
    assert found == {"dataset": uri, "version": None, "images": 1, "held_by": {"1": 1, "2": 1}}
    shown = said(capsys, "compact", uri, "--purge")
    assert "2 earlier versions purged" in shown
    assert f"{uri}@v3: published, no patch stands" in shown
    assert "no version's files hold them any more" not in said(capsys, "log", uri)
    assert run_command(["data", "show", f"{uri}@v1"]) == 2
    assert "was purged" in capsys.readouterr().err


def test_exclude_needs_a_reason_and_an_image_that_is_there(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["data", "exclude", uri, "1.png"]) == 2
    assert "--reason" in capsys.readouterr().err
    assert run_command(["data", "exclude", uri, "none.png", "--reason", "x"]) == 2
    assert "'none.png' is no image of" in capsys.readouterr().err
    assert "1 image excluded, published as v2" in said(capsys, "exclude", uri, "1.png", "--reason", "x")


def test_gc_and_purge(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "exclude", uri, "1.png", "--reason", "x")
    litter = Storage.open(uri)
    litter.put(f"data/{'d' * 32}-0/part-000000-lost.parquet", b"half")
    assert "0 unfinished runs declared dead" in said(capsys, "gc", uri)  # too young
    found = json.loads(said(capsys, "gc", uri, "--older-than-hours", "0", "--json"))
    assert found["dead"] == [f"{'d' * 32}-0"]
    assert found["deleted"] == [f"data/{'d' * 32}-0/part-000000-lost.parquet"]
    assert f"{uri}@v1: purged" in said(capsys, "purge", f"{uri}@v1")
    assert run_command(["data", "purge", uri]) == 2
    assert "names no version" in capsys.readouterr().err


def test_what_a_killed_put_left_goes_with_gc_and_purge(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    left = Path(uri, TEMPORARY, "7-half")
    said(capsys, "exclude", uri, "1.png", "--reason", "x")

    def leave(age_s: float) -> None:
        left.write_bytes(b"half a shard")
        os.utime(left, (time.time() - age_s,) * 2)

    leave(60)
    said(capsys, "gc", uri, "--older-than-hours", "0")
    assert left.exists()  # a put may be at work on it
    assert "warning: 1 temporary files of the last 10 minutes are left" in said(capsys, "compact", uri, "--purge")
    leave(700)
    said(capsys, "compact", uri, "--purge")  # though every earlier version is purged by now
    assert not left.exists()
    leave(700)
    assert json.loads(said(capsys, "gc", uri, "--json"))["deleted"] == [f"{TEMPORARY}/7-half"]
    said(capsys, "exclude", uri, "2.png", "--reason", "x")
    leave(700)
    said(capsys, "purge", f"{uri}@v3")
    assert not left.exists()


def test_next_commands_can_be_pasted_where_a_folder_has_a_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage.open(tmp_path / "my data")
    ingest(storage, {0: range(12)})
    uri, page, out = storage.uri, str(tmp_path / "my page.html"), str(tmp_path / "my files")
    assert run_command(["data", "files", uri]) == 0
    assert f"resnet data files '{uri}' | tr '\\n' '\\0' | xargs -0 -r python" in capsys.readouterr().err
    for words in (
        ("show", uri),
        ("verify", uri),
        ("check", uri, "min_images_per_class=1"),
        ("export", uri, "--out", out),
        ("sheet", uri, "--page", page),
        ("duplicates", uri, "--page", page),
        ("quarantine", "list", uri),
        ("quarantine", "show", uri, "--page", page),
        ("exclude", uri, "0.png", "--reason", "x"),
        ("diff", f"{uri}@v1", uri),
        ("log", uri),
        ("compact", uri),
        ("retract", uri, "3.png"),
        ("gc", uri),
    ):
        _, steps, commands = said(capsys, *words).partition("next:\n")
        assert steps, words
        for command in commands.splitlines():
            split = shlex.split(command)
            assert split[0] in ("resnet", "python"), words
            assert any(word.startswith((uri, page, out)) for word in split), words


def test_history_is_not_deleted_for_nothing(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["data", "compact", uri, "--purge"]) == 2
    assert "no image was taken out" in capsys.readouterr().err
    said(capsys, "exclude", uri, image_id(3), "--reason", "blurred")
    said(capsys, "compact", uri)
    assert "2 earlier versions purged" in said(capsys, "compact", uri, "--purge")
