"""Pictures of a dataset's own are copies too: the contact sheet goes with a retracted image."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.cli.data_edit import purge_earlier
from pipelines.dataset.collect import compact, gc
from pipelines.dataset.corrections import exclusions
from pipelines.dataset.inspect import verify
from pipelines.dataset.patch import publish_patch
from pipelines.dataset.reader import open_dataset
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.unit import ingest_unit
from tests import factories


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
