"""The fingerprint: independent of order and sharding, dependent on every value that makes a row what it is."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from pipelines.dataset.fingerprint import MODULUS, add, from_hex, merge, row_hash, to_hex

HASHES = st.lists(st.integers(0, MODULUS - 1), max_size=20)


@given(HASHES, st.randoms(use_true_random=False), st.integers(0, 20))
def test_order_and_sharding_do_not_matter(hashes: list[int], generator: random.Random, cut: int):
    shuffled = list(hashes)
    generator.shuffle(shuffled)
    assert merge([to_hex(add(shuffled[:cut])), to_hex(add(shuffled[cut:]))]) == to_hex(add(hashes))


def test_every_value_of_a_row_matters():
    row = ("id", "source", "stored", "cat", "train", {"age": 3})
    changed = [
        ("ID", *row[1:]),
        (row[0], "SOURCE", *row[2:]),
        (*row[:2], "STORED", *row[3:]),
        (*row[:3], "dog", *row[4:]),
        (*row[:3], None, *row[4:]),
        (*row[:4], "test", row[5]),
        (*row[:5], {"age": 4}),
        (*row[:5], {}),
    ]
    assert len({row_hash(*values) for values in [row, *changed]}) == len(changed) + 1


def test_labels_that_look_alike_differ():
    labels = [None, "None", "", [], ["a"], "a", 1.0, "1.0", ["a", "b"], ["a,b"]]
    assert len({row_hash("i", "s", "t", label, "train") for label in labels}) == len(labels)


def test_the_names_of_carried_columns_are_sorted_first():
    one = row_hash("i", "s", "t", None, "train", {"a": 1, "b": b"\x00"})
    assert one == row_hash("i", "s", "t", None, "train", {"b": b"\x00", "a": 1})


def test_a_known_row_keeps_its_hash():
    """Datasets made before must still be recognised."""
    found = to_hex(row_hash("0" * 32, "1" * 64, "2" * 64, "caf\u00e9", "train", {"n": 1}))
    assert found == "e58c3e6130588cebb6445a75f1396b723792e3c63e1eb7754ed2e8b4b60284a7"


def test_hex_round_trip():
    assert from_hex("") == 0
    assert from_hex(to_hex(MODULUS - 1)) == MODULUS - 1
    assert to_hex(MODULUS + 5) == "0" * 63 + "5"
