"""Word that a training will soon be ended from outside: SIGTERM, a note in the run's storage, a node that is drained.

Clouds and schedulers take machines away with seconds to minutes of notice. The loop asks at every sync and leaves a
checkpoint at once. Told the driver, the run ends; told a worker alone, all stop at that checkpoint, it leaves, and Ray
starts the group anew from there. Where both are told at once (a service that is stopped, a signal to a process group),
a worker may be the first to see it, and waits a moment for the driver's note. A second SIGTERM goes to whoever handled
the first one before, but for one that comes at the same time: `timeout` and schedulers tell a process, then its group.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pipelines.errors import StorageError
from pipelines.storage import Storage
from pipelines.train.owner import note_path

_LOGGER = logging.getLogger(__name__)

NOTICE = "_work/notice.json"
"""Written by a driver that was told to end; its workers look for it."""
DRIVER_POLL_S = 0.5
"""Seconds between a driver's looks whether it was told."""
_POLL_S = 1.0
_SAME_S = 1.0
"""Seconds within which a further SIGTERM is the same word once more."""

_TERMINATED = threading.Event()


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Notice:
    """What the loop asks about the time it has left."""

    is_called_off: Callable[[], bool] = _never
    """Whether to leave a checkpoint and stop."""
    is_draining: Callable[[], bool] = _never
    """Whether to leave a checkpoint at once and go on, since the machine will be gone: others may take over."""


def watch_sigterm() -> None:
    """Have this process note the first SIGTERM instead of dying of it; call it in the main thread."""
    _note_sigterm(_TERMINATED, then="this worker leaves")


def is_terminated() -> bool:
    """Return whether a SIGTERM was noted (`watch_sigterm`)."""
    return _TERMINATED.is_set()


@contextlib.contextmanager
def catching_sigterm() -> Iterator[threading.Event]:
    """Yield an event that the first SIGTERM sets; outside the main thread, which alone gets signals, nothing does."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = _note_sigterm(told, then="the run stops")
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def noted_in(run: Storage, token: str) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether the driver, by its token, has left a notice.

    A thread looks, so that no step waits for it.
    """
    found, ended, path = threading.Event(), threading.Event(), note_path(NOTICE, token)

    def look() -> None:
        while not found.is_set() and not ended.wait(_POLL_S):
            with contextlib.suppress(StorageError):
                if run.exists(path):
                    found.set()

    threading.Thread(target=look, name="notice", daemon=True).start()
    try:
        yield found.is_set
    finally:
        ended.set()


def _note_sigterm(told: threading.Event, *, then: str) -> Any:
    """Have the first SIGTERM set `told`, and each later one go to whoever handled it before; return that one."""
    before = signal.getsignal(signal.SIGTERM)
    told_s = math.inf

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal told_s
        if told.is_set():
            if time.monotonic() - told_s > _SAME_S:
                _hand_on(before, number, frame)
            return
        told_s = time.monotonic()
        told.set()
        _LOGGER.warning("told to end (SIGTERM): a checkpoint is taken, then %s; once more ends it at once", then)

    signal.signal(signal.SIGTERM, note)
    return before


def _hand_on(before: object, number: int, frame: FrameType | None) -> None:
    if callable(before):
        before(number, frame)
    elif before is signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
