"""Whatever happens to a source between appends, the newest version holds the last content of everything ever listed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.config.load import load_config
from pipelines.dataset import inspect
from pipelines.dataset.reader import open_dataset
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.unit import IngestJob, ingest_unit
from pipelines.sources.base import Unit
from tests import factories

PICTURES = [factories.make_png(seed, 9, 9) for seed in range(24)]
KEYS = [f"{label}/{number}.png" for label in "ab" for number in range(4)]
STEP = st.dictionaries(st.sampled_from(KEYS), st.none() | st.integers(0, len(PICTURES) - 1), max_size=5)
"""Key -> the picture that is written there; None removes it."""


class Folder:
    """A folder whose times are told apart, as seconds of a clock that runs on."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock = path, 1_000_000
        self.wanted: dict[str, bytes] = {}

    def write(self, step: dict[str, int | None]) -> None:
        for key, picture in step.items():
            target = self.path / key
            if picture is None:
                target.unlink(missing_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(PICTURES[picture])
            self.clock += 1
            os.utime(target, (self.clock, self.clock))
            self.wanted[key] = PICTURES[picture]  # what is gone from the source stays in the dataset


def in_process(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
    for unit in units:
        yield ingest_unit(unit, job)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, min_size=1, max_size=4))
def test_any_sequence_of_changes(steps: list[dict[str, int | None]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, out = Folder(Path(place, "set")), Path(place, "out")
        folder.write({"a/always.png": 0})
        values = {"source": str(folder.path), "out": str(out), "duplicates": {"exact": "keep"}, "append": True}
        splits: dict[str, str] = {}
        for step in [{}, *steps]:
            folder.write(step)
            stage.run(load_config(IngestConfig, inputs=values), in_process)
            dataset = open_dataset(str(out))
            stand: dict[str, bytes] = {}
            for split in dataset.splits:
                for row in dataset.table(split, ["key", "image"]).to_pylist():
                    assert row["key"] not in stand
                    stand[row["key"]] = row["image"]["bytes"]
                    assert splits.setdefault(row["key"], split) == split
            assert stand == folder.wanted
            assert list(inspect.verify(dataset)) == []
