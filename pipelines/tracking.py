"""The one door to MLflow runs: a run log that outlives a server that is away.

Only a run's driver process opens a `RunLog`; workers and trials hand it their records.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from pipelines.errors import ConfigError, RegistryError, Unfinished
from pipelines.redact import flatten, redact
from pipelines.tracking_store import (
    TrackingConfig,
    browser_address,
    is_server,
    open_client,
    open_experiment,
    process_wide,
    refuse_local_store,
    resolve_uri,
    safe_environment,
    store_faults,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "RUN_KEY_TAG",
    "RunLog",
    "RunStatus",
    "TrackingConfig",
    "browser_address",
    "is_server",
    "open_client",
    "open_experiment",
    "process_wide",
    "refuse_local_store",
    "resolve_uri",
    "safe_environment",
    "store_faults",
]

_LOGGER = logging.getLogger(__name__)

RUN_KEY_TAG = "resnet.run_key"
"""Tag that finds a run again when its id was not written down before a crash; give it to `RunLog.open`."""

_MAX_VALUE = 6000  # characters of a parameter value (mlflow/utils/validation.py)
_MAX_TAG = 5000  # of a tag value; the longest that every MLflow backend keeps whole
_BATCH = 100  # parameters or tags a call
_METRIC_BATCH = 1000
_MAX_DIGEST = 36
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 15.0, 60.0  # between attempts while the server is away
_TEXT_SUFFIXES = (".yaml", ".yml", ".json", ".txt", ".md", ".toml")

# Errors that sending the same thing again cannot mend; everything else is taken for an outage and kept.
_PERMANENT = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "NOT_FOUND")
_REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass
class _Record:
    """One call to MLflow, kept until it was answered."""

    what: str
    send: Callable[[MlflowClient, str, bool], None]  # (client, run id, was an earlier attempt made)
    tried: bool = False
    steps: tuple[tuple[str, int], ...] = ()  # (metric, step) pairs it holds


class _RunGoneError(Exception):
    """The run to add to is not in the store."""


class RunLog:
    """One MLflow run, written by one process; nothing it is given is lost while the server is away for a time.

    A call that fails is kept in memory, in order, and sent again with a later call or at `end`; the user is told
    once. After `open` no method raises because of the server: a log must not end hours of training.
    As a context manager it ends the run as FINISHED, FAILED (an exception) or KILLED (an interrupt, or time was up).
    """

    def __init__(
        self,
        tracking: TrackingConfig,
        uri: str,
        *,
        run_name: str,
        run_id: str,
        parent_run_id: str,
        tags: dict[str, str],
    ) -> None:
        self.uri = uri
        self.run_id = run_id
        """Id of the run in MLflow; empty while the server has been away from the start, or tracking is off."""
        self.experiment_id = ""
        self.pause_s = _FIRST_PAUSE_S
        """Seconds without attempts after a failure; doubles up to a minute."""
        self._tracking = tracking
        self._is_enabled = tracking.enabled
        self._run_name = redact(run_name)
        self._tags = tags | ({"mlflow.parentRunId": parent_run_id} if parent_run_id else {})
        self._client: MlflowClient | None = None
        self._is_open = False
        self._is_attached = False
        self._queue: deque[_Record] = deque()
        self._retry_at = 0.0
        self._has_warned = False
        self._num_dropped = 0
        self._lock = threading.RLock()

    @classmethod
    def open(
        cls,
        tracking: TrackingConfig,
        *,
        run_name: str,
        run_id: str = "",
        parent_run_id: str = "",
        tags: Mapping[str, str] | None = None,
        attach: bool = False,
    ) -> RunLog:
        """Create a run, or resume the run `run_id`, and set it RUNNING.

        With `attach`, add to the finished run `run_id` instead: its status and times stay, and where the run is gone
        nothing is recorded.

        Without `run_id`, a run of the experiment that carries the same tag `RUN_KEY_TAG` is resumed: a process
        killed between creating the run and writing its id down leaves no second run behind.

        Raises:
            ConfigError: the address or the experiment cannot be used.
            RegistryError: the store refuses us, or a database file cannot be opened.
        """
        uri = resolve_uri(tracking) if tracking.enabled else ""
        clean = {key: redact(value, name=key)[:_MAX_TAG] for key, value in (tags or {}).items()}
        log = cls(tracking, uri, run_name=run_name, run_id=run_id, parent_run_id=parent_run_id, tags=clean)
        log._is_attached = attach
        if tracking.enabled:
            log._drain(at_start=True)
        return log

    @property
    def num_waiting(self) -> int:
        """Records that were not delivered yet."""
        return len(self._queue)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; nested values become dotted names.

        MLflow parameters never change, so one that differs on resume (a worker count) becomes a tag `resumed.<name>`.
        """
        flat = {key[:250]: value[:_MAX_VALUE] for key, value in flatten(params).items()}

        def send(client: MlflowClient, run_id: str, tried: bool) -> None:
            from mlflow.entities import Param, RunTag

            standing = client.get_run(run_id).data.params
            new = [Param(key, value) for key, value in flat.items() if key not in standing]
            changed = [
                RunTag(f"resumed.{key}"[:250], value[:_MAX_TAG])
                for key, value in flat.items()
                if standing.get(key, value) != value
            ]
            for start in range(0, len(new), _BATCH):
                client.log_batch(run_id, params=new[start : start + _BATCH], synchronous=True)
            for start in range(0, len(changed), _BATCH):
                client.log_batch(run_id, tags=changed[start : start + _BATCH], synchronous=True)

        self._put(_Record("parameters", send))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; later values replace earlier ones."""
        clean = {key: redact(value, name=key)[:_MAX_TAG] for key, value in tags.items()}

        def send(client: MlflowClient, run_id: str, tried: bool) -> None:
            from mlflow.entities import RunTag

            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in clean.items()], synchronous=True)

        self._put(_Record("tags", send))

    def log_metrics(self, metrics: Mapping[str, float], step: int, timestamp_s: float | None = None) -> None:
        """Record figures of one step; sending the same step twice after an outage leaves one entry.

        Args:
            metrics: name to value; not-a-number is allowed.
            step: epoch or global step, whichever the caller uses throughout.
            timestamp_s: Unix time of the figures; now when not given.
        """
        values = {name: float(value) for name, value in metrics.items()}
        stamp_ms = int((time.time() if timestamp_s is None else timestamp_s) * 1000)

        def send(client: MlflowClient, run_id: str, tried: bool) -> None:
            from mlflow.entities import Metric

            due = values
            if tried:  # an earlier process, or an attempt whose answer was lost, may have written this step
                due = {name: value for name, value in values.items() if step not in _steps(client, run_id, name)}
            batch = [Metric(name, value, stamp_ms, step) for name, value in due.items()]
            for start in range(0, len(batch), _METRIC_BATCH):
                client.log_batch(run_id, metrics=batch[start : start + _METRIC_BATCH], synchronous=True)

        self._put(_Record("metrics", send, steps=tuple((name, step) for name in values)))

    def log_dataset(self, name: str, uri: str, digest: str, context: str) -> None:
        """Tie the run to a dataset.

        Args:
            name: short name shown in MLflow.
            uri: where it lies, version included.
            digest: its fingerprint; MLflow keeps the first 36 characters.
            context: what the run did with it: "training", "validation" or "testing".
        """
        source = json.dumps({"uri": redact(uri)})
        kind = urlsplit(uri).scheme or "local"

        def send(client: MlflowClient, run_id: str, tried: bool) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            dataset = Dataset(name=name, digest=digest[:_MAX_DIGEST], source_type=kind, source=source)
            client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

        self._put(_Record("dataset", send))

    def log_file(self, artifact_path: str, data: bytes) -> None:
        """Store one file with the run, for example `figures/curves.png`; text files are redacted."""
        path = PurePosixPath(artifact_path)
        if path.suffix in _TEXT_SUFFIXES:
            data = redact(data.decode("utf-8", errors="surrogateescape")).encode("utf-8", errors="surrogateescape")
        folder = None if str(path.parent) == "." else str(path.parent)

        def send(client: MlflowClient, run_id: str, tried: bool) -> None:
            with tempfile.TemporaryDirectory(prefix="resnet-") as scratch:
                local = Path(scratch, path.name)
                local.write_bytes(data)
                client.log_artifact(run_id, str(local), folder)

        self._put(_Record(f"file {artifact_path}", send))

    def logged_steps(self, metric: str) -> set[int]:
        """Return the steps at which `metric` is recorded, those not yet delivered included."""
        with self._lock:
            waiting = {step for record in self._queue for name, step in record.steps if name == metric}
            if self._client is None or not self.run_id or self._queue:
                return waiting
            try:
                return waiting | _steps(self._client, self.run_id, metric)
            except Exception as error:  # noqa: BLE001 - boundary to another process, see _drain
                self._warn_away(error)
                return waiting

    def end(self, status: RunStatus = "FINISHED") -> None:
        """Deliver what is waiting and close the run; tell the user what could not be delivered."""
        if not self._is_enabled:
            return

        def send(client: MlflowClient, run_id: str, tried: bool) -> None:
            client.set_terminated(run_id, status=status)

        self._put(_Record(f"status {status}", (lambda *_: None) if self._is_attached else send), is_last=True)
        with self._lock:
            if self._queue:
                _LOGGER.warning(
                    "%d records of run %r were not delivered: MLflow at %s is still away. "
                    "The output folder holds every figure; `resnet track` sends those of a training later.",
                    *(len(self._queue), self._run_name, redact(self.uri)),
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.end("FINISHED")
        else:
            is_fault = issubclass(kind, Exception) and not issubclass(kind, Unfinished)
            self.end("FAILED" if is_fault else "KILLED")

    def _put(self, record: _Record, *, is_last: bool = False) -> None:
        if not self._is_enabled:
            return
        with self._lock:
            self._queue.append(record)
            if is_last or time.monotonic() >= self._retry_at:
                self._drain()

    def _drain(self, *, at_start: bool = False) -> None:
        """Send what is waiting, in order, until done or a call fails."""
        try:
            client = self._open_run()
        except ConfigError:
            raise
        except _RunGoneError:
            self._queue.clear()
            self._is_enabled = False
            return
        except Exception as error:
            if at_start and (self.uri.startswith("sqlite:") or _code(error) in _PERMANENT + _REFUSED):
                if isinstance(error, RegistryError):
                    raise
                raise RegistryError(
                    f"MLflow cannot open a run: {redact(str(error))[:500]}",
                    where=redact(self.uri),
                    mend="check tracking.uri and its credentials, or run with tracking.enabled=false",
                ) from error
            self._warn_away(error)
            return
        while self._queue:
            record = self._queue[0]
            try:
                record.send(client, self.run_id, record.tried)
            except Exception as error:  # noqa: BLE001 - boundary to another process: requests, SQL and S3 clients
                # raise types of their own, and a log call must not end the training it describes.
                if _code(error) not in _PERMANENT:
                    for waiting in self._queue:
                        waiting.tried = True
                    self._warn_away(error)
                    return
                self._num_dropped += 1
                if self._num_dropped == 1:
                    _LOGGER.warning("MLflow refused %s of run %r: %s", record.what, self._run_name, redact(str(error)))
            self._queue.popleft()
            self.pause_s = _FIRST_PAUSE_S

    def _open_run(self) -> MlflowClient:
        """Return a client with the run at hand, creating or resuming the run when that is still to do."""
        if self._client is not None and self._is_open:
            return self._client
        client = open_client(self.uri)
        self.experiment_id = open_experiment(client, self.uri, self._tracking.experiment)
        found = self._find_run(client)
        if not found and self._is_attached:
            raise _RunGoneError(f"run {self.run_id!r} is not in this store")
        if found:
            if not self._is_attached:
                client.update_run(found, status="RUNNING")
            for key, value in self._tags.items():
                client.set_tag(found, key, value)
        else:
            found = client.create_run(self.experiment_id, tags=self._tags, run_name=self._run_name).info.run_id
        self._client, self.run_id, self._is_open = client, found, True
        return client

    def _find_run(self, client: MlflowClient) -> str:
        from mlflow.exceptions import MlflowException

        if self.run_id:
            try:
                run = client.get_run(self.run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                run = None
            if run is not None and run.info.lifecycle_stage == "active":
                self.experiment_id = run.info.experiment_id
                return self.run_id
            what = "nothing is added to it" if self._is_attached else "a new run goes on in its place"
            _LOGGER.warning("run %s is no longer in %s; %s", self.run_id, redact(self.uri), what)
        key = self._tags.get(RUN_KEY_TAG)
        if not key:
            return ""
        runs = client.search_runs([self.experiment_id], f"tags.`{RUN_KEY_TAG}` = '{key}'", max_results=1)
        return str(runs[0].info.run_id) if runs else ""

    def _warn_away(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + self.pause_s
        self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)
        if not self._has_warned:
            self._has_warned = True
            _LOGGER.warning(
                "MLflow at %s does not answer (%s); run %r goes on, its records are kept and sent later.",
                redact(self.uri),
                redact(str(error)).splitlines()[0][:200] if str(error) else type(error).__name__,
                self._run_name,
            )


def _steps(client: MlflowClient, run_id: str, metric: str) -> set[int]:
    return {point.step for point in client.get_metric_history(run_id, metric)}


def _code(error: Exception) -> str:
    return str(getattr(error, "error_code", ""))
