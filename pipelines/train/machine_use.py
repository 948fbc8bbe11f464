"""What each process of a run takes of its machine: samples that a thread of it writes to the run's storage.

`system/worker-00000-<Unix ms>.json` holds up to an hour of one worker; a restarted worker begins another file. MLflow's
own sampler is not used: it sends from the process that trains, and what a server does not take is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from pipelines.errors import StorageError
from pipelines.storage import Storage
from pipelines.train.nvml import Gpu
from pipelines.train.process_memory import peak_bytes, resident_and_shared_bytes
from pipelines.train.samples import FOLDER, FORMAT_VERSION

_EVERY_S = 10.0
_WRITE_S = 60.0
_LEAST_S = 1.0
"""Seconds that a sample spans at least: its step in MLflow is a whole second."""
_FIRST_S = 0.1
"""The same of the first: CPU time is counted in ticks of 10 ms, and a short run should have one."""
_PER_FILE = 360
"""Samples of a file: what is written anew once a minute stays small."""
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
_TOTAL = re.compile(r"^MemTotal:\s+(\d+) kB$", re.MULTILINE)


class MachineUse:
    """Samples this process while it is entered; nothing is raised, and nobody waits for it but at the end.

    Args:
        run: storage of the run.
        worker: rank of this process.
        device: where it trains; of a GPU there are figures too.
    """

    def __init__(self, run: Storage, worker: int, device: torch.device) -> None:
        self._run = run
        self._worker = worker
        self._device = device
        self._gpu: Gpu | None = None
        self._samples: list[dict[str, float]] = []
        self._path = ""
        self._num_written = 0
        self._has_settled = False
        self._changing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="machine-use", daemon=True)

    def __enter__(self) -> Self:
        self._mark = (time.monotonic(), time.process_time())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(_EVERY_S)

    def _work(self) -> None:
        if self._device.type == "cuda":
            with contextlib.suppress(OSError, AttributeError):  # no NVIDIA driver (ROCm), or one without ids
                self._gpu = Gpu(str(torch.cuda.get_device_properties(self._device).uuid))
        written_s = time.monotonic()
        is_over = False
        while not is_over:
            is_over = self._ended.wait(_EVERY_S)
            with self._changing:
                if is_over and self._has_settled:
                    return  # nobody may look any more
                self._take()
                if is_over or time.monotonic() - written_s >= _WRITE_S:
                    self._write()
                    written_s = time.monotonic()

    def settle(self) -> None:
        """Write the samples that there are, at least one: a trial may end after any epoch, and nothing comes behind."""
        with self._changing:
            self._has_settled = True
            if not self._samples:
                self._take()
            if len(self._samples) != self._num_written:
                self._write()

    def _take(self) -> None:
        now_s, cpu_s = time.monotonic(), time.process_time()
        before_s, cpu_before_s = self._mark
        if now_s - before_s < (_LEAST_S if self._samples else _FIRST_S):
            return
        self._mark = (now_s, cpu_s)
        sample = {
            "at_s": round(time.time(), 3),
            "cpu_cores_used": round((cpu_s - cpu_before_s) / (now_s - before_s), 3),
            "memory_megabytes": round(_memory_bytes() / 1e6, 1),
            **_machine_figures(),
            **(self._gpu.figures() if self._gpu else {}),
        }
        if len(self._samples) >= _PER_FILE and self._write():  # else the file grows until storage is back
            self._samples, self._path, self._num_written = [], "", 0
        self._samples.append(sample)
        self._path = self._path or f"{FOLDER}/worker-{self._worker:05d}-{int(time.time() * 1000)}.json"

    def _write(self) -> bool:
        """Write what there is; return whether it stands: else it is kept, and written with that of the next minute."""
        if not self._samples:
            return True
        content: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "worker": self._worker,
            "samples": self._samples,
        }
        try:
            self._run.put(self._path, json.dumps(content).encode(), lasts=False)
        except StorageError:
            return False
        self._num_written = len(self._samples)
        return True


def _memory_bytes() -> int:
    """Return the memory of this process alone, so that those of the workers of a machine may be added up.

    Pages that it may share (libraries, decoded images that a node keeps for all its workers) are left out. Where the
    system does not say: the most until now, with them.
    """
    with contextlib.suppress(OSError):
        resident, shared = resident_and_shared_bytes()
        return resident - shared
    return peak_bytes()


def _machine_figures() -> dict[str, float]:
    """Return what all processes of the machine, or container host, take: what slows a run down may be others."""
    return dict(_machine_figure())


def _machine_figure() -> Iterator[tuple[str, float]]:
    with contextlib.suppress(OSError):
        yield "machine_load", round(os.getloadavg()[0], 2)
    with contextlib.suppress(OSError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        available, total = _AVAILABLE.search(text), _TOTAL.search(text)
        if available and total:
            yield "machine_memory_percentage", round(100 * (1 - int(available[1]) / int(total[1])), 1)
