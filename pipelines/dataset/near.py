"""Near-duplicates by perceptual hash: all pairs of 64-bit hashes within 4 bits, without comparing all pairs.

The 64 bits are cut into six blocks. Two hashes that differ in at most 4 bits have at least two blocks in common, so
each of the 15 choices of two blocks is sorted by, and only neighbours that share them are compared (the pigeonhole
idea of multi-index hashing, Norouzi et al. 2012, arXiv:1307.2982). Ten million hashes are a matter of minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

MAX_DISTANCE = 4
MAX_RUN = 2_048
"""Hashes that share two blocks and are compared with one; runs beyond it are counted as capped."""

MAX_ACCIDENTS = 0.1
"""Accidental look-alikes of one image from which on the hash says too little of these pictures to act on it."""

MAX_PARTNERS = 64
"""Near hashes that are sought of each: a pair is found as long as one of its sides has fewer, so that nobody is left
alone. Whoever has that many counts as capped; all pairs together are at most twice that many for a hash."""

_FEW, _FEWEST_PAIRS, _FEWEST_PAIRS_OF_FEW = 200, 30, 8
_SAMPLED, _COMPARED = 300, 30_000

BLOCKS = ((0, 11), (11, 11), (22, 11), (33, 11), (44, 10), (54, 10))
"""(first bit, bits) of each block."""

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NearClusters:
    """Which rows look alike.

    Attributes:
        cluster: cluster number of each row (N,), from 0; -1 where nothing else looks like it.
        leader: the row of each cluster whose hash all others of it are close to.
        capped: hashes whose neighbours were not all compared, because too many share two blocks.
    """

    cluster: Indices
    leader: Indices
    capped: int


@dataclass(frozen=True)
class Neighbours:
    """Which different hashes are near each other, and which rows have them.

    Attributes:
        first: first row of each different hash (U,), hashes ascending.
        inverse: number of each row's hash (N,), 0 to U - 1.
        counts: rows of each hash (U,).
        pairs: numbers of near hashes (M, 2), each pair once.
        capped: hashes whose neighbours were not all compared.
    """

    unique: Hashes
    first: Indices
    inverse: Indices
    counts: Indices
    pairs: Indices
    capped: int

    def clusters(self) -> NearClusters:
        """Group rows around leaders.

        Leaders are taken greedily, those with the most equal rows first (then the smallest hash), and a row joins one
        leader; so a chain of small steps does not merge pictures that have nothing in common.
        """
        leader_of = _stars(len(self.unique), self.pairs, self.counts)
        sizes = np.bincount(leader_of, weights=self.counts, minlength=len(self.unique))
        leaders = np.flatnonzero(sizes > 1)
        leaders = leaders[np.argsort(self.first[leaders], kind="stable")]
        number = np.full(len(self.unique), -1, np.int64)
        number[leaders] = np.arange(len(leaders))
        return NearClusters(number[leader_of][self.inverse], self.first[leaders].astype(np.int64), self.capped)

    def shadowed(self, rank: Indices) -> Indices:
        """Return for each row a near row of lower rank that is not shadowed itself, or -1 where there is none (N,).

        Without the shadowed rows no two rows of different rank are near each other, and no fewer would do in this
        order: rank by rank, lowest first.

        Args:
            rank: one per row (N,), 0 for the rows that always stay.
        """
        nobody = np.int64(len(rank))
        standing = np.full(len(self.unique), nobody)  # of each hash, the first row that stays
        found = np.full(len(rank), -1, np.int64)
        for level in np.unique(rank).tolist():
            near = standing.copy()
            for one, other in ((0, 1), (1, 0)):
                np.minimum.at(near, self.pairs[:, one], standing[self.pairs[:, other]])
            rows = np.flatnonzero(rank == level)
            above = near[self.inverse[rows]]
            found[rows] = np.where(above < nobody, above, -1)
            stay = rows[above == nobody]
            np.minimum.at(standing, self.inverse[stay], stay)
        return found

    def repeats(self) -> Indices:
        """Return for each row the first earlier row that stays and is near it, or -1 where it stays itself (N,).

        As `shadowed`, with the order of rows for ranks: without these rows no two are near each other.
        """
        both = np.concatenate([self.pairs, self.pairs[:, ::-1]])
        both = both[np.argsort(both[:, 0], kind="stable")]
        nodes, starts = np.unique(both[:, 0], return_index=True)
        ends = np.r_[starts[1:], len(both)]
        first = self.first.astype(np.int64)
        kept = first.copy()  # of each hash, the row that stays for it
        stays = np.ones(len(first), bool)
        stays[nodes] = False  # until its turn comes
        for place in np.argsort(first[nodes], kind="stable").tolist():
            near = both[starts[place] : ends[place], 1]
            near = near[stays[near]]
            if len(near):
                kept[nodes[place]] = first[near].min()
            else:
                stays[nodes[place]] = True
        found = kept[self.inverse]
        found[found == np.arange(len(found))] = -1
        return found


def near_clusters(hashes: Hashes, *, max_distance: int = MAX_DISTANCE) -> NearClusters:
    """Group rows whose hashes are within `max_distance` bits of their cluster's leader; see `Neighbours.clusters`.

    Args:
        hashes: one per row (N,), in any order; the result depends on the values alone, up to numbering by first row.
        max_distance: 0 to `MAX_DISTANCE`.
    """
    return find_neighbours(hashes, max_distance=max_distance).clusters()


def find_neighbours(hashes: Hashes, *, max_distance: int = MAX_DISTANCE) -> Neighbours:
    """Return the neighbours of all rows' hashes (N,), found once for clusters and for splits."""
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise ValueError(f"max_distance is {max_distance}; pairs are found up to {MAX_DISTANCE} bits")
    unique, first, inverse, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    pairs, capped = near_pairs(unique, max_distance=max_distance)
    return Neighbours(unique, first, inverse, counts, pairs, capped)


