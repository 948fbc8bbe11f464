"""A training taken one epoch at a time: the loop runs in a thread and waits after each epoch to be told to go on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Record = TypeVar("Record")
Outcome = TypeVar("Outcome")


class Stalled(Exception):
    """No epoch ended within the time limit."""


class StepwiseFit(Generic[Record, Outcome]):
    """Turns `fit(on_epoch)`, which calls back, into `next()`, which is called.

    The thread does not run ahead: after an epoch it waits until `next` asks for another, so that a trial which is
    then stopped has cost nothing more.

    Args:
        fit: the training; it calls its argument after every epoch, ends soon when that returns False, and returns.
    """

    def __init__(self, fit: Callable[[Callable[[Record], bool]], Outcome]) -> None:
        self._fit = fit
        self._news: queue.Queue[tuple[str, Record | Outcome | BaseException]] = queue.Queue()
        self._orders: queue.Queue[bool] = queue.Queue()
        self._is_waiting = False
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
        self._thread.start()

    def next(self, timeout_s: float = 0.0) -> tuple[Record | None, Outcome | None]:
        """Go on until the next epoch has ended: (record, None), or the training has: (None, outcome).

        Raises:
            Stalled: neither happened in `timeout_s` seconds (0: no limit). The thread is still at work.
            Exception: whatever the training raised.
        """
        if self._is_waiting:
            self._is_waiting = False
            self._orders.put(True)
        try:
            kind, value = self._news.get(timeout=timeout_s or None)
        except queue.Empty:
            raise Stalled(f"no epoch ended within {timeout_s:g} s") from None
        if kind == "error":
            assert isinstance(value, BaseException)
            raise value
        if kind == "outcome":
            return None, value  # type: ignore[return-value]
        self._is_waiting = True
        return value, None  # type: ignore[return-value]

    def stop(self, timeout_s: float = 60.0) -> bool:
        """End the training after the running epoch; return whether its thread is gone."""
        self._orders.put(False)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._news.put(("outcome", self._fit(self._on_epoch)))
        except BaseException as error:  # noqa: BLE001 - boundary of the thread: it is raised again in `next`
            self._news.put(("error", error))

    def _on_epoch(self, record: Record) -> bool:
        self._news.put(("record", record))
        return self._orders.get()
