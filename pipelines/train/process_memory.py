"""How much memory this process has; every system says so in another way."""

from __future__ import annotations

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
