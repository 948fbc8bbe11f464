"""An epoch's order as a table is the order that lanes give one by one."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.dataset.keyed import keyed_hash, keyed_uniform, keyed_uniforms, mix
from pipelines.dataset.order import EpochOrder
from pipelines.dataset.order_table import LaneOrder, OrderTable


@pytest.mark.parametrize("seed", range(60))
def test_a_table_gives_what_the_lanes_give(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 40, int(rng.integers(1, 30))).tolist()
    sizes[0] += 1
    ghost = int(rng.choice([0, 0, 2, 4]))
    batch = int(rng.integers(1, 20)) * (ghost or 1)
    order = EpochOrder(sizes, seed=seed, epoch=3, global_batch=batch, ghost_size=ghost)
    world = int(rng.integers(1, min(4, order.num_ghosts or order.num_lanes) + 1))
    for rank in range(world):
        lanes = sorted(order.lanes_of(rank, world), key=order.ghost_of)
        table, by_lane = OrderTable(order, lanes), LaneOrder(order, lanes)
        for first in range(order.num_batches):
            last = int(rng.integers(first + 1, order.num_batches + 1))
            assert table.ends(first, last) == by_lane.ends(first, last)
            assert table.ends(first, last)[-1] == len(table.rows(first, last))
            for name in ("rows", "partners", "places"):
                ours, theirs = getattr(table, name)(first, last), getattr(by_lane, name)(first, last)
                assert ours.tolist() == theirs.tolist(), (name, first, last, rank)
                assert ours.dtype == theirs.dtype
        one = [list(order.batch(0)[lane]) for lane in lanes]
        assert by_lane.rows(0, 1).tolist() == [row for rows in one for row in rows]


def test_hashes_of_integers_and_of_arrays_are_one_function() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        parts = [int(value) for value in rng.integers(-(2**62), 2**62, int(rng.integers(1, 6)))]
        as_arrays = keyed_hash(*[np.array([part]) for part in parts])
        assert keyed_hash(*parts).shape == ()
        assert int(keyed_hash(*parts)) == int(as_arrays[0])
        mixed = keyed_hash(*[part if rng.random() < 0.5 else np.array([part]) for part in parts])
        assert int(mixed.reshape(-1)[0]) == int(as_arrays[0])
    assert int(keyed_hash(2**64 - 1)) == int(keyed_hash(-1))


def test_several_streams_are_those_one_by_one() -> None:
    hashes = mix(np.arange(50).astype(np.uint64))
    together = keyed_uniforms(7, 2, hashes, (3, 9, 4))
    for row, stream in zip(together, (3, 9, 4), strict=True):
        assert row.tolist() == keyed_uniform(7, 2, hashes, stream=stream).tolist()


def test_what_is_hashed_is_left_alone() -> None:
    hashes = np.arange(5).astype(np.uint64)
    mix(hashes)
    keyed_hash(hashes)
    keyed_hash(1, hashes, hashes)
    assert hashes.tolist() == [0, 1, 2, 3, 4]
