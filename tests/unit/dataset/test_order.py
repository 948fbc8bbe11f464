"""The order of samples: a partition of the rows, one global order for every number of workers, seekable."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.keyed import row_traces
from pipelines.dataset.order import EpochOrder, lanes_of, make_lanes, sharing_efficiency
from pipelines.errors import ConfigError

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=40).filter(any)
BATCHES = st.integers(1, 150)
GHOSTS = st.tuples(st.integers(1, 8), st.integers(1, 80))  # ghost size, number of ghost groups


def rows_of(order: EpochOrder) -> np.ndarray:
    return np.concatenate([np.concatenate(order.batch(t)) for t in range(order.num_batches)])


@given(SIZES, BATCHES, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_gives_every_row_once_in_batches_of_exactly_the_global_size(sizes, batch, epoch):
    order = EpochOrder(sizes, seed=7, epoch=epoch, global_batch=batch)
    lengths = [sum(len(rows) for rows in order.batch(t)) for t in range(order.num_batches)]
    assert lengths == [order.batch_rows(t) for t in range(order.num_batches)]
    assert set(lengths[:-1]) <= {batch}
    assert 1 <= lengths[-1] <= batch
    assert sorted(rows_of(order).tolist()) == list(range(sum(sizes)))


@given(SIZES, GHOSTS)
@settings(max_examples=60, deadline=None)
def test_every_ghost_group_has_exactly_its_size_in_every_full_batch(sizes, ghosts):
    ghost_size, groups = ghosts
    order = EpochOrder(sizes, seed=1, epoch=0, global_batch=ghost_size * groups, ghost_size=ghost_size)
    assert order.num_ghosts == groups
    for t in range(order.num_batches):
        counts = np.zeros(groups, dtype=int)
        for lane, rows in enumerate(order.batch(t)):
            counts[order.ghost_of(lane)] += len(rows)
        if order.batch_rows(t) == order.global_batch:
            assert counts.tolist() == [ghost_size] * groups
        assert counts.max() <= ghost_size
    assert sorted(rows_of(order).tolist()) == list(range(sum(sizes)))


@given(SIZES, BATCHES)
@settings(max_examples=25, deadline=None)
def test_the_lanes_of_one_to_five_workers_give_the_same_batches_and_the_same_trace(sizes, batch):
    order = EpochOrder(sizes, seed=3, epoch=2, global_batch=batch)
    hashes = np.arange(order.num_rows, dtype=np.uint64) * np.uint64(977)
    whole = [sorted(np.concatenate(order.batch(t)).tolist()) for t in range(order.num_batches)]
    traces = set()
    for world_size in range(1, min(5, order.num_lanes) + 1):
        trace = 0
        batches: list[list[int]] = [[] for _ in range(order.num_batches)]
        for rank in range(world_size):
            own = EpochOrder(sizes, seed=3, epoch=2, global_batch=batch)  # a worker shares nothing with the others
            for t in range(own.num_batches):
                rows, places = own.batch(t), own.places(t)
                for lane in own.lanes_of(rank, world_size):
                    batches[t] += rows[lane].tolist()
                    trace += int(row_traces(places[lane], hashes[rows[lane]]).sum(dtype=np.uint64))
        assert [sorted(rows) for rows in batches] == whole
        traces.add(trace % 2**64)
    assert len(traces) == 1


@given(SIZES, BATCHES, st.data())
@settings(max_examples=60, deadline=None)
def test_seeking_to_a_batch_gives_what_walking_there_gives(sizes, batch, data):
    walked = EpochOrder(sizes, seed=5, epoch=1, global_batch=batch)
    t = data.draw(st.integers(0, walked.num_batches - 1))
    for step in range(t):
        walked.batch(step)
    sought = EpochOrder(sizes, seed=5, epoch=1, global_batch=batch)
    for one, other in zip(walked.batch(t), sought.batch(t), strict=True):
        assert one.tolist() == other.tolist()


@given(SIZES, BATCHES)
@settings(max_examples=60, deadline=None)
def test_a_lane_has_given_the_written_number_of_rows_after_every_batch(sizes, batch):
    order = EpochOrder(sizes, seed=0, epoch=0, global_batch=batch)
    lanes = order.num_lanes
    assert lanes == min(64, batch)
    given_rows = np.zeros(lanes, dtype=int)
    for t in range(order.num_batches):
        given_rows += [len(rows) for rows in order.batch(t)]
        total = min((t + 1) * batch, order.num_rows)
        assert given_rows.tolist() == [(total + lane) // lanes for lane in range(lanes)]


@given(SIZES, BATCHES)
@settings(max_examples=60, deadline=None)
def test_the_partner_of_a_row_is_the_row_before_it_in_its_lane(sizes, batch):
    order = EpochOrder(sizes, seed=2, epoch=0, global_batch=batch)
    walked: list[list[int]] = [[] for _ in range(order.num_lanes)]
    partners: list[list[int]] = [[] for _ in range(order.num_lanes)]
    for t in range(order.num_batches):
        for lane, (rows, before) in enumerate(zip(order.batch(t), order.partners(t), strict=True)):
            walked[lane] += rows.tolist()
            partners[lane] += before.tolist()
    for rows, found in zip(walked, partners, strict=True):
        first = rows[1:2] or rows[:1]
        assert found == (first + rows[:-1] if rows else [])
    assert [order.lane(lane).tolist() for lane in range(order.num_lanes)] == walked


def test_places_number_the_rows_of_an_epoch_through():
    order = EpochOrder([30, 20], seed=0, epoch=0, global_batch=7)
    places = [np.concatenate(order.places(t)) for t in range(order.num_batches)]
    assert np.concatenate(places).tolist() == list(range(50))


def test_rows_stay_inside_windows_of_their_lane():
    """What a lane keeps in memory: with 64 lanes, 8 row groups at a time."""
    sizes = [16] * 4096
    order = EpochOrder(sizes, seed=0, epoch=0, global_batch=64)
    for lane in (0, 17, 63):
        groups = order.lane(lane) // 16
        for start in range(0, len(groups), 8 * 16):
            # A lane begins inside a group when its length is no multiple of 16; here it begins with one.
            assert len(set(groups[start : start + 8 * 16].tolist())) <= 8


def test_batches_of_class_sorted_data_hold_most_classes():
    """The measured reason for windows of 512 / L row groups: 94.8 distinct classes of 100 in a batch of 256."""
    rows_per_class, classes = 5120, 100
    labels = np.repeat(np.arange(classes), rows_per_class)
    order = EpochOrder([512] * (rows_per_class * classes // 512), seed=0, epoch=0, global_batch=256)
    distinct = [len(set(labels[np.concatenate(order.batch(t))].tolist())) for t in range(0, order.num_batches, 200)]
    shuffled = np.random.default_rng(0).permutation(labels)
    full = [len(set(shuffled[t * 256 : (t + 1) * 256].tolist())) for t in range(10)]
    assert np.mean(distinct) >= np.mean(full) - 5, (np.mean(distinct), np.mean(full))


def test_epochs_and_seeds_differ_and_equal_arguments_do_not():
    def digest(seed: int, epoch: int) -> list[int]:
        return rows_of(EpochOrder([10, 20, 30], seed=seed, epoch=epoch, global_batch=8)).tolist()

    assert digest(0, 0) == digest(0, 0)
    assert digest(0, 0) != digest(0, 1)
    assert digest(0, 0) != digest(1, 0)


def test_the_order_is_the_one_that_running_trainings_were_begun_with():
    """A digest of known orders: when it changes, interrupted trainings no longer resume where they stood."""
    plain = rows_of(EpochOrder([512, 100, 0, 300], seed=11, epoch=4, global_batch=48))
    ghost = rows_of(EpochOrder([512, 100, 0, 300], seed=11, epoch=4, global_batch=48, ghost_size=16))
    found = [hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16] for rows in (plain, ghost)]
    assert found == ["f55c5054f893679c", "faa28f629d24bd6e"]


def test_lanes_without_ghosts_and_with_them():
    assert make_lanes(256) == (64, 0)
    assert make_lanes(10) == (10, 0)
    assert make_lanes(256, 32) == (64, 8)
    assert make_lanes(96, 32) == (63, 3)
    assert make_lanes(1000, 10) == (100, 100)


@pytest.mark.parametrize(("num_lanes", "num_ghosts"), [(64, 0), (63, 3), (100, 100)])
def test_workers_own_whole_lanes_and_whole_ghost_groups(num_lanes, num_ghosts):
    for world_size in (1, 2, 3):
        owned = [lanes_of(rank, world_size, num_lanes, num_ghosts) for rank in range(world_size)]
        assert sorted(lane for lanes in owned for lane in lanes) == list(range(num_lanes))
        if num_ghosts:
            ghosts = [{lane % num_ghosts for lane in lanes} for lanes in owned]
            assert sum(len(part) for part in ghosts) == num_ghosts


def test_workers_that_do_not_divide_the_lanes_wait_for_each_other():
    assert sharing_efficiency(48, 64) == pytest.approx(2 / 3)
    assert sharing_efficiency(3, 63, 3) == sharing_efficiency(4, 64) == 1.0


def test_an_epoch_shorter_than_its_lanes_leaves_lanes_without_rows():
    order = EpochOrder([5], seed=0, epoch=0, global_batch=64)
    lengths = [len(rows) for rows in order.batch(0)]
    assert lengths == [0] * 59 + [1] * 5
    assert order.num_batches == 1
    assert [len(rows) for rows in order.partners(0)] == lengths


def test_what_cannot_be_ordered_is_refused():
    with pytest.raises(ConfigError, match="there are no rows to train on"):
        EpochOrder([0, 0], seed=0, epoch=0, global_batch=8)
    with pytest.raises(ConfigError, match="global_batch_size is 0; it must be at least 1"):
        EpochOrder([3], seed=0, epoch=0, global_batch=0)
    with pytest.raises(ConfigError, match="ghost batches of 24 rows do not divide the global batch size 64"):
        EpochOrder([3], seed=0, epoch=0, global_batch=64, ghost_size=24)
    with pytest.raises(ConfigError, match="9 workers cannot share 8 lanes"):
        lanes_of(0, 9, 8)
    with pytest.raises(ConfigError, match="5 workers cannot share 4 ghost batches"):
        lanes_of(0, 5, 64, 4)
    with pytest.raises(IndexError, match="batch 1 is not in 0 to 0"):
        EpochOrder([3], seed=0, epoch=0, global_batch=8).batch(1)
