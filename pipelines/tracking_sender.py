"""A thread that sends what waits for a server, so that who gives it never waits for the network."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Sender:
    """Calls `send` in a thread when it is woken, and again after the pause that `send` asks for.

    Args:
        send: sends what there is; returns the seconds after which to try again, or None where nothing is left.
    """

    def __init__(self, send: Callable[[], float | None]) -> None:
        self._send = send
        self._woken = threading.Event()
        self._is_stopped = False
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Have the thread look; the first call, of whatever thread, starts it. Stopped, it stays so."""
        with self._changing:
            if self._thread is None and not self._is_stopped:
                # A daemon: what it does not get sent stands in the run's folder.
                self._thread = threading.Thread(target=self._work, name="run-log", daemon=True)
                self._thread.start()
        self._woken.set()

    def stop(self, patience_s: float) -> None:
        """End the thread after it has sent what there is; wait for that so long at most."""
        with self._changing:
            self._is_stopped = True
            thread, self._thread = self._thread, None
        self._woken.set()
        if thread is not None:
            thread.join(patience_s)

    def _work(self) -> None:
        pause_s: float | None = None
        while not self._is_stopped:
            self._woken.wait(pause_s)
            self._woken.clear()
            pause_s = self._send()
        self._send()  # what was given in between
