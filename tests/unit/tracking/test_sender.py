"""The thread that sends: one, however many wake it at once, and none after it was stopped."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from pipelines.tracking_sender import Sender


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that begin; each takes a moment to be made."""
    names: list[str] = []

    class SlowThread(threading.Thread):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            time.sleep(0.05)
            super().__init__(*arguments, **options)
            names.append(self.name)

    monkeypatch.setattr("pipelines.tracking_sender.threading.Thread", SlowThread)
    return names


def test_woken_by_several_threads_at_once_one_begins(started: list[str]) -> None:
    sender, barrier = Sender(lambda: None), threading.Barrier(4)

    def wake() -> None:
        barrier.wait()
        sender.wake()

    wakers = [threading.Thread(target=wake, name="waker") for _ in range(4)]
    for waker in wakers:
        waker.start()
    for waker in wakers:
        waker.join()
    sender.stop(5.0)
    assert started.count("run-log") == 1


def test_one_that_was_stopped_stays_so(started: list[str]) -> None:
    sender = Sender(lambda: None)
    sender.stop(5.0)
    sender.wake()
    assert started == []
