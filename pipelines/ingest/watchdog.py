"""A decoder that hangs cannot be interrupted from Python; its process is ended, so that another one takes the unit."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

HANG_S = 60.0
"""What an image may take. Far above the second that 50 megapixels take, so that a slow machine changes no dataset."""

EXIT_CODE = 75


class Watchdog:
    """Ends the process when one image, a `with` block of it, takes longer than `limit_s`.

    It costs half a microsecond an image, and a thread a unit.
    """

    def __init__(self, limit_s: float = HANG_S, end: Callable[[], None] = lambda: os._exit(EXIT_CODE)) -> None:
        self._limit_s = limit_s
        self._end = end
        self._begun_s = math.inf
        self._done = threading.Event()

    def __enter__(self) -> None:
        """Begin to time one image; reading from a slow store is outside of it."""
        self._begun_s = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._begun_s = math.inf

    @contextmanager
    def watching(self) -> Iterator[Watchdog]:
        """Watch while the block runs."""
        thread = threading.Thread(target=self._watch, name="ingest-watchdog", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._done.set()
            thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._limit_s / 10):
            if time.monotonic() - self._begun_s > self._limit_s:
                logger.error(
                    "an image took more than %.0f s: its process is ended, and its unit tried again", self._limit_s
                )
                self._end()
                return
