"""IDX files: MNIST as it is handed out, read without unpacking anything to disk."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import InputError
from pipelines.sources import idx
from pipelines.sources.base import Source, Unit
from pipelines.sources.resolve import open_source
from pipelines.sources.units import MAX_UNIT_ROWS


def write_pair(folder: Path, prefix: str, count: int, *, packed: bool = True, seed: int = 0) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    for name, magic, array in (("images-idx3-ubyte", 3, pixels), ("labels-idx1-ubyte", 1, labels)):
        data = bytes([0, 0, 8, magic]) + struct.pack(f">{magic}I", *array.shape) + array.tobytes()
        path = folder / f"{prefix}-{name}{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return pixels


def members(source: Source) -> dict[str, Any]:
    units = [Unit.from_text(unit.to_text()) for unit in source.units()]
    return {member.key: member for unit in units for member in source.open(unit)}


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_as_it_is_handed_out(tmp_path: Path, packed: bool) -> None:
    train = write_pair(tmp_path / "mnist", "train", 30, packed=packed)
    write_pair(tmp_path / "mnist", "t10k", 10, packed=packed, seed=1)
    found = members(open_source(str(tmp_path / "mnist")))
    assert len(found) == 40
    ending = ".gz" if packed else ""
    member = found[f"train-images-idx3-ubyte{ending}!/000013.png"]
    assert (member.label, member.given_split) == ("3", "train")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(member.data))), train[13])
    assert {each.given_split for each in found.values()} == {"train", "test"}


def test_images_without_labels_are_unlabelled(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", 5)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert {member.label for member in members(open_source(str(tmp_path))).values()} == {None}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "train-images-idx3-ubyte",
            b"\0\0\x08\x03" + struct.pack(">3I", 2, 28, 28) + b"\0" * 28,
            "says 2 x 28 x 28 and",
        ),
        ("train-images-idx3-ubyte", b"\0\0\x0d\x03" + b"\0" * 12, "is no IDX file of images"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"\0" * 5000, mtime=0)[:-20], "is cut"),
        ("train-images-idx3-ubyte.gz", b"\x1f\x8b\x08" + bytes(7) + b"\x07" * 40, "is damaged"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03" + b"\xff" * 12, "more than 2,147,483,648 bytes"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03" + struct.pack(">3I", 1, 2, 2) + b"\0" * 9, "and has more bytes"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x01" + struct.pack(">I", 3) + b"\1\2\3", "has 3 labels for 5 images"),
    ],
    ids=["short", "magic", "cut", "damaged", "huge", "long", "labels"],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    write_pair(tmp_path, "train", 5, packed=name.endswith(".gz"))
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        open_source(str(tmp_path)).listing()


def test_the_same_files_give_the_same_ids_and_bytes(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_pair(tmp_path / place / "mnist", "train", 5)
    one, two = (members(open_source(str(tmp_path / place / "mnist"))) for place in ("a", "b"))
    assert [(key, m.image_id, m.data) for key, m in one.items()] == [
        (key, m.image_id, m.data) for key, m in two.items()
    ]


@pytest.mark.parametrize("packed", [True, False])
def test_of_a_large_file_a_worker_holds_its_own_rows(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = write_pair(tmp_path / "set", "train", 300, packed=packed)
    whole = members(open_source(str(tmp_path / "set")))
    monkeypatch.setattr(idx, "HELD_BYTES", 100_000)
    monkeypatch.setattr("pipelines.sources.units.MIN_UNIT_BYTES", 50_000)
    source = open_source(str(tmp_path / "set"))
    assert len(source.units()) > 2
    found = members(source)
    assert {key: (m.image_id, m.data, m.label) for key, m in found.items()} == {
        key: (m.image_id, m.data, m.label) for key, m in whole.items()
    }
    assert source._held == ("", b"")
    last = found[f"train-images-idx3-ubyte{'.gz' if packed else ''}!/000299.png"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(last.data))), train[299])


@pytest.mark.parametrize("packed", [True, False])
def test_a_file_that_shrank_since_has_a_reason(tmp_path: Path, packed: bool) -> None:
    write_pair(tmp_path / "set", "train", 9, packed=packed)
    source = open_source(str(tmp_path / "set"))
    units = source.units()
    write_pair(tmp_path / "set", "train", 4, packed=packed)
    reasons = [member.reason for unit in units for member in source.open(unit)]
    assert sorted(map(str, reasons)) == ["CHANGED"] * 5 + ["None"] * 4


def test_units_hold_as_many_rows_as_those_of_any_source(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", MAX_UNIT_ROWS + 8)
    units = open_source(str(tmp_path)).units()
    assert [len(unit.entries) for unit in units] == [MAX_UNIT_ROWS, 8]
