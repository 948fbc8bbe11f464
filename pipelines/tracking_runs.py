"""Which run of an MLflow store a log writes to: the one that is known by its id or by its key, or a new one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.redact import redact
from pipelines.tracking_store import find_active_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOGGER = logging.getLogger(__name__)

RUN_KEY_TAG = "resnet.run_key"
"""Tag that finds a run again when its id was not written down before a crash; give it to `RunLog.open`."""


class RunGoneError(Exception):
    """The run to add to is not in the store."""


@dataclass
class LogTarget:
    """What is known of the run before the store is asked."""

    name: str
    run_id: str
    tags: dict[str, str]
    is_attached: bool = False
    """Whether the run must be there, and its status and times are not ours to tell."""
    span_s: tuple[float, float] | None = None
    """Unix times between which the work of the run was done, where it is over; None: it is under way."""

    def open(self, client: MlflowClient, uri: str, experiment_id: str) -> tuple[str, str]:
        """Return the ids of the run and of its experiment; the run is found, else created.

        One whose work is under way is RUNNING from now on.

        Raises:
            RunGoneError: the run to add to is not there.
        """
        found, its_experiment = self._find(client, uri, experiment_id)
        if not found and self.is_attached:
            raise RunGoneError(f"run {self.run_id!r} is not in this store")
        if not found:
            start_ms = int(self.span_s[0] * 1000) if self.span_s else None
            created = client.create_run(experiment_id, start_time=start_ms, tags=self.tags, run_name=self.name)
            return str(created.info.run_id), experiment_id
        if not (self.is_attached or self.span_s):
            client.update_run(found, status="RUNNING")
        for key, value in self.tags.items():
            client.set_tag(found, key, value)
        return found, its_experiment

    def close(self, client: MlflowClient, run_id: str, status: str) -> None:
        """Write a run's end, now or when its work ended; one that has ended in that way keeps its time."""
        if self.is_attached:
            return
        if self.span_s is None:
            client.set_terminated(run_id, status=status)
            return
        info = client.get_run(run_id).info
        if info.status != status or not info.end_time:
            client.set_terminated(run_id, status=status, end_time=int(self.span_s[1] * 1000))

    def _find(self, client: MlflowClient, uri: str, experiment_id: str) -> tuple[str, str]:
        if self.run_id:
            if run := find_active_run(client, self.run_id):
                return self.run_id, str(run.info.experiment_id)
            what = "nothing is added to it" if self.is_attached else "a new run goes on in its place"
            _LOGGER.warning("run %s is no longer in %s; %s", self.run_id, redact(uri), what)
        key = self.tags.get(RUN_KEY_TAG)
        if not key:
            return "", experiment_id
        runs = client.search_runs([experiment_id], f"tags.`{RUN_KEY_TAG}` = '{key}'", max_results=1)
        return (str(runs[0].info.run_id) if runs else ""), experiment_id
