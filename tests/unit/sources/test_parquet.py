"""Images in Parquet, as `datasets` writes them, as this project does, and as people do."""

from __future__ import annotations

import datetime
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.reader import open_dataset
from pipelines.dataset.user_table import read_rows
from pipelines.errors import InputError
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.unit import ingest_unit
from pipelines.sources.columns import Columns
from pipelines.sources.resolve import open_source
from tests import factories

IMAGES = [factories.make_png(seed, 20, 16) for seed in range(12)]


def write(path: Path, columns: dict[str, Any], *, features: dict[str, Any] | None = None, rows: int = 5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows)
    return path


def structs(images: list[bytes | None], paths: list[str | None] | None = None) -> pa.Array:
    names = paths or [None] * len(images)
    rows = [None if data is None else {"bytes": data, "path": name} for data, name in zip(images, names, strict=True)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def members(source: Any) -> dict[str, Any]:
    return {member.key: member for unit in source.units() for member in source.open(unit)}


def test_what_hugging_face_datasets_writes(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    for split, count in (("train", 8), ("test", 4)):
        rows = [{"image": {"bytes": IMAGES[i], "path": None}, "label": i % 2} for i in range(count)]
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / f"hf/data/{split}-00000-of-00001.parquet")
    (tmp_path / "hf" / "README.md").write_text("a card")
    source = open_source(str(tmp_path / "hf"))
    found = members(source)
    assert len(found) == 12
    member = found["data/train-00000-of-00001.parquet!/000003"]
    assert (member.label, member.given_split, member.data) == ("dog", "train", IMAGES[3])
    assert {member.given_split for member in found.values()} == {"train", "test"}


def test_keys_are_the_rows_own_paths_where_they_tell_rows_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": structs(IMAGES[:2], ["x/1.png", "y/1.png"]), "label": ["k", "l"]})
    assert list(members(open_source(str(path)))) == ["a.parquet!/x/1.png", "a.parquet!/y/1.png"]
    path = write(tmp_path / "b.parquet", {"image": structs(IMAGES[:2], ["1.png", "1.png"])})
    found = members(open_source(str(path)))
    assert list(found) == ["b.parquet!/000000", "b.parquet!/000001"]
    assert [member.label for member in found.values()] == [None, None]


def test_ids_and_units_depend_on_the_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.sources.units.MIN_UNIT_BYTES", 1_000)
    columns = {"png": pa.array(IMAGES, pa.large_binary()), "class": list("aabbaabbaabb")}
    first = open_source(str(write(tmp_path / "p" / "x.parquet", columns, rows=2)))
    second = open_source(str(write(tmp_path / "q" / "x.parquet", columns, rows=2)))
    assert len(first.units()) > 2
    assert [unit.entries for unit in first.units()] == [unit.entries for unit in second.units()]
    assert all(len(unit.entries) % 2 == 0 for unit in first.units())  # row groups are whole
    assert {member.data for member in members(first).values()} == set(IMAGES)


def test_rows_without_an_image_and_files_that_shrink_have_reasons(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": structs([IMAGES[0], None, IMAGES[2]]), "label": [1, -1, 7]})
    source = open_source(str(path))
    units = source.units()
    assert [(m.reason, m.label) for m in source.open(units[0])] == [(None, "1"), ("EMPTY", "-1"), (None, "7")]
    write(path, {"image": structs([IMAGES[0]]), "label": [1]})
    assert [m.reason for m in source.open(units[0])] == [None, "CHANGED", "CHANGED"]
    path.write_bytes(b"PAR1 cut")
    with pytest.raises(InputError, match="is no whole Parquet file"):
        list(source.open(units[0]))


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        ({"text": ["a"]}, Columns(), "has no column of encoded images; it has text"),
        ({"left": [b"a"], "right": [b"b"]}, Columns(), "has 2 columns of bytes: left, right"),
        ({"image": [b"a"]}, Columns(image="photo"), "has no column 'photo' of encoded images; it has image"),
        ({"image": [b"a"]}, Columns(label="kind"), "has no column 'kind'; it has image"),
        ({"image": [b"a"], "label": [[["a"], ["b"]]]}, Columns(), "column 'label' holds list"),
    ],
)
def test_columns_that_cannot_be_meant(tmp_path: Path, columns: Any, named: Columns, message: str) -> None:
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(InputError, match=message):
        open_source(str(path), columns=named).listing()


