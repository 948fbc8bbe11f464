"""Random numbers that belong to a sample: a counter-based hash of the sample's key, never a generator's state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF  # values live in [0, 2^32) inside int64: a shift right is then the logical one that torch lacks
# The factors of the 32-bit mixer "lowbias32" (16, 7feb352d, 15, 846ca68b, 16), the second less 2^32: with both below
# 2^31 in magnitude no product leaves int64, so that nothing depends on how a device overflows.
_FIRST_FACTOR = 0x7FEB352D
_SECOND_FACTOR = 0x846CA68B - (1 << 32)
_GOLDEN = 0x9E3779B9 - (1 << 32)  # 2^32 / golden ratio: neighbouring counters land far apart


def _mix_word(x: Tensor) -> Tensor:
    """Return a well-mixed bijection of int64 values in [0, 2^32), in the place of `x`."""
    x ^= x >> 16
    x *= _FIRST_FACTOR
    x &= _WORD
    x ^= x >> 15
    x *= _SECOND_FACTOR
    x &= _WORD
    x ^= x >> 16
    return x


def _mix_number(x: int) -> int:
    """Return what `_mix_word` makes of one number."""
    x ^= x >> 16
    x = (x * _FIRST_FACTOR) & _WORD
    x ^= x >> 15
    x = (x * _SECOND_FACTOR) & _WORD
    return x ^ (x >> 16)


class SampleDraws:
    """Uniform numbers for every sample of a batch, each a pure function of (its key, layer, position).

    They do not depend on who else is in the batch, in which order, on which device or worker, nor on how often they
    were asked for. That makes dropout the same at any world size and in a recomputed forward. The idea is the
    counter-based generator of Salmon et al. 2011 (doi:10.1145/2063384.2063405), with a cheap hash for its cipher: good
    for dropping, no cryptography.
    """

    def __init__(self, keys: Tensor) -> None:
        """Take the samples' keys.

        Args:
            keys: int64 (N,), any values: the trainer's hash of (seed, epoch, image_id, repeat).

        Raises:
            ValueError: `keys` has another type or shape.
        """
        if keys.dtype != torch.int64 or keys.dim() != 1:
            raise ValueError(
                f"sample keys are {keys.dtype} of shape {list(keys.shape)}; "
                "they must be int64 of shape [N], one a sample"
            )
        self.keys = keys

    def uniform(self, layer: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Return float32 (N, *shape) in [0, 1), multiples of 2^-24.

        Args:
            layer: Number of the asking layer, at least 0; two layers draw independently.
            shape: Shape of one sample's draws; () is one number each.
        """
        low, high = self.keys & _WORD, (self.keys >> 32) & _WORD
        # The layer enters between both halves too: keys that collide in one layer do not in the next.
        first = _mix_number((2 * layer + 1) & _WORD)
        second = _mix_number((2 * layer + 2) & _WORD)
        state = _mix_word(_mix_word(low ^ first) ^ high ^ second)
        if not shape:
            return _to_unit(state)
        size = math.prod(shape)
        other = _mix_word(state ^ _mix_word(high ^ first))  # a second word, else streams would be reorderings
        counter = torch.arange(size, device=self.keys.device)
        drawn = _mix_word(state[:, None] ^ ((counter * _GOLDEN) & _WORD))
        return _to_unit(_mix_word(drawn ^ other[:, None])).reshape(-1, *shape)


def _to_unit(x: Tensor) -> Tensor:
    return (x >> 8).to(torch.float32) * 2.0**-24  # 24 bits: float32 holds them exactly
