"""Near-duplicate search over ten million synthetic hashes with planted pairs and one crowd of equal hashes.

python -m pytest -m benchmark -s tests/benchmarks/test_near_speed.py
"""

from __future__ import annotations

import resource
import time

import numpy as np
import pytest

from pipelines.dataset.near import near_clusters, near_pairs

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

NUM_HASHES = 10_000_000
NUM_PLANTED = 100_000
NUM_EQUAL = 100_000


def test_ten_million_hashes() -> None:
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 2**64, NUM_HASHES, dtype=np.uint64)
    hashes[:NUM_EQUAL] = hashes[0]
    sources = draw.choice(np.arange(NUM_EQUAL, NUM_HASHES - NUM_PLANTED), NUM_PLANTED, replace=False)
    copies = hashes[sources]
    for _ in range(4):  # 0, 2 or 4 bits apart where a bit is drawn twice
        copies ^= np.uint64(1) << draw.integers(0, 64, NUM_PLANTED).astype(np.uint64)
    hashes[-NUM_PLANTED:] = copies

    started_s = time.perf_counter()
    found = near_clusters(hashes)
    clusters_s = time.perf_counter() - started_s

    unique = np.unique(hashes)
    pairs, _ = near_pairs(unique)
    planted = np.stack([np.searchsorted(unique, hashes[sources]), np.searchsorted(unique, copies)], axis=1)
    planted.sort(axis=1)
    apart = planted[planted[:, 0] != planted[:, 1]]
    packed = pairs[:, 0] * len(unique) + pairs[:, 1]
    recall = float(np.isin(apart[:, 0] * len(unique) + apart[:, 1], packed).mean())
    precision = len(np.unique(apart, axis=0)) / len(pairs)
    together = float((found.cluster[sources] == found.cluster[-NUM_PLANTED:]).mean())
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\n{NUM_HASHES:,} hashes: {clusters_s:.0f} s, peak {peak_gib:.2f} GiB, {len(found.leader):,} clusters,"
        f" recall of planted pairs {recall:.2%}, precision {precision:.2%}, pairs in one cluster {together:.2%},"
        f" crowd in one cluster {bool((found.cluster[:NUM_EQUAL] == found.cluster[0]).all())}"
    )
    assert recall >= 0.99
    assert precision >= 0.99
    assert (found.cluster[:NUM_EQUAL] == found.cluster[0]).all()
