"""Near-duplicates: every pair within the distance is found, nothing else, and chains do not merge pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset import near
from pipelines.dataset.near import count_accidents, find_neighbours, near_clusters, near_pairs

WORDS = st.integers(0, 2**64 - 1)
FLIPS = st.lists(st.integers(0, 63), max_size=7)


def flipped(value: int, bits: list[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(WORDS, st.lists(FLIPS, max_size=4)), min_size=1, max_size=12), st.integers(0, 4))
def test_the_pairs_are_those_of_a_comparison_of_all(families: list[tuple[int, list[list[int]]]], distance: int) -> None:
    values = sorted({flipped(base, flips) for base, all_flips in families for flips in ([], *all_flips)})
    unique = np.array(values, np.uint64)
    expected = {
        (i, j)
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if (values[i] ^ values[j]).bit_count() <= distance
    }
    pairs, capped = near_pairs(unique, max_distance=distance)
    assert {tuple(pair) for pair in pairs.tolist()} == expected
    assert len(pairs) == len(expected)
    assert capped == 0


def test_equal_hashes_are_one_cluster_and_lonely_ones_none() -> None:
    found = near_clusters(np.array([5, 0xABCD << 40, 5, 5, 0xFEDC << 20], np.uint64))
    assert found.cluster.tolist() == [0, -1, 0, 0, -1]
    assert found.leader.tolist() == [0]


def test_a_chain_of_small_steps_does_not_merge_its_ends() -> None:
    chain = np.array([(1 << bits) - 1 for bits in range(0, 41, 2)], np.uint64)  # neighbours 2 bits apart, ends 40
    found = near_clusters(chain)
    assert (found.cluster >= 0).all()
    for number, leader in enumerate(found.leader.tolist()):
        members = chain[found.cluster == number]
        assert np.bitwise_count(members ^ chain[leader]).max() <= 4
        assert len(members) <= 5


@settings(max_examples=50, deadline=None)
@given(st.lists(WORDS, min_size=2, max_size=30), st.randoms(use_true_random=False))
def test_clusters_do_not_depend_on_the_order_of_rows(values: list[int], shuffler: object) -> None:
    rows = [value for base in values for value in (base, base ^ 1, base ^ 6)]
    order = list(range(len(rows)))
    shuffler.shuffle(order)  # type: ignore[attr-defined]
    straight = near_clusters(np.array(rows, np.uint64)).cluster
    mixed = near_clusters(np.array([rows[place] for place in order], np.uint64)).cluster

    def groups(cluster: np.ndarray, names: list[int]) -> set[frozenset[int]]:
        return {
            frozenset(names[place] for place in np.flatnonzero(cluster == number).tolist())
            for number in range(cluster.max() + 1)
        }

    assert groups(straight, list(range(len(rows)))) == groups(mixed, order)


def test_hashes_that_too_many_resemble_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "MAX_RUN", 8)
    crowd = np.arange(64, dtype=np.uint64) << np.uint64(58)  # all but the last block in common
    _, capped = near_pairs(crowd)
    assert capped == 64 - 9


def test_the_pairs_of_a_crowd_are_bounded_and_none_of_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "MAX_PARTNERS", 16)
    draw = np.random.default_rng(0)
    flips = np.uint64(1) << draw.integers(0, 64, (1500, 3)).astype(np.uint64)
    crowd = np.unique(np.uint64(0x0123456789ABCDEF) ^ np.bitwise_or.reduce(flips, axis=1))  # all near one, not in it
    lonely = np.uint64(0xFEDC << 40)
    unique = np.sort(np.r_[crowd, lonely])
    pairs, capped = near_pairs(unique)
    assert (np.bitwise_count(unique[pairs[:, 0]] ^ unique[pairs[:, 1]]) <= 4).all()
    assert len(np.unique(pairs, axis=0)) == len(pairs) <= 2 * 16 * len(crowd)
    distance = np.bitwise_count(crowd[:, None] ^ crowd[None, :])
    assert (distance <= 4).sum() - len(crowd) > 2 * len(pairs)
    assert len(crowd) * 0.8 < capped <= len(crowd)
    has_some = set(pairs.ravel().tolist())
    expected = {place for place in range(len(crowd)) if (distance[place] <= 4).sum() > 1}
    assert {place for place, value in enumerate(unique) if value in crowd[sorted(expected)]} == has_some


def test_distances_beyond_what_the_blocks_promise_are_refused() -> None:
    with pytest.raises(ValueError, match="max_distance is 5"):
        near_clusters(np.array([1], np.uint64), max_distance=5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), FLIPS, st.integers(0, 2)), min_size=1, max_size=25), st.integers(0, 4))
def test_what_is_left_without_the_shadowed_has_no_near_rows_across_ranks(
    drawn: list[tuple[int, list[int], int]], distance: int
) -> None:
    hashes = [flipped(0x0123456789ABCDEF * (base + 1) % 2**64, bits) for base, bits, _ in drawn]
    ranks = [rank for _, _, rank in drawn]
    found = find_neighbours(np.array(hashes, np.uint64), max_distance=distance).shadowed(np.array(ranks))
    stays = [row for row, near_row in enumerate(found.tolist()) if near_row < 0]

    def are_near(one: int, other: int) -> bool:
        return (hashes[one] ^ hashes[other]).bit_count() <= distance

    assert not [(one, other) for one in stays for other in stays if ranks[one] < ranks[other] and are_near(one, other)]
    for row, near_row in enumerate(found.tolist()):
        if near_row >= 0:  # none goes without a reason that stays
            assert near_row in stays
            assert ranks[near_row] < ranks[row]
            assert are_near(row, near_row)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), FLIPS), min_size=1, max_size=25), st.integers(0, 4))
def test_what_is_left_without_the_repeats_has_no_near_rows_and_each_repeat_one_that_stays(
    drawn: list[tuple[int, list[int]]], distance: int
) -> None:
    hashes = [flipped(0x0123456789ABCDEF * (base + 1) % 2**64, bits) for base, bits in drawn]
    neighbours = find_neighbours(np.array(hashes, np.uint64), max_distance=distance)
    found = neighbours.repeats()
    assert found.tolist() == neighbours.shadowed(np.arange(len(hashes))).tolist()
    stays = [row for row, near_row in enumerate(found.tolist()) if near_row < 0]
    apart = [(hashes[one] ^ hashes[other]).bit_count() for one in stays for other in stays if one < other]
    assert min(apart, default=64) > distance
    for row, near_row in enumerate(found.tolist()):
        if near_row >= 0:
            assert near_row in stays
            assert (hashes[row] ^ hashes[near_row]).bit_count() <= distance


def drawn_alike(number: int, seed: int = 0) -> np.ndarray:
    """Return hashes of pictures of one kind: most bits are the same in all, the others go together in groups."""
    draw = np.random.default_rng(seed)
    groups = np.array([draw.choice(64, 6, replace=False) for _ in range(10)])
    masks = (np.uint64(1) << groups.astype(np.uint64)).sum(axis=1).astype(np.uint64)
    hashes = np.full(number, 0x00FF3C3C18181800, np.uint64)
    for mask in masks:
        part = draw.integers(0, 2**64, number, dtype=np.uint64) & mask
        hashes ^= np.where(draw.random(number) < 0.3, part, np.uint64(0))
    return hashes


def test_accidents_are_told_from_copies() -> None:
    draw = np.random.default_rng(1)
    photographs = draw.integers(0, 2**64, 3000, dtype=np.uint64)
    assert count_accidents(photographs) == 0
    # every picture has nine copies that differ in up to 4 bits: a valley lies between them and all others
    copies = np.repeat(photographs[:300], 10)
    for _ in range(4):
        copies = copies ^ np.where(
            draw.random(3000) < 0.4, np.uint64(1) << draw.integers(0, 64, 3000).astype(np.uint64), 0
        )
    assert count_accidents(copies) == 0
    assert count_accidents(drawn_alike(3000)) > 1
    assert count_accidents(drawn_alike(3000), max_distance=0) < count_accidents(drawn_alike(3000))
    assert count_accidents(drawn_alike(150)) > 0.1
    assert count_accidents(photographs[:150]) == count_accidents(copies[:150]) == 0
    assert count_accidents(drawn_alike(4)) == count_accidents(photographs[:0]) == 0  # too few to say


def test_accidents_grow_with_the_number_of_pictures() -> None:
    few, many = count_accidents(drawn_alike(2000)), count_accidents(drawn_alike(60_000))
    assert many == pytest.approx(30 * few, rel=0.3)
