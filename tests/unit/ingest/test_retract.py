"""Pictures of a dataset's own are copies too: the contact sheet goes with a retracted image."""

from __future__ import annotations

from pathlib import Path

from pipelines.cli.data_edit import purge_earlier
from pipelines.dataset.collect import compact, gc
from pipelines.dataset.corrections import exclusions
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
