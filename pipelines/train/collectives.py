"""What training processes tell each other: sums of gradients and figures. In a single process nothing happens.

Everything is a sum over the global batch, never a mean over workers: workers may hold unequal shares of a batch, and
a mean of their means would weigh the rows of the smaller share more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

_LIMB = 1 << 16


@dataclass(frozen=True)
class World:
    """The processes that train together, and which of them this is."""

    rank: int = 0
    """Number of this process, 0 to size - 1; 0 writes for all."""
    size: int = 1
    """Number of processes."""

    @classmethod
    def current(cls) -> World:
        """Return the group that torch.distributed was initialised with, or a world of one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def sum(self, tensor: Tensor) -> Tensor:
        """Add a tensor up over all processes, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def take_from_first(self, tensor: Tensor) -> Tensor:
        """Overwrite a tensor with rank 0's, in place, and return it."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes stacked by rank, (size, ...)."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    def sum_values(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Return sums over all processes of a few figures, in float64."""
        if self.size == 1:
            return list(values)
        summed: list[float] = self.sum(torch.tensor(list(values), dtype=torch.float64, device=device)).tolist()
        return summed

    def sum_gradients(self, network: nn.Module) -> None:
        """Replace every gradient by its sum over all processes, in one message per number type."""
        if self.size == 1:
            return
        gradients = []
        for parameter in network.parameters():
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:  # unused in this step: all must still send the same number of values
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        _in_one_message(gradients, self.sum)

    def copy_from_first(self, network: nn.Module) -> None:
        """Give every process the parameters and buffers of rank 0, so that all start from the same bits."""
        if self.size > 1:
            tensors = [value.detach() for value in network.state_dict().values()]
            _in_one_message(tensors, self.take_from_first)


def split_trace(trace: int) -> list[float]:
    """Return a 64-bit number as four 16-bit limbs, which add up exactly as floats over 2^37 processes."""
    return [float(trace >> shift & (_LIMB - 1)) for shift in (0, 16, 32, 48)]


def join_trace(limbs: Sequence[float]) -> int:
    """Return the number behind summed limbs, modulo 2^64."""
    return sum(int(limb) << shift for limb, shift in zip(limbs, (0, 16, 32, 48), strict=True)) & ((1 << 64) - 1)


def _in_one_message(tensors: Sequence[Tensor], send: Callable[[Tensor], object]) -> None:
    """Flatten tensors of one type, send them at once, and copy the result back."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        send(flat)
        for tensor, part in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))