def count_accidents(hashes: Hashes, *, max_distance: int = MAX_DISTANCE) -> float:
    """Return how many look-alikes a picture has by accident, estimated from the pairs that are a little further apart.

    Pictures that are all drawn alike (digits on black) share most bits, and many are within 4 bits of each other though
    nothing but the drawing is the same. Of copies few pairs are 5 to 8 bits apart, and fewer 9 to 12; of pictures that
    happen to resemble each other many are, and more the further. In that case their growth over distance is continued
    down to `max_distance`. On CIFAR-10's 50,000 photographs it is 0.01, on 1,800 digits of 8 x 8 pixels 12. With
    fewer than 15 pairs at 5 to 8 bits, of less than 200 hashes fewer than 4, nothing can be said, and it is 0.

    Args:
        hashes: one per row (N,); 300 of them, spread over all, are compared with at most 30,000.
        max_distance: bits up to which pictures count as look-alikes.
    """
    if not len(hashes):
        return 0.0
    others = hashes[:: -(-len(hashes) // _COMPARED)]
    sample = others[:: max(1, len(others) // _SAMPLED)][:_SAMPLED]
    counts = np.zeros(65, np.int64)
    for value in sample:
        counts += np.bincount(np.bitwise_count(others ^ value), minlength=65)
    close, further = int(counts[5:9].sum()), int(counts[9:13].sum())
    fewest = _FEWEST_PAIRS if len(hashes) >= _FEW else _FEWEST_PAIRS_OF_FEW  # each pair of the sample counts twice
    if close < fewest or further < 2 * close:  # a valley lies between copies and all others
        return 0.0
    growth = (further / close) ** 0.25  # a bit
    return float(close * growth ** (max_distance - 8) / len(sample) * len(hashes) / len(others))


def near_pairs(unique: Hashes, *, max_distance: int = MAX_DISTANCE) -> tuple[Indices, int]:
    """Return the pairs (M, 2) of indices of different hashes within the distance, each once, and how many were capped.

    Args:
        unique: different hashes, ascending.
        max_distance: 1 to `MAX_DISTANCE`; 0 gives no pairs.
    """
    number = max(1, len(unique))
    capped = np.zeros(len(unique), bool)
    packed: Indices = np.empty(0, np.int64)  # the lower index times `number`, plus the higher
    for one, two in combinations(BLOCKS, 2) if max_distance else ():
        partners = np.bincount(packed // number, minlength=len(unique))
        partners += np.bincount(packed % number, minlength=len(unique))
        key = (block_of(unique, one) << np.uint32(two[1])) | block_of(unique, two)
        found = _pairs_of_runs(key, unique, max_distance, partners, capped)
        packed = np.sort(np.concatenate([packed, found]))  # np.unique takes ten times as long
        packed = packed[np.diff(packed, prepend=-1) > 0]  # a pair may share more than two blocks
    return np.stack([packed // number, packed % number], axis=1), int(capped.sum())


def _pairs_of_runs(
    key: npt.NDArray[np.uint32], unique: Hashes, max_distance: int, partners: Indices, capped: npt.NDArray[np.bool_]
) -> Indices:
    """Return the near pairs among hashes of equal keys, packed, and mark in `capped` whose pairs are not all there.

    Args:
        key: two blocks of each hash (U,).
        unique: the hashes (U,).
        max_distance: in bits.
        partners: pairs that each has from other keys (U,). Some of them are found again, so that here each counts from
            0, and none is looked for where both sides have all of theirs.
        capped: marked (U,).
    """
    order = np.argsort(key, kind="stable")
    key, values = key[order], unique[order]
    places = np.arange(len(key))
    ends = np.r_[np.flatnonzero(key[1:] != key[:-1]), len(key) - 1]
    sizes = np.diff(np.r_[-1, ends])
    last = np.repeat(ends, sizes)  # of each place, the last one of its run
    begin = np.repeat(ends - sizes + 1, sizes)
    capped[order] |= last - places > MAX_RUN
    full = partners[order] >= MAX_PARTNERS  # by place
    any_full = bool(full.any())
    fresh = np.zeros(len(key), np.int64)
    found = [np.empty(0, np.int64)]
    ahead, behind = np.flatnonzero(last > places), np.flatnonzero(begin < places)
    for step in range(1, MAX_RUN + 1):
        ahead = ahead[ahead + step <= last[ahead]]
        here = ahead
        if any_full:  # who is full looks no further; who is not looks both ways, and so finds those that are
            behind = behind[behind - step >= begin[behind]]
            capped[order[ahead[full[ahead]]]] = capped[order[behind[full[behind]]]] = True
            ahead, behind = ahead[~full[ahead]], behind[~full[behind]]
            here = np.concatenate([ahead, behind[full[behind - step]] - step])
        if not len(ahead) and not (any_full and len(behind)):
            break
        hits = here[np.bitwise_count(values[here] ^ values[here + step]) <= max_distance]
        for side in (hits, hits + step):  # no place stands twice in either
            fresh[side] += 1
            full[side] |= fresh[side] >= MAX_PARTNERS
        any_full = any_full or bool(full[hits].any() or full[hits + step].any())
        low, high = order[hits], order[hits + step]
        found.append(np.minimum(low, high) * len(unique) + np.maximum(low, high))
    return np.concatenate(found)


def block_of(hashes: Hashes, block: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Return one block of bits of every hash (N,)."""
    first, bits = block
    return ((hashes >> np.uint64(first)) & np.uint64((1 << bits) - 1)).astype(np.uint32)


def _stars(number: int, pairs: Indices, counts: Indices) -> Indices:
    """Return the leader of every hash; one without neighbours leads itself."""
    leader = np.arange(number, dtype=np.int64)
    if not len(pairs):
        return leader
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    nodes, starts = np.unique(both[:, 0], return_index=True)
    ends = np.r_[starts[1:], len(both)]
    place = {int(node): index for index, node in enumerate(nodes)}
    taken: set[int] = set()
    for node in nodes[np.lexsort((nodes, -counts[nodes]))].tolist():
        if node in taken:
            continue
        taken.add(node)
        index = place[node]
        for other in both[starts[index] : ends[index], 1].tolist():
            if other not in taken:
                taken.add(other)
                leader[other] = node
    return leader
