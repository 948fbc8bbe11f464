"""Pairs of hashes across two sets, against comparing everything."""

from __future__ import annotations

import numpy as np

from pipelines.dataset.near_join import near_join


def test_a_join_finds_what_comparing_everything_finds():
    draw = np.random.default_rng(5)
    standing = draw.integers(0, 2**64, 400, dtype=np.uint64)
    near = standing[:60].copy()
    for place in range(60):
        for bit in draw.choice(64, place % 7, replace=False):
            near[place] ^= np.uint64(1) << np.uint64(bit)
    new = np.unique(np.concatenate([near, draw.integers(0, 2**64, 50, dtype=np.uint64)]))
    standing = np.unique(standing)
    distance = np.bitwise_count(new[:, None] ^ standing[None, :])
    for limit in (0, 2, 4):
        ours, theirs = near_join(new, standing, max_distance=limit, chunk=7)
        expected = np.argwhere(distance <= limit)
        assert np.stack([ours, theirs], axis=1).tolist() == expected.tolist()
    assert len(near_join(new[:0], standing)[0]) == len(near_join(new, standing[:0])[0]) == 0
