"""Writes a run's checkpoints and records in a thread, so that no step waits for storage.

It writes in this order: records that are due, in the order given; the checkpoint, its marker last; where the run is. A
record is thus never missing before a checkpoint that stands. At most one checkpoint is in flight. Who needs the records
at once (`settle_records`) writes them himself, as the thread may be at a checkpoint for minutes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from dataclasses import dataclass

from typing_extensions import override

from pipelines.errors import PipelineError, StorageError, Superseded
from pipelines.storage import Storage
from pipelines.train.checkpoint import prune_checkpoints, save_checkpoint
from pipelines.train.owner import check_owner, find_successor
from pipelines.train.records import PROGRESS
from pipelines.train.state import Snapshot

_LOGGER = logging.getLogger(__name__)

_RETRY_S = 5.0
"""Seconds after which records that could not be written are tried again, when nothing else is."""
_SETTLE_S = 10.0
"""Seconds that records which are waited for are tried again where storage fails; spent once in an outage."""
_SETTLE_PAUSE_S = 0.5
_LAST_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between attempts at the end of a run, when what is not written would be lost."""


@dataclass(frozen=True)
class _Job:
    """A checkpoint to be written."""

    snapshot: Snapshot
    keep: tuple[int, ...]


class _Later(Storage):
    """A run's storage to those who train: what is put there is written a little later."""

    def __init__(self, writer: RunWriter, uri: str) -> None:
        super().__init__(uri)
        self._writer = writer

    @override
    def put(self, path: str, data: bytes | memoryview, *, lasts: bool = True) -> None:
        write = self._writer.note_progress if path == PROGRESS else self._writer.keep
        write(path, bytes(data))


