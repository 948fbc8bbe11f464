"""Whatever happens to a source between appends, the newest version holds the last content of everything ever listed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
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
BROKEN = PICTURES[0][:60]
KEYS = [f"{label}/{number}.png" for label in "ab" for number in range(4)]
CONTENT = st.sampled_from([None, BROKEN, *PICTURES])
"""What a step leaves under a key; None removes it."""
STEP = st.tuples(st.dictionaries(st.sampled_from(KEYS), CONTENT, max_size=5), st.booleans())
"""What happens to the source, and whether an append follows (or a retry of what is refused)."""


class World:
    """A folder whose times are told apart, as seconds of a clock that runs on; and what a dataset of it must hold."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock = path, 1_000_000
        self.content: dict[str, bytes] = {}
        self.unread: set[str] = set()
        self.wanted: dict[str, bytes] = {}
        self.refused: set[str] = set()

    def write(self, step: dict[str, bytes | None]) -> None:
        for key, data in step.items():
            target = self.path / key
            self.unread.add(key)
            if data is None:
                target.unlink(missing_ok=True)
                self.content.pop(key, None)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            self.clock += 1
            os.utime(target, (self.clock, self.clock))
            self.content[key] = data

    def read(self, keys: set[str]) -> None:
        """Expect what reading these keys comes to; what is gone from the source stays in the dataset."""
        for key in keys & self.content.keys():
            if self.content[key] == BROKEN:
                self.refused.add(key)
            else:
                self.refused.discard(key)
                self.wanted[key] = self.content[key]
        self.unread -= keys


def in_process(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
    for unit in units:
        yield ingest_unit(unit, job)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, min_size=1, max_size=4))
@example([({KEYS[0]: BROKEN, KEYS[1]: BROKEN}, True), ({KEYS[0]: PICTURES[1]}, False), ({KEYS[1]: PICTURES[1]}, False)])
@example([({KEYS[0]: PICTURES[1]}, True), ({KEYS[0]: BROKEN}, True), ({KEYS[0]: PICTURES[2]}, False)])
@example([({KEYS[0]: PICTURES[1]}, True), ({KEYS[0]: BROKEN}, True), ({KEYS[0]: PICTURES[1]}, True)])
def test_any_sequence_of_changes(steps: list[tuple[dict[str, bytes | None], bool]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        world, out = World(Path(place, "set")), Path(place, "out")
        world.write({"a/always.png": PICTURES[0]})
        values = {"source": str(world.path), "out": str(out), "duplicates": {"exact": "keep"}, "append": True}
        values["max_quarantined_fraction"] = 1.0
        splits: dict[str, str] = {}
        for step, appends in [({}, True), *steps]:
            world.write(step)
            world.read(set(world.unread) if appends else set(world.refused))
            stage.run(load_config(IngestConfig, inputs={**values, "retry_failed": not appends}), in_process)
            dataset = open_dataset(str(out))
            stand: dict[str, bytes] = {}
            for split in dataset.splits:
                for row in dataset.table(split, ["key", "image"]).to_pylist():
                    assert row["key"] not in stand
                    stand[row["key"]] = row["image"]["bytes"]
                    assert splits.setdefault(row["key"], split) == split
            assert stand == world.wanted
            assert sorted(row["key"] for row in inspect.quarantined(dataset)) == sorted(world.refused)
            counts = dataset.catalog["counts"]
            assert counts["written"] == len(stand)
            assert counts["quarantined"] == len(world.refused)
            assert counts["members"] == counts["written"] + counts["quarantined"] + counts["dropped"]
            assert list(inspect.verify(dataset)) == []
