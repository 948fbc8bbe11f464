"""What an NVIDIA GPU is doing, asked of the driver's own library: no package, no process and no torch call for it."""

from __future__ import annotations

import ctypes

_LIBRARY = "libnvidia-ml.so.1"


class _Rates(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Gpu:
    """One GPU.

    Args:
        uuid: its id, as torch gives it: the numbers of torch and of the driver differ where some GPUs are hidden.
        library: the driver's library; None: the one of this machine.

    Raises:
        OSError: there is no such library, or it does not know this GPU.
    """

    def __init__(self, uuid: str, library: ctypes.CDLL | None = None) -> None:
        self._library = library or ctypes.CDLL(_LIBRARY)
        self._handle = ctypes.c_void_p()
        name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        self._check(self._library.nvmlInit_v2())
        self._check(self._library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(self._handle)))

    def figures(self) -> dict[str, float]:
        """Return utilisation (percent of the last second), memory in use (MB, of all processes) and power (watts).

        What this GPU does not tell is left out.
        """
        rates, memory, milliwatts = _Rates(), _Memory(), ctypes.c_uint()
        figures = {}
        if self._library.nvmlDeviceGetUtilizationRates(self._handle, ctypes.byref(rates)) == 0:
            figures["gpu_utilization_percentage"] = float(rates.gpu)
        if self._library.nvmlDeviceGetMemoryInfo(self._handle, ctypes.byref(memory)) == 0:
            figures["gpu_memory_megabytes"] = memory.used / 1e6
        if self._library.nvmlDeviceGetPowerUsage(self._handle, ctypes.byref(milliwatts)) == 0:
            figures["gpu_power_watts"] = milliwatts.value / 1e3
        return figures

    @staticmethod
    def _check(code: int) -> None:
        if code != 0:
            raise OSError(code, "the NVIDIA management library refuses")
