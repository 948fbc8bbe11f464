"""Samples of what a run's processes took of their machines, as they stand in the run's storage (`machine_use.py`)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipelines.errors import NotFound
from pipelines.storage import Storage
from pipelines.tracking_records import Point

FORMAT_VERSION = 1
FOLDER = "system"


class SampleReader:
    """Hands out each sample once.

    Args:
        run: storage of the run.
        started_s: Unix time at which the run was begun first; steps of the points are seconds since then, as a restart
            then changes none.
    """

    def __init__(self, run: Storage, started_s: float) -> None:
        self._run = run
        self._started_s = started_s
        self._sizes: dict[str, int] = {}
        self._handed: dict[str, int] = {}

    def read_new(self) -> list[Point]:
        """Return the samples that have appeared since the last call, under MLflow's names for figures of a system."""
        points: list[Point] = []
        for file in self._run.list(FOLDER):
            if self._sizes.get(file.path) == file.size:
                continue
            try:
                content = json.loads(self._run.read(file.path))
            except NotFound:
                continue
            samples: Sequence[dict[str, float]] = content["samples"]
            points += [
                self._to_point(content["worker"], sample) for sample in samples[self._handed.get(file.path, 0) :]
            ]
            self._handed[file.path], self._sizes[file.path] = len(samples), file.size
        return points

    def _to_point(self, worker: int, sample: dict[str, float]) -> Point:
        figures = {f"system/worker_{worker}/{name}": value for name, value in sample.items() if name != "at_s"}
        # Clocks of nodes differ: a sample from before the start is one of its first seconds.
        return Point(max(0, int(sample["at_s"] - self._started_s)), figures, sample["at_s"])