def test_named_columns_are_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"left": IMAGES[:1], "right": IMAGES[1:2], "label": ["x"], "kind": ["y"]})
    (member,) = members(open_source(str(path), columns=Columns("right", "kind"))).values()
    assert (member.data, member.label) == (IMAGES[1], "y")


def test_further_columns_travel_as_text(tmp_path: Path) -> None:
    when = datetime.datetime(2024, 5, 1, 12, 30)
    first = {
        "image": pa.array(IMAGES[:2], pa.binary()), "label": ["a", "b"], "site": ["north", ""], "patient": [7, None],
        "taken": [when, None], "kept": [True, False], "boxes": [[1, 2], [3]], "mask": [b"x", b"y"],
        "width": [5, 5], "camera": pa.array(["c", "d"]).dictionary_encode(),
    }  # fmt: skip
    write(tmp_path / "set" / "1.parquet", first)
    write(tmp_path / "set" / "2.parquet", {"image": pa.array(IMAGES[2:3], pa.binary()), "label": ["a"], "sex": ["f"]})
    source = open_source(str(tmp_path / "set"))
    found = members(source)
    assert source.carried == ("site", "patient", "taken", "kept", "camera", "sex")
    assert [member.carried for member in found.values()] == [
        ("north", "7", "2024-05-01 12:30:00", "True", "c", None),
        (None, None, None, "False", "d", None),
        (None, None, None, None, None, "f"),
    ]
    assert source.listing().warnings == (
        f"the columns width of {tmp_path / 'set'} are not carried: the dataset has its own of that name",
    )


def test_further_columns_reach_the_dataset(tmp_path: Path) -> None:
    columns = {
        "image": pa.array(IMAGES, pa.binary()),
        "label": list("ab" * 6),
        "site": [f"s{i % 3}" for i in range(12)],
    }
    config = IngestConfig(source=str(write(tmp_path / "a.parquet", columns)), out=str(tmp_path / "out"))
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    dataset = open_dataset(str(tmp_path / "out"))
    assert dataset.catalog["carried"] == ["site"]
    rows = [row for split in dataset.splits for row in dataset.table(split, ["key", "site"]).to_pylist()]
    assert {row["key"]: row["site"] for row in rows} == {f"a.parquet!/{i:06d}": f"s{i % 3}" for i in range(12)}


def test_a_dataset_of_ours_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "set" / "_versions").mkdir(parents=True)
    (tmp_path / "set" / "_versions" / "v000001.json").write_text("{}")
    with pytest.raises(InputError, match="not a source of images"):
        open_source(str(tmp_path / "set"))


def whole(tmp_path: Path) -> bytes:
    table = pa.table({"image": pa.array(IMAGES, pa.binary()), "label": ["a"] * 12})
    path = tmp_path / "whole"
    pq.write_table(
        table, path, row_group_size=4, compression="none", use_dictionary=False, write_statistics=False,
        write_page_checksum=True,
    )  # fmt: skip
    return path.read_bytes()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "P01 empty": lambda data: b"",
    "P02 cut": lambda data: data[:-20],
    "P03 no magic": lambda data: data[:-4] + b"XXXX",
    "P03 no magic at the start": lambda data: b"XXXX" + data[4:],
    "P04 footer too long": lambda data: data[:-8] + (2**31 - 1).to_bytes(4, "little") + data[-4:],
    "P04 footer too short": lambda data: data[:-8] + bytes(4) + data[-4:],
    "P04 negative footer": lambda data: data[:-8] + b"\xff" * 4 + data[-4:],
    "P06 appended bytes": lambda data: data + b"more",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(DAMAGE[name](whole(tmp_path)))
    with pytest.raises(InputError, match=r"a\.parquet is (no whole Parquet file|empty)"):
        open_source(str(path)).listing()


