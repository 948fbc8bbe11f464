"""Near-duplicates between newcomers and what stands: pairs of hashes across the two, by the blocks of `near`."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np

from pipelines.dataset.near import BLOCKS, MAX_DISTANCE, Hashes, Indices, block_of


def near_join(
    new: Hashes, standing: Hashes, *, max_distance: int = MAX_DISTANCE, chunk: int = 1 << 22
) -> tuple[Indices, Indices]:
    """Return (index in `new`, index in `standing`) of every pair of hashes within the distance, each once.

    Only what shares two blocks with a newcomer is compared: a table of the newcomers' blocks picks it out in one pass
    over what stands, so that few newcomers cost little however much stands.

    Args:
        new: different hashes, ascending.
        standing: different hashes, ascending.
        max_distance: 0 to `MAX_DISTANCE`.
        chunk: pairs compared at a time, which bounds memory.
    """
    found = [np.empty((0, 2), np.int64)]
    for one, two in combinations(BLOCKS, 2) if len(new) and len(standing) else ():
        shift = np.uint32(two[1])
        new_key = (block_of(new, one) << shift) | block_of(new, two)
        key = (block_of(standing, one) << shift) | block_of(standing, two)
        is_wanted = np.zeros(1 << (one[1] + two[1]), bool)
        is_wanted[new_key] = True
        candidates = np.flatnonzero(is_wanted[key])
        order = np.argsort(new_key, kind="stable")
        first = np.searchsorted(new_key[order], key[candidates], side="left")
        sizes = np.searchsorted(new_key[order], key[candidates], side="right") - first
        for start, end in _chunks(sizes, chunk):
            part = sizes[start:end]
            theirs = np.repeat(candidates[start:end], part)
            steps = np.arange(len(theirs)) - np.repeat(np.cumsum(part) - part, part)
            ours = order[np.repeat(first[start:end], part) + steps]
            near = np.bitwise_count(new[ours] ^ standing[theirs]) <= max_distance
            found.append(np.stack([ours[near], theirs[near]], axis=1))
    pairs = np.concatenate(found)
    packed = np.sort(pairs[:, 0] * np.int64(max(1, len(standing))) + pairs[:, 1])  # np.unique takes ten times as long
    packed = packed[np.diff(packed, prepend=-1) > 0]
    return packed // max(1, len(standing)), packed % max(1, len(standing))


def _chunks(sizes: Indices, limit: int) -> list[tuple[int, int]]:
    """Cut a list of sizes into runs that add up to about the limit at most."""
    place = np.cumsum(sizes) // limit
    edges = [0, *(np.flatnonzero(np.diff(place)) + 1).tolist(), len(sizes)]
    return [(start, end) for start, end in pairwise(edges) if end > start]