class RunWriter:
    """What one process writes to a run's storage; one of them at a time.

    Args:
        run: storage of the run.
        owner: token of the command that trains (`claim_run`): once another has the run, no record or checkpoint is
            written any more but what is under way. Empty: nobody else is looked for.
    """

    def __init__(self, run: Storage, owner: str = "") -> None:
        self._run = run
        self._owner = owner
        self.later: Storage = _Later(self, run.uri)
        """Takes records (`keep`) and progress (`note_progress`) from those who write to a storage."""
        self._changed = threading.Condition()
        self._recording = threading.Lock()  # held by whoever writes records
        self._notes: dict[str, bytes] = {}
        self._progress: dict[str, bytes] = {}
        self._job: _Job | None = None
        self._last: _Job | None = None  # written or failed; its memory is used again
        self._failure: PipelineError | None = None  # of the last checkpoint
        self._notes_failure: PipelineError | None = None
        self._fault: BaseException | None = None  # ended the thread: a bug, not the storage
        self._thread: threading.Thread | None = None
        self._is_awake = self._is_writing = self._is_closing = False
        self._has_warned = False

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is in flight."""
        self._raise_fault()
        return self._job is not None

    @property
    def spare(self) -> Snapshot | None:
        """A snapshot whose memory may be used again; only while none is in flight."""
        return self._last.snapshot if self._last and self._job is None else None

    def keep(self, path: str, data: bytes) -> None:
        """Write a record, before any checkpoint that is started later; where storage fails, again and again."""
        with self._changed:
            self._notes[path] = data
        self._wake()

    def note_progress(self, path: str, data: bytes) -> None:
        """Say where the run is, when there is time for it; only the latest word counts, and a lost one is no harm."""
        with self._changed:
            self._progress[path] = data
        self._wake()

    def start(self, snapshot: Snapshot, *, keep: tuple[int, ...] = ()) -> None:
        """Write a checkpoint, then delete those that are neither the newest nor of the steps in `keep`.

        None may be in flight.
        """
        assert not self.is_busy, "one checkpoint at a time"
        with self._changed:
            self._failure = None
            self._job = _Job(snapshot, keep)
        self._wake()

    def wait(self, patience_s: float = math.inf) -> None:
        """Wait until no checkpoint is in flight, or so many seconds."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._job is None or self._fault is not None,
                timeout=None if patience_s == math.inf else patience_s,
            )
        self._raise_fault()

    def take_failure(self) -> PipelineError | None:
        """Return why the last checkpoint could not be written, once; None where it stands."""
        with self._changed:
            failure, self._failure = self._failure, None
        return failure

    def settle_records(self) -> None:
        """Write the records that are due in this thread; where storage fails for longer, they are left for later."""
        self._raise_fault()
        # An outage that was waited for once, or that the thread has met before, is not waited for at every epoch.
        ends_s = time.monotonic() + (_SETTLE_S if self._notes_failure is None else 0.0)
        while isinstance(self._write_records(), StorageError) and time.monotonic() < ends_s:
            time.sleep(_SETTLE_PAUSE_S)

    def drop_records(self) -> None:
        """Forget records that are not written yet: the run has gone back behind them."""
        with self._changed:
            self._changed.wait_for(self._is_idle)
            self._notes.clear()
            self._notes_failure = None  # theirs

    def finish(self) -> None:
        """Wait until everything is written, with some patience where storage fails.

        Raises:
            StorageError: the last checkpoint, or a record, is not safe.
            Superseded: the run is another command's.
        """
        for pause_s in (*_LAST_PAUSES_S, 0.0):
            with self._changed:
                self._changed.wait_for(self._is_idle)
                failure = self._failure or self._notes_failure
            self._raise_fault()
            if failure is None:
                return
            if not pause_s or isinstance(failure, Superseded):
                raise failure
            if pause_s == _LAST_PAUSES_S[0]:
                _LOGGER.warning("the end of the run cannot be written yet; trying for a while: %s", failure)
            time.sleep(pause_s)
            with self._changed:
                if self._failure is not None:
                    self._job, self._failure = self._last, None
            self._wake()

    def find_successor(self) -> Superseded | None:
        """Return what there is to say if the run is another command's; storage that is away says nothing."""
        return self.met_successor or (find_successor(self._run, self._owner) if self._owner else None)

    @property
    def met_successor(self) -> Superseded | None:
        """What there is to say if a record could not be written since the run is another command's."""
        failure = self._notes_failure
        return failure if isinstance(failure, Superseded) else None

    def close(self, patience_s: float = 0.0) -> None:
        """End the thread after what it is writing; wait for that so long at most. Nothing is raised."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(patience_s)

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _wake(self) -> None:
        """Have the thread look at what there is to write."""
        with self._changed:
            self._is_awake = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="run-writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._is_awake or self._is_closing, timeout=_RETRY_S if self._notes else None
                )
                if self._is_closing and not self._is_awake:
                    return
                self._is_awake, self._is_writing = False, True
            try:
                self._write_all()
            except BaseException as fault:  # noqa: BLE001 - a thread's boundary; the training thread raises it again
                self._fault = fault
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
            if self._fault is not None:
                return

    def _write_all(self) -> None:
        """Write what there is to write."""
        with self._changed:
            job, progress = self._job, self._progress
            self._progress = {}
        failure = self._write_records()
        if job is not None:
            failure = failure or self._write_checkpoint(job)
            with self._changed:
                self._job, self._last, self._failure = None, job, failure
                self._changed.notify_all()
        if failure is None:
            for path, data in progress.items():
                self._write_progress(path, data)

    def _is_idle(self) -> bool:
        return self._fault is not None or not (self._is_awake or self._is_writing)

    def _write_records(self) -> PipelineError | None:
        with self._recording:
            with self._changed:
                notes = dict(self._notes)
            for index, (path, data) in enumerate(notes.items()):
                try:
                    if index == 0:
                        self._check_owner()
                    self._run.put(path, data)
                except Superseded as failure:
                    self._notes_failure = failure
                    return failure
                except StorageError as failure:
                    self._notes_failure = failure
                    if not self._has_warned:
                        self._has_warned = True
                        _LOGGER.warning(
                            "records cannot be written yet; training goes on, and they are kept: %s", failure
                        )
                    return failure
                with self._changed:
                    if self._notes.get(path) is data:
                        del self._notes[path]
            self._notes_failure = None
        return None

    def _check_owner(self) -> None:
        if self._owner:
            check_owner(self._run, self._owner)

    def _write_checkpoint(self, job: _Job) -> PipelineError | None:
        try:
            self._check_owner()
            save_checkpoint(self._run, job.snapshot.step, job.snapshot.to_files())
        except (StorageError, Superseded) as failure:
            return failure
        try:
            # Whoever claimed the run meanwhile may have begun below this one, and is not to lose what stands there.
            self._check_owner()
            prune_checkpoints(self._run, job.snapshot.step, keep=job.keep)
        except Superseded as failure:
            return failure
        except StorageError as failure:  # the checkpoint stands; older ones go the next time
            _LOGGER.warning("old checkpoints could not be deleted: %s", failure)
        return None

    def _write_progress(self, path: str, data: bytes) -> None:
        with contextlib.suppress(StorageError):  # nobody needs it; what follows is told of if it fails too
            self._run.put(path, data)
