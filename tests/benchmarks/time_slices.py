"""Two trainings in turn, some seconds each, on a machine whose speed changes by the minute: each meets the same.

One side's process is stopped (SIGSTOP) while the other's works, so that a slow minute slows both.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence

Sample = tuple[float, float]
"""Unix time, and images trained on by then."""


def take_turns(
    processes: Sequence[int], look: Sequence[Callable[[], Sample | None]], *, slice_s: float, turns: int
) -> list[float]:
    """Return each process's images a second while it was the one that worked.

    Args:
        processes: their ids; all are steadily at work.
        look: what each has done by when; None where that is not known at the moment.
        slice_s: seconds of a turn.
        turns: turns of each.
    """
    windows: list[list[Sample]] = [[] for _ in processes]
    samples: list[list[Sample]] = [[] for _ in processes]
    with _stopped(processes):
        for _ in range(turns):
            for index, process in enumerate(processes):
                begun_s = time.time()
                os.kill(process, signal.SIGCONT)
                while time.time() - begun_s < slice_s:
                    time.sleep(0.1)
                    if (sample := look[index]()) and sample not in samples[index]:
                        samples[index].append(sample)
                os.kill(process, signal.SIGSTOP)
                windows[index].append((begun_s, time.time()))
    return [_rate(*each) for each in zip(samples, windows, strict=True)]


def _rate(samples: Sequence[Sample], windows: Sequence[Sample]) -> float:
    (first_s, first), (last_s, last) = samples[1], samples[-1]
    return (last - first) / (_worked_s(windows, last_s) - _worked_s(windows, first_s))


def _worked_s(windows: Sequence[Sample], until_s: float) -> float:
    """Return the seconds within the windows before a moment."""
    return sum(max(0.0, min(end_s, until_s) - begun_s) for begun_s, end_s in windows)


@contextlib.contextmanager
def _stopped(processes: Sequence[int]) -> Iterator[None]:
    try:
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)
