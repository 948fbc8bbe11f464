"""Keyed randomness: known values, and independence of who asks."""

from __future__ import annotations

import numpy as np

from pipelines.dataset.keyed import (
    image_hash,
    image_hashes,
    keyed_hash,
    keyed_order,
    keyed_uniform,
    mix,
    row_traces,
)


def test_mix_is_the_splitmix64_finaliser():
    """The first outputs of SplitMix64 seeded with 0, as its authors' C program prints them."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([golden * step % 2**64 for step in (1, 2, 3)], dtype=np.uint64)
    assert [hex(value) for value in mix(states).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_each_part_of_the_key_matters_and_so_does_their_order():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 1, 0), (1, 2, 0), (-1, 0, 0)]
    assert len({int(keyed_hash(*key)) for key in keys}) == len(keys)


def test_arrays_give_what_single_values_give():
    hashes = image_hashes(["00000000000000ff" + "0" * 16, "f" * 32])
    both = keyed_uniform(1, 2, hashes, repeat=np.array([0, 3]), stream=4)
    single = [
        keyed_uniform(1, 2, hashes[:1], repeat=0, stream=4)[0],
        keyed_uniform(1, 2, hashes[1:], repeat=3, stream=4)[0],
    ]
    assert both.tolist() == single


def test_numbers_are_uniform_and_streams_are_independent():
    hashes = keyed_hash(np.arange(20_000))
    one, other = (keyed_uniform(0, 0, hashes, stream=stream) for stream in (0, 1))
    assert 0 <= one.min() < 0.001 < 0.999 < one.max() < 1
    assert np.abs(np.histogram(one, 10)[0] - 2000).max() < 200  # 4.7 standard deviations
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def test_known_numbers_do_not_drift():
    """Augmentation of a resumed run depends on these."""
    found = keyed_uniform(1, 2, image_hashes(["0123456789abcdef" * 2]), repeat=3, stream=4)
    assert found.tolist() == [0.811676874779953]


def test_image_hash_is_the_first_16_hex_digits():
    assert image_hash("00000000000000ff" + "a" * 16) == 255
    assert image_hashes(["f" * 32]).tolist() == [2**64 - 1]


def test_keyed_order_is_a_permutation_of_its_key():
    assert sorted(keyed_order(100, 1, 2).tolist()) == list(range(100))
    assert keyed_order(100, 1, 2).tolist() == keyed_order(100, 1, 2).tolist() != keyed_order(100, 1, 3).tolist()


def test_the_sum_of_traces_sees_a_swap():
    hashes = keyed_hash(np.arange(50))
    places = np.arange(50)
    whole = row_traces(places, hashes).sum(dtype=np.uint64)
    swapped = hashes.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert row_traces(places, swapped).sum(dtype=np.uint64) != whole
    order = np.random.default_rng(0).permutation(50)
    assert row_traces(places[order], hashes[order]).sum(dtype=np.uint64) == whole