def test_p05_a_flipped_bit_costs_its_row_group_and_no_other(tmp_path: Path) -> None:
    data = bytearray(whole(tmp_path))
    data[data.find(IMAGES[5]) + 30] ^= 1
    path = tmp_path / "a.parquet"
    path.write_bytes(data)
    found = members(open_source(str(path)))
    assert {int(key[-6:]): member.reason for key, member in found.items()} == {
        **dict.fromkeys(range(12)),
        **dict.fromkeys(range(4, 8), "CHECKSUM"),
    }


_NO_TEXT = pa.array([b"a", b"\xff\xfe", *[b"c"] * 10], pa.binary())
_NO_TEXT = pa.StringArray.from_buffers(12, _NO_TEXT.buffers()[1], _NO_TEXT.buffers()[2])
_NO_DATE = pa.array([0, 2**62, *[0] * 10], pa.int64()).cast(pa.timestamp("us"))
BAD_CELLS: dict[str, tuple[dict[str, Any], str]] = {
    "text in a further column": ({"image": IMAGES, "label": ["a"] * 12, "site": _NO_TEXT}, "'site' .* as string"),
    "text in a label": ({"image": IMAGES, "label": _NO_TEXT}, "'label' .* as string"),
    "text in a path": (
        {"image": pa.StructArray.from_arrays([pa.array(IMAGES), _NO_TEXT], ["bytes", "path"])},
        "'image.path' .* as string",
    ),
    "date in a further column": ({"image": IMAGES, "taken": _NO_DATE}, "'taken' .* as timestamp"),
    "date in a label": ({"image": IMAGES, "label": _NO_DATE}, "'label' .* as timestamp"),
    "day after the last year": ({"image": IMAGES, "day": pa.array([2**31 - 1] * 12, pa.date32())}, "'day' .* as date"),
    "time of no known zone": (
        {"image": IMAGES, "taken": pa.array([0] * 12, pa.timestamp("s", "Nowhere/None"))},
        "'taken' .* as timestamp",
    ),
}


@pytest.mark.parametrize("name", BAD_CELLS)
def test_a_cell_that_is_no_value_is_refused_by_file_and_column(tmp_path: Path, name: str) -> None:
    columns, words = BAD_CELLS[name]
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(InputError, match=rf"a\.parquet has a cell in column {words}") as caught:
        open_source(str(path)).listing()
    assert caught.value.exit_code == 2


class _Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("kind", ["arrow_tensor", "arrow_tensor_v2", "arrow_variable_shaped_tensor"])
def test_p07_a_pickle_in_an_extension_type_is_not_run(tmp_path: Path, kind: str) -> None:
    import ray.air.util.tensor_extensions.arrow  # registers the types, as a worker's process has

    assert ray is not None
    told = {
        "ARROW:extension:name": f"ray.data.{kind}",
        "ARROW:extension:metadata": pickle.dumps(_Canary(tmp_path / "canary")),
    }
    schema = pa.schema([pa.field("image", pa.binary(), metadata=told)])
    pq.write_table(pa.table([pa.array(IMAGES, pa.binary())], schema=schema), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has a column of a type that cannot be read"):
        open_source(str(tmp_path / "a.parquet")).listing()
    with pytest.raises(InputError, match="has a column of a type that cannot be read"):
        list(read_rows(str(tmp_path / "a.parquet")))
    assert not (tmp_path / "canary").exists()


NUMBERED = {
    **{name[:3]: ("test_parquet.py", "test_damaged_files_are_refused_by_name") for name in DAMAGE},
    "P05": ("test_parquet.py", "test_p05_a_flipped_bit_costs_its_row_group_and_no_other"),
    "P07": ("test_parquet.py", "test_p07_a_pickle_in_an_extension_type_is_not_run"),
    # these are of datasets, whose every file has its hash in a catalog
    "P08": ("../dataset/test_catalog.py", "test_catalogs_that_cannot_be_read"),
    "P09": ("../dataset/test_inspect.py", "test_a_cut_a_missing_and_a_swapped_file_are_told_apart"),
    "P10": ("../dataset/test_inspect.py", "test_a_catalog_that_does_not_fit_its_rows_is_found"),
}


def test_every_number_of_the_list_has_its_test() -> None:
    assert set(NUMBERED) == {f"P{number:02d}" for number in range(1, 11)}
    for file, name in NUMBERED.values():
        assert f"def {name}(" in (Path(__file__).parent / file).read_text()
