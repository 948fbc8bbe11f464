"""The one door to MLflow runs: a run log that outlives a server that is away.

Only a run's driver process opens a `RunLog`; workers and trials hand it their records.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from pipelines.errors import ConfigError, Superseded, Unfinished
from pipelines.redact import redact
from pipelines.tracking_answers import foreign_answer, is_final, outage_text, refuse_at_start, refused_text
from pipelines.tracking_records import (
    MAX_TAG,
    Place,
    Record,
    dataset_record,
    file_record,
    metrics_record,
    params_record,
    tags_record,
)
from pipelines.tracking_runs import RUN_KEY_TAG, LogTarget, RunGoneError
from pipelines.tracking_sender import Sender
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

_PARENT_TAG = "mlflow.parentRunId"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 15.0, 60.0  # between attempts while the server is away
_LONGEST_CALL_S = 60.0  # that a call under way is waited for at the end
_LAST_CALL_S = 10.0  # the same where somebody waits for the command to end

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class RunLog:
    """One MLflow run, written by one process; nothing it is given is lost while the server is away for a time.

    A call that fails is kept in memory, in order, and sent again with a later call or at `end`; the user is told
    once. After `open` no method raises because of the server: a log must not end hours of training. Opened with
    `is_background`, no method but `end` and `logged_steps` waits for it either.
    As a context manager it ends the run as FINISHED, FAILED (an exception) or KILLED (an interrupt, or time was up);
    one whose work was done before, as FINISHED.
    """

    def __init__(self, tracking: TrackingConfig, uri: str, target: LogTarget) -> None:
        self.uri = uri
        self.run_id = target.run_id
        """Id of the run in MLflow; empty while the server has been away from the start, or tracking is off."""
        self.experiment_id = ""
        self.pause_s = _FIRST_PAUSE_S
        """Seconds without attempts after a failure; doubles up to a minute."""
        self._tracking = tracking
        self._is_enabled = tracking.enabled
        self._target = target
        self._client: MlflowClient | None = None
        self._place: Place | None = None
        self._is_open, self._is_begun = False, True
        self._raises = True
        self._is_sure = True  # False: what the store holds of this run is not known
        self._ended_as, self._patience_s = "", 0.0
        self._sender: Sender | None = None
        self._queue: deque[Record] = deque()
        self._retry_at, self._until_s = 0.0, math.inf
        self._warned: set[bool] = set()  # of an outage (False), of answers that are not MLflow's (True)
        self._has_met = bool(target.run_id or _PARENT_TAG in target.tags)
        self._refused: set[str] = set()
        self._lock = threading.Lock()  # of the queue; never held while the server is asked
        self._sending = threading.RLock()

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
        span_s: tuple[float, float] | None = None,
        is_background: bool = False,
        patience_s: float = 0.0,
        is_deferred: bool = False,
        is_met: bool = False,
    ) -> RunLog:
        """Create a run, or resume the run `run_id`, and set it RUNNING.

        With `attach`, add to the finished run `run_id` instead: its status and times stay, and where the run is gone
        nothing is recorded.

        With `span_s` the work of the run was done between these Unix times, and is told now: a run that has ended as
        this one does keeps its times, another gets these.

        Without `run_id`, a run of the experiment that carries the same tag `RUN_KEY_TAG` is resumed: a process
        killed between creating the run and writing its id down leaves no second run behind.

        With `is_met` MLflow has been met for this work before: what it refuses now passes as an outage does, and no
        error is raised.

        With `is_deferred` the store is not looked at before `begin`, which then raises as said here.

        With `is_background` records are sent by a thread. At the end of a run that succeeded a server that is away is
        waited for, up to `patience_s` seconds.

        Raises:
            ConfigError: the address or the experiment cannot be used.
            RegistryError: the store refuses us, or a database file cannot be opened.
        """
        uri = resolve_uri(tracking) if tracking.enabled else ""
        clean = {key: redact(value, name=key)[:MAX_TAG] for key, value in (tags or {}).items()}
        clean |= {_PARENT_TAG: parent_run_id} if parent_run_id else {}
        log = cls(tracking, uri, LogTarget(redact(run_name), run_id, clean, attach, span_s))
        log._patience_s = patience_s
        log._sender = Sender(log._send_waiting) if is_background else None
        log._is_begun, log._is_sure, log._raises = False, not is_deferred, not is_met
        if not is_deferred:
            log.begin()
        return log

    def begin(self) -> None:
        """Open the run that `open` was told to defer, and send what was given since."""
        self._is_begun = True
        if self._is_enabled:
            self._drain(at_start=self._raises)

    def reach(self) -> str:
        """Return the run's id, after one more attempt to open the run where that is due; empty while it is not open."""
        if self._is_enabled and not self.run_id and time.monotonic() >= self._retry_at:
            self._drain()
        return self.run_id

    @property
    def place(self) -> dict[str, Any]:
        """Where the run is, as a `TrackingConfig` has it."""
        return {**self._tracking.model_dump(mode="json"), "uri": self.uri}

    @property
    def num_waiting(self) -> int:
        """Records that were not delivered yet."""
        return len(self._queue)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; nested values become dotted names.

        MLflow parameters never change, so one that differs on resume (a worker count) becomes a tag `resumed.<name>`.
        """
        self.put(params_record(params))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; later values replace earlier ones."""
        self.put(tags_record(tags))

    def log_metrics(self, metrics: Mapping[str, float], step: int, timestamp_s: float | None = None) -> None:
        """Record figures of one step; sending the same step twice after an outage leaves one entry.

        Args:
            metrics: name to value; not-a-number is allowed.
            step: epoch or global step, whichever the caller uses throughout.
            timestamp_s: Unix time of the figures; now when not given.
        """
        self.put(metrics_record(metrics, step, timestamp_s))

    def log_dataset(self, name: str, uri: str, digest: str, context: str) -> None:
        """Tie the run to a dataset.

        Args:
            name: short name shown in MLflow.
            uri: where it lies, version included.
            digest: its fingerprint; MLflow keeps the first 36 characters.
            context: what the run did with it: "training", "validation" or "testing".
        """
        self.put(dataset_record(name, uri, digest, context))

    def log_file(self, artifact_path: str, data: bytes) -> None:
        """Store one file with the run, for example `figures/curves.png`; text files are redacted."""
        self.put(file_record(artifact_path, data))

    def logged_steps(self, metric: str) -> set[int]:
        """Return the steps at which `metric` is recorded, those not yet delivered included."""
        with self._lock:
            waiting = {step for record in self._queue for name, step in record.steps if name == metric}
            can_ask = self._client is not None and self.run_id and not self._queue
        try:
            if can_ask:
                assert self._client is not None
                stored = set(Place(self._client, self.run_id).newest(metric))
                self._is_sure = True
                return waiting | stored
        except Exception as error:  # noqa: BLE001 - boundary to another process, see _drain
            self._warn_away(error)
        self._is_sure = False
        return waiting

    def leave(self) -> None:
        """Leave status and times of the run to the newer command that has it."""
        self._target.is_attached = True

    def end(self, status: RunStatus = "FINISHED", *, waits: bool | None = None) -> None:
        """Deliver what is waiting and close the run; tell the user what could not be delivered.

        A server that is away is waited for as long as `open` was told, if the run is FINISHED or `waits` says so. One
        that is slow has as long, and a minute at least, or some seconds where somebody has called the work off; that
        the run has ended is then told before what is left. Of a run that was never begun nothing is told.
        """
        if not self._is_enabled or self._ended_as == status or not self._is_begun:
            return
        with self._lock:
            self._ended_as = status

        def send(place: Place, tried: bool) -> None:
            self._target.close(place.client, place.run_id, status)

        must_wait = status == "FINISHED" if waits is None else waits
        patience_s = self._patience_s if must_wait else 0.0
        call_s = _LONGEST_CALL_S if must_wait or status == "FAILED" else _LAST_CALL_S
        ends_s = time.monotonic() + patience_s
        self._until_s = max(ends_s, time.monotonic() + call_s)
        self._retry_at = 0.0  # it is tried in any case
        last = Record(f"status {status}", send)
        self.put(last, is_last=True)
        if self._sender is not None:
            self._sender.stop(call_s)
            self._sender = None
        if self._queue and time.monotonic() < ends_s:
            _LOGGER.warning("waiting up to %.0f s for MLflow to come back", ends_s - time.monotonic())
        while self._queue and time.monotonic() < ends_s:
            time.sleep(min(2.0, self.pause_s))
            self._drain()
        if not self._queue:
            return
        is_slow = time.monotonic() >= self._retry_at  # and not away
        if self._client is not None and self._is_open and is_slow and self._sending.acquire(blocking=False):
            self._send(self._client, last)
            self._sending.release()
        _LOGGER.warning(
            "%d records of run %r were not delivered: MLflow at %s is away, or too slow. The output folder holds every"
            " figure; going on with the run sends those of a training, and `resnet track` when it or a sweep is done.",
            *(len(self._queue), self._target.name, redact(self.uri)),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or self._target.span_s:  # the work was done, whatever becomes of telling it
            self.end("FINISHED", waits=kind is None or (self._is_open and issubclass(kind, Exception)))
        else:
            if issubclass(kind, Superseded):
                self.leave()
            self.end("FAILED" if issubclass(kind, Exception) and not issubclass(kind, Unfinished) else "KILLED")

    def put(self, record: Record, *, is_last: bool = False) -> None:
        """Take a record to be sent; after `end` none is taken."""
        if not self._is_enabled:
            return
        with self._lock:
            is_late = bool(self._ended_as) and not is_last
            if not is_late:
                record.tried = record.tried or not (self._is_open and self._is_sure)
                self._queue.append(record)
        if is_late:
            _LOGGER.warning("%s of run %r came after its end: not recorded", record.what, self._target.name)
        if is_late or not (self._is_begun or is_last):
            return
        sender = self._sender  # `end` takes it away
        if sender is not None:
            sender.wake()
        elif is_last or time.monotonic() >= self._retry_at:
            self._drain()

    def _send_waiting(self) -> float | None:
        """Send what is waiting unless the server was away a moment ago; return when to try again."""
        if time.monotonic() >= self._retry_at:
            self._drain()
        return max(0.0, self._retry_at - time.monotonic()) if self._queue else None

    def _drain(self, *, at_start: bool = False) -> None:
        """Send what is waiting, in order, until done or a call fails."""
        timeout_s = -1.0 if self._until_s == math.inf else max(0.0, self._until_s - time.monotonic())
        if self._sending.acquire(timeout=timeout_s):  # at the end a call that hangs is not waited for
            try:
                self._send_all(at_start=at_start)
            finally:
                self._sending.release()

    def _send_all(self, *, at_start: bool) -> None:
        try:
            client = self._open_run()
        except ConfigError as error:
            if at_start:
                raise
            self._warn_away(error)
            return
        except RunGoneError:
            self._queue.clear()
            self._is_enabled = False
            return
        except Exception as error:  # noqa: BLE001 - as in `_send`
            if at_start:
                refuse_at_start(error, self.uri, is_known=self._has_met)
            self._warn_away(error)
            return
        while self._queue and time.monotonic() < self._until_s:
            record = self._queue[0]
            fault = self._send(client, record)
            is_refused = is_final(fault)
            if foreign_answer(fault) and self._is_answered(client):
                # Turned away alone, as a gateway does with paths that it does not know, or MLflow was back just now.
                record.tried = True
                fault = self._send(client, record)
                is_refused = is_final(fault) or bool(foreign_answer(fault))
            if fault is not None and not is_refused:
                with self._lock:
                    for waiting in self._queue:
                        waiting.tried = True
                self._warn_away(fault)
                return
            if fault is not None and record.what not in self._refused:
                self._refused.add(record.what)
                _LOGGER.warning("%s", refused_text(fault, self.uri, self._target.name, record.what))
            with self._lock:
                self._queue.popleft()
            self.pause_s, self._retry_at = _FIRST_PAUSE_S, 0.0

    def _send(self, client: MlflowClient, record: Record) -> Exception | None:
        """Send a record; return what was raised."""
        self._place = self._place or Place(client, self.run_id)
        try:
            record.send(self._place, record.tried)
        except Exception as fault:  # noqa: BLE001 - boundary to another process: requests, SQL and S3 clients
            # raise types of their own, and a log call must not end the training it describes.
            self._place = None  # what the store holds now is not known
            return fault
        return None

    def _is_answered(self, client: MlflowClient) -> bool:
        """Return whether MLflow answers for the run."""
        try:
            return str(client.get_run(self.run_id).info.run_id) == self.run_id
        except Exception:  # noqa: BLE001 - as in `_send`
            return False

    def _open_run(self) -> MlflowClient:
        """Return a client with the run at hand, creating or resuming the run when that is still to do."""
        if self._client is not None and self._is_open:
            return self._client
        client = open_client(self.uri)
        self.experiment_id = open_experiment(client, self.uri, self._tracking.experiment)
        self.run_id, self.experiment_id = self._target.open(client, self.uri, self.experiment_id)
        self._client, self._is_open = client, True
        return client

    def _warn_away(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + self.pause_s
        self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)
        is_foreign = bool(foreign_answer(error))
        if is_foreign not in self._warned:
            self._warned.add(is_foreign)
            _LOGGER.warning("%s", outage_text(error, self.uri, self._target.name))
