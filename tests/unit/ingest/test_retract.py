"""Pictures of a dataset's own are copies too: the contact sheet goes with a retracted image."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.cli.data_edit import purge_earlier
from pipelines.cli.main import run_command
from pipelines.dataset.collect import compact, gc
from pipelines.dataset.corrections import exclusions
from pipelines.dataset.inspect import verify
from pipelines.dataset.patch import publish_patch
from pipelines.dataset.quarantine import read_quarantine
from pipelines.dataset.reader import open_dataset
from pipelines.errors import InputError
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.unit import ingest_unit
from tests import factories
from tests.unit.ingest.test_append import SMALL_SPLIT, by_key, grow, ingest


def test_no_sheet_outlives_a_retracted_image(tmp_path: Path) -> None:
    source = factories.write_class_folder(tmp_path / "set", {"cat": 6, "dog": 6})
    config = IngestConfig(source=str(source), out=str(tmp_path / "out"))
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    dataset = open_dataset(str(tmp_path / "out"))
    sheets = set(dataset.catalog["sheet"].values())
    gc(dataset.storage)
    assert all(dataset.storage.exists(path) for path in sheets)  # a version names them

    publish_patch(dataset.uri, exclusions(dataset, ["cat/0000.jpg"], "", "consent withdrawn"))
    compact(dataset.uri)
    purge_earlier(dataset.uri)
    assert not any(dataset.storage.exists(path) for path in sheets)
    assert "sheet" not in open_dataset(dataset.uri).catalog


def test_what_was_taken_out_stays_out_when_its_row_is_gone(tmp_path: Path) -> None:
    source = factories.write_class_folder(tmp_path / "set", {"cat": 6, "dog": 6})
    out = str(tmp_path / "out")

    def ingest() -> None:
        config = IngestConfig(source=str(source), out=out, append=True)
        stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))

    ingest()
    for key in ("cat/0000.jpg", "dog/0001.jpg"):
        dataset = open_dataset(out)
        publish_patch(dataset.uri, exclusions(dataset, [key], "", "consent withdrawn"))
        compact(dataset.uri)
    purge_earlier(out)
    gc(open_dataset(out).storage)
    for path in sorted(source.rglob("*.jpg")):
        os.utime(path, (1, 1))  # as a copy or a checkout does
    (source / "cat" / "new.jpg").write_bytes(factories.make_jpeg(99))
    ingest()
    dataset = open_dataset(out)
    keys = {key for split in dataset.splits for key in dataset.table(split, ["key"]).column("key").to_pylist()}
    assert len(keys) == dataset.catalog["rows"] == 11
    assert not keys & {"cat/0000.jpg", "dog/0001.jpg"}
    assert "cat/new.jpg" in keys
    assert dataset.catalog["difference"]["withheld"] == 2
    assert not list(verify(dataset))


def _holds(out: Path, data: bytes) -> list[Path]:
    """Return the files below a folder in which some Parquet column holds bytes, or that hold them as they are."""
    return [
        path
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and (
            data in path.read_bytes()
            or (path.suffix == ".parquet" and any(data in _bytes_in(row) for row in pq.read_table(path).to_pylist()))
        )
    ]


def _bytes_in(value: object) -> bytes:
    """Return all bytes below a value of a row, joined."""
    if isinstance(value, bytes):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return b"|".join(_bytes_in(part) for part in parts)


def _thumbnail(out: str, key: str) -> bytes:
    rows = [row for row in read_quarantine(open_dataset(out), accepted=None) if row["key"] == key]
    assert len(rows) == 1
    assert isinstance(rows[0]["thumbnail"], bytes)
    return rows[0]["thumbnail"]


def _command(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run_command(["data", *words, "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_the_thumbnail_of_a_refused_member_goes_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = factories.write_class_folder(tmp_path / "set", {"cat": 12, "dog": 8})
    shutil.copy(folder / "cat/0000.jpg", folder / "dog/copy.jpg")
    settings = {"duplicates": {"conflicts": "quarantine"}, "max_quarantined_fraction": 1.0}
    dataset, _ = ingest(folder, tmp_path / "out", **settings)
    out = dataset.uri
    picture = _thumbnail(out, "dog/copy.jpg")
    assert _holds(tmp_path / "out", picture)

    for key, version in (("dog/copy.jpg", 2), ("cat/0000.jpg", 3), ("cat/0000.jpg", None)):  # they look the same
        said = _command(capsys, "retract", out, key)
        assert (said["version"], said["images"]) == (version, 1)
        assert said["held_by"] == {str(number + 1): 1 for number in range(3 if key[0] == "c" else 2)}
    assert _command(capsys, "compact", out, "--purge")["version"] == 4
    assert _holds(tmp_path / "out", picture) == []
    now = open_dataset(out)
    assert list(verify(now)) == []
    assert (now.fingerprint, now.catalog["counts"]) == (dataset.fingerprint, dataset.catalog["counts"])
    assert {row["key"] for row in read_quarantine(now)} == {"dog/copy.jpg", "cat/0000.jpg"}  # the words stay
    assert _command(capsys, "retract", out, "dog/copy.jpg")["held_by"] == {}
    assert compact(out) is None

    (folder / "cat/0000.jpg").unlink()  # so that nothing but the retraction keeps the other one out
    retried, read = ingest(folder, tmp_path / "out", retry_failed=True, **settings)
    assert (retried.version, read) == (4, [])
    os.utime(folder / "dog/copy.jpg", (1, 1))
    assert grow(folder, tmp_path / "out", **settings)[1] == []


def test_the_thumbnail_of_a_changed_image_that_leaked_goes_with_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = factories.write_class_folder(tmp_path / "set", {"cat": 24, "dog": 16})
    dataset, _ = ingest(folder, tmp_path / "out", **SMALL_SPLIT)
    places = by_key(dataset)
    train, test = (next(key for key, (of, _) in sorted(places.items()) if of == split) for split in ("train", "test"))
    shutil.copy(folder / test, folder / train)
    dataset, _ = grow(folder, tmp_path / "out")
    out = dataset.uri
    picture = _thumbnail(out, train)
    assert train in by_key(dataset)  # as it was

    said = _command(capsys, "retract", out, train)
    assert (said["version"], said["held_by"]) == (3, {"1": 1, "2": 1, "3": 1})
    assert _command(capsys, "compact", out, "--purge")["version"] == 4
    assert _holds(tmp_path / "out", picture) == []
    assert list(verify(open_dataset(out))) == []
    assert train not in by_key(open_dataset(out))


def test_only_retract_may_name_a_refused_member(tmp_path: Path) -> None:
    folder = factories.write_class_folder(tmp_path / "set", {"cat": 12})
    (folder / "cat/bad.jpg").write_bytes(b"no image")
    dataset, _ = ingest(folder, tmp_path / "out", max_quarantined_fraction=1.0)
    with pytest.raises(InputError, match="is no image of"):
        exclusions(dataset, ["cat/bad.jpg"], "", "x")
    (change,) = exclusions(dataset, ["cat/bad.jpg"], "", "x", refused=True)
    assert publish_patch(dataset.uri, [change]) == 2
    assert publish_patch(dataset.uri, [change]) is None  # done already
