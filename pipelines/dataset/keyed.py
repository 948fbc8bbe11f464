"""Randomness that is a function of what it is for, never of who asks: keyed hashes by SplitMix64.

Augmentation, mixing, dropout and the order of samples are keyed by (seed, epoch, image, repeat), so that worker
count, resume and prefetching change nothing. NumPy's generators are not used: their streams may change between
releases, and an order that is resumed must not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Hashes: TypeAlias = npt.NDArray[np.uint64]
Integers: TypeAlias = int | npt.NDArray[np.integer]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mix(values: Hashes) -> Hashes:
    """Return the SplitMix64 finaliser of each value (Steele, Lea, Flood 2014), a bijection on 64 bits."""
    return _mix_in_place(values.astype(np.uint64, copy=True))


def _mix_in_place(mixed: Hashes) -> Hashes:
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _mix_one(value: int) -> int:
    """Return `mix` of one value; plain integers take a tenth of the time that arrays of one take."""
    value ^= value >> 30
    value = value * 0xBF58476D1CE4E5B9 & _MASK
    value ^= value >> 27
    value = value * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def keyed_hash(*parts: Integers) -> Hashes:
    """Return one 64-bit hash of several integers; arrays broadcast, negative integers count modulo 2^64."""
    # A running state that is mixed after every word keeps (1, 2) and (2, 1) apart. It is one integer until the first
    # array: keys begin with seed, epoch and stream.
    number = _GOLDEN
    for place, part in enumerate(parts):
        if not isinstance(part, int):
            return _hash_on(number, parts[place:])
        number = _mix_one((number ^ (part & _MASK)) + _GOLDEN & _MASK)
    return np.full((), number, dtype=np.uint64)


def _hash_on(number: int, parts: Sequence[Integers]) -> Hashes:
    """Return the hash of further parts, some of them arrays, after those that gave a state."""
    state: Hashes = np.full((), number, dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant; NumPy warns of it for single values only
        for part in parts:
            words = np.asarray(part & _MASK if isinstance(part, int) else part).astype(np.uint64)
            mixed = np.asarray(state ^ words)
            mixed += np.uint64(_GOLDEN)
            state = _mix_in_place(mixed)
    return state


def keyed_uniform(
    seed: int, epoch: int, image_hash: Hashes, repeat: Integers = 0, stream: int = 0
) -> npt.NDArray[np.float64]:
    """Return one number in [0, 1) per image.

    Args:
        seed: the run's seed.
        epoch: the epoch the rows are read in.
        image_hash: `image_hashes` of the rows, shape (N,).
        repeat: which copy of a row this is, for repeated or balanced sampling; a number or shape (N,).
        stream: which use of randomness this is; every transform takes its own.
    """
    return to_uniform(keyed_hash(seed, epoch, stream, repeat, image_hash))


def keyed_uniforms(seed: int, epoch: int, image_hash: Hashes, streams: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return `keyed_uniform` of several streams, (streams, N), at little more than the price of one."""
    column = np.asarray(streams, dtype=np.uint64)[:, None]
    return to_uniform(keyed_hash(seed, epoch, column, 0, image_hash))


def to_uniform(hashes: Hashes) -> npt.NDArray[np.float64]:
    """Return the upper 53 bits of each hash as a number in [0, 1)."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def keyed_order(size: int, *key: int) -> npt.NDArray[np.int64]:
    """Return a permutation of range(size) that depends on the key alone."""
    return np.argsort(keyed_hash(*key, np.arange(size)), kind="stable")


def image_hash(image_id: str) -> int:
    """Return the first 16 hex digits of an image_id as an unsigned 64-bit integer."""
    return int(image_id[:16], 16)


def image_hashes(image_ids: Sequence[str]) -> Hashes:
    """Return `image_hash` of every id, shape (N,)."""
    return np.fromiter((int(name[:16], 16) for name in image_ids), dtype=np.uint64, count=len(image_ids))


def row_traces(positions: npt.NDArray[np.integer], hashes: Hashes) -> Hashes:
    """Return the traces of rows consumed at positions of an epoch, (N,): hash(position, image).

    Their sums modulo 2^64 add up over workers and steps and say whether an epoch consumed the same rows at the same
    positions, whatever the number of workers.
    """
    return keyed_hash(positions, hashes)
