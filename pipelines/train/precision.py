"""Where training runs and in which number type, decided by what the hardware has."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

from pipelines.errors import ConfigError

_LOGGER = logging.getLogger(__name__)


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or any other torch name; auto takes a GPU where torch can use one."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@dataclass(frozen=True)
class Precision:
    """A resolved choice: its name, and whether small gradients must be scaled up to survive."""

    name: str
    """float64, float32, bf16 or fp16."""
    device_type: str
    """cpu, cuda or mps."""

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients are scaled up: fp16 flushes values below 6e-8 to zero."""
        return self.name == "fp16"

    @property
    def weights(self) -> torch.dtype:
        """Type of weights and losses; half precision is for the matrix products alone."""
        return torch.float64 if self.name == "float64" else torch.float32

    @contextmanager
    def products(self) -> Iterator[None]:
        """Within, float32 is what it says, forward and backward: cuDNN would round factors to 10 bits of mantissa."""
        if self.device_type != "cuda" or self.name != "float32":
            yield
            return
        flags, before = torch.backends.cudnn, torch.backends.cudnn.allow_tf32
        flags.allow_tf32 = False
        try:
            yield
        finally:
            flags.allow_tf32 = before

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context to run the network in."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)
        return torch.autocast(self.device_type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Return the precision for a config value on a device.

    `auto` takes half precision only where the hardware multiplies it: on a CPU without it bf16 is emulated, slower
    than float32.

    Raises:
        ConfigError: fp16 on a CPU, which has no kernels for training in it, or float64 on a device without it.
    """
    if name == "auto":
        return Precision(_fastest(device), device.type)
    if device.type == "mps" and name == "float64":
        raise ConfigError("precision is float64, which Apple's GPUs lack", mend="set use_gpu=false, or precision=auto")
    if device.type == "cpu":
        if name == "fp16":
            raise ConfigError(
                "precision is fp16 and training runs on a CPU", mend="set precision=auto, float32 or bf16"
            )
        if name == "bf16" and not has_cpu_bf16():
            _LOGGER.warning("precision is bf16, which this CPU has to emulate: float32 would be faster")
    return Precision(name, device.type)


def has_cpu_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _fastest(device: torch.device) -> str:
    if device.type == "cuda":
        # Compute capability 8 is the first with bf16 matrix units; before it there is only fp16.
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if device.type == "cpu" and has_cpu_bf16():
        return "bf16"
    return "float32"
