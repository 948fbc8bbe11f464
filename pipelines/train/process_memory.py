"""How much memory this process has, which every system says in another way, and that it keeps what is freed."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Return the most that this process had; on Linux it begins at what the process that started this one had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_and_shared_bytes() -> tuple[int, int]:
    """Return the memory that this process has now, and how much of it others may share (libraries, mapped files).

    Raises:
        OSError: the system does not say.
    """
    _, resident, shared, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(resident) * resource.getpagesize(), int(shared) * resource.getpagesize()


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
_KEPT_BYTES = 1 << 30
_OLDER_BYTES = 32 << 20
"""The largest threshold that older versions take."""


def keep_freed_memory() -> None:
    """Have glibc keep up to 1 GiB of freed memory for what is allocated next, instead of giving it back to the system.

    Each step of a training allocates and frees the same maps. Given back, every page of them is fetched and zeroed by
    the kernel again (up to 29,000 a step of 128 images, a tenth of its time in a virtual machine). Peak memory stays
    as it is. Other C libraries are left alone.

    It holds in a thread too, where Ray's workers train: maps that are too large for a thread's heap are taken from the
    main one (23 faults a step of `cifar-fast` in a worker).
    """
    with contextlib.suppress(AttributeError, OSError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(_MMAP_THRESHOLD, _KEPT_BYTES):
            mallopt(_MMAP_THRESHOLD, _OLDER_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
