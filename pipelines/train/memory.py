"""Memory that a step needs and may not get: how that shows, and how much there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipelines.errors import DataError

_REFUSALS = ("can't allocate memory", "out of memory", "not enough memory")
"""What torch's allocators say; only CUDA's has an exception of its own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory was asked for and there was none."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _REFUSALS)


class MemoryShortage(DataError):
    """Something of the training does not fit into memory."""


def reason_of(error: BaseException) -> str:
    """Return an error's first line; its kind where it has no words, as Python's own MemoryError."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Give a lack of memory that nothing can be halved against as an error with its mend; a decorator too.

    Args:
        what: what is done here, the subject of a sentence.

    Raises:
        MemoryShortage: memory was asked for and there was none.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryShortage(
            f"{what} does not fit into memory: {reason_of(error)}",
            mend="take a smaller network or smaller images, fewer workers a machine, or a machine with more memory",
        ) from error


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that can still be had for networks on a device; None where nothing says so."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_free_of_machine(), _free_of_group()]
    return min((value for value in found if value is not None), default=None)


def _free_of_machine() -> int | None:
    """Return what Linux says it could give without swapping; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _free_of_group() -> int | None:
    """Return what a container's limit (cgroup version 2) leaves; None without one."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))
