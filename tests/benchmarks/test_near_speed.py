"""Near-duplicate search over ten million synthetic hashes with planted pairs, clusters and chains, and one crowd.

python -m pytest -m benchmark -s tests/benchmarks/test_near_speed.py       (NEAR_HASHES=200000 for a short one)

What it must reach at ten million: at most 10 minutes and 4 GB, at least 99% of the planted pairs at distance <= 4
found, at least 99% of the pairs found planted, and no chain of small steps merged into one cluster.
"""

from __future__ import annotations

import os
import resource
import threading
import time

import numpy as np
import psutil
import pytest

from pipelines.dataset.near import MAX_DISTANCE, Hashes, Indices, find_neighbours

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

NUM_HASHES = int(os.environ.get("NEAR_HASHES", "10000000"))
NUM_EQUAL = NUM_HASHES // 100
"""Hashes of the crowd: all the same."""
NUM_PAIRS = NUM_HASHES // 100
NUM_CLUSTERS, COPIES = NUM_HASHES // 1000, 5
"""Planted clusters, and copies of each one's first hash."""
NUM_CHAINS, LINKS, STEP_BITS = NUM_HASHES // 10_000, 12, 3
"""Planted chains: each link differs from the one before in 3 bits never changed before, the ends in 33."""


def flipped(hashes: Hashes, bits: int, draw: np.random.Generator) -> Hashes:
    """Return hashes with up to so many bits changed: 0, 2 or 4 of 4 where one is drawn twice."""
    for _ in range(bits):
        hashes = hashes ^ (np.uint64(1) << draw.integers(0, 64, len(hashes)).astype(np.uint64))
    return hashes


def make_hashes() -> tuple[Hashes, Indices, Indices]:
    """Return the hashes, the rows of the planted pairs (P, 2), and the rows of the chains (C, LINKS)."""
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 2**64, NUM_HASHES, dtype=np.uint64)
    hashes[:NUM_EQUAL] = hashes[0]
    rows = draw.permutation(np.arange(NUM_EQUAL, NUM_HASHES))
    pairs = rows[: 2 * NUM_PAIRS].reshape(NUM_PAIRS, 2)
    rows = rows[2 * NUM_PAIRS :]
    clusters = rows[: NUM_CLUSTERS * (1 + COPIES)].reshape(NUM_CLUSTERS, 1 + COPIES)
    rows = rows[NUM_CLUSTERS * (1 + COPIES) :]
    chains = rows[: NUM_CHAINS * LINKS].reshape(NUM_CHAINS, LINKS)
    hashes[pairs[:, 1]] = flipped(hashes[pairs[:, 0]], 4, draw)
    for copy in range(1, 1 + COPIES):
        hashes[clusters[:, copy]] = flipped(hashes[clusters[:, 0]], 2, draw)  # copies are 4 bits apart at most
    for link in range(1, LINKS):
        step = sum(1 << bit for bit in range((link - 1) * STEP_BITS, link * STEP_BITS))
        hashes[chains[:, link]] = hashes[chains[:, link - 1]] ^ np.uint64(step)
    planted = [pairs]
    for one in range(1 + COPIES):
        planted += [clusters[:, [one, other]] for other in range(one + 1, 1 + COPIES)]
    planted += [chains[:, [link - 1, link]] for link in range(1, LINKS)]
    return hashes, np.concatenate(planted), chains


class Peak:
    """Watches this process's memory while it works; the high-water mark of the system would count the set-up too."""

    def __init__(self) -> None:
        self.bytes = 0
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def test_near_duplicates_of_many_hashes() -> None:
    hashes, planted, chains = make_hashes()
    with Peak() as peak:
        started_s = time.perf_counter()
        neighbours = find_neighbours(hashes)
        paired_s = time.perf_counter()
        found = neighbours.clusters()
        clustered_s = time.perf_counter()
    whole_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    number = neighbours.inverse[planted]
    number.sort(axis=1)
    apart = number[number[:, 0] != number[:, 1]]
    width = np.int64(len(neighbours.unique))
    wanted = np.unique(apart[:, 0] * width + apart[:, 1])
    packed = neighbours.pairs[:, 0] * width + neighbours.pairs[:, 1]
    recall, precision = float(np.isin(wanted, packed).mean()), float(np.isin(packed, wanted).mean())
    together = found.cluster >= 0
    far = np.bitwise_count(hashes[together] ^ hashes[found.leader[found.cluster[together]]]) > MAX_DISTANCE
    of_chain = np.sort(found.cluster[chains], axis=1)
    parts = 1 + (np.diff(of_chain, axis=1) > 0).sum(axis=1)
    crowd = bool((found.cluster[:NUM_EQUAL] == found.cluster[0]).all())
    figures = {
        "seconds, pairs": f"{paired_s - started_s:.1f}",
        "seconds, clusters": f"{clustered_s - paired_s:.1f}",
        "seconds in all (at most 600)": f"{clustered_s - started_s:.1f}",
        "peak of the process while searching, GiB (at most 3.7 = 4 GB)": f"{peak.bytes / 2**30:.2f}",
        "peak of the process, set-up too, GiB": f"{whole_gib:.2f}",
        "planted pairs at distance <= 4": f"{len(wanted):,}",
        "recall of them (at least 99%)": f"{recall:.3%}",
        "precision of all pairs found (at least 99%)": f"{precision:.3%}",
        "hashes not compared with all": f"{neighbours.capped:,}",
        "clusters": f"{len(found.leader):,}",
        "rows further than 4 bits from their cluster's leader (none)": f"{int(far.sum()):,}",
        f"clusters that a chain of {LINKS} links falls into, least (more than 1)": f"{int(parts.min())}",
        f"the {NUM_EQUAL:,} equal hashes are one cluster": "yes" if crowd else "no",
    }
    print(f"\n{NUM_HASHES:,} hashes")
    for name, value in figures.items():
        print(f"  {name:<72}{value:>12}")
    assert recall >= 0.99
    assert precision >= 0.99
    assert not far.any()
    assert parts.min() > 1
    assert crowd
