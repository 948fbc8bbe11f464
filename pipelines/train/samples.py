"""Samples of what a run's processes took of their machines, as they stand in the run's storage (`machine_use.py`)."""

from __future__ import annotations

import logging

from pipelines.errors import NotFound, StorageError
from pipelines.storage import Storage
from pipelines.tracking_records import Point
from pipelines.train.versioned import parse_versioned

_LOGGER = logging.getLogger(__name__)

FORMAT_VERSION = 1
FOLDER = "system"


class SampleReader:
    """Hands out each sample once.

    A file that cannot be understood is left out, and said once: they are written without waiting for a disk, so a
    power cut may leave one empty.

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
        self._has_warned = False

    def read_new(self) -> list[Point]:
        """Return the samples that have appeared since the last call, under MLflow's names for figures of a system.

        Raises:
            StorageError: there is nothing to hand out, and a file cannot be read; a later call tries again.
        """
        points: list[Point] = []
        failure: StorageError | None = None
        for file in self._run.list(FOLDER):
            if self._sizes.get(file.path) == file.size:
                continue
            try:
                data = self._run.read(file.path)
            except NotFound:
                continue
            except StorageError as error:
                failure = error
                continue
            found = self._understand(file.path, data)
            points += found[self._handed.get(file.path, 0) :]
            self._sizes[file.path] = file.size
            self._handed[file.path] = max(len(found), self._handed.get(file.path, 0))
        if failure is not None and not points:
            raise failure
        return points

    def _understand(self, path: str, data: bytes) -> list[Point]:
        try:
            content = parse_versioned(data, FORMAT_VERSION)
            return [self._to_point(int(content["worker"]), sample) for sample in content["samples"]]
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            if not self._has_warned:
                self._has_warned = True
                _LOGGER.warning("%s is left out of what MLflow is told: %s", self._run.address(path), error)
            return []

    def _to_point(self, worker: int, sample: dict[str, float]) -> Point:
        figures = {f"system/worker_{worker}/{name}": float(value) for name, value in sample.items() if name != "at_s"}
        # Clocks of nodes differ: a sample from before the start is one of its first seconds.
        return Point(max(0, int(sample["at_s"] - self._started_s)), figures, sample["at_s"])
