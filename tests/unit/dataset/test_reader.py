"""Opening a version: its rows in order, its row groups, its figures, and clear words when something is missing."""

from __future__ import annotations

import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from pipelines.dataset import writer
from pipelines.dataset.fingerprint import merge
from pipelines.dataset.reader import open_dataset
from pipelines.errors import DataError, InputError
from pipelines.storage import Storage
from tests.unit.dataset.rows import image_id, image_page_end, ingest, label_of, make_png, split_of


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path) -> Storage:
    return Storage.open(tmp_path if request.param == "local" else f"memory://{tmp_path.name}")


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch):
    monkeypatch.setattr(writer, "MAX_GROUP_ROWS", 7)


def numbers(split: str, size: int) -> list[int]:
    return [number for number in range(size) if split_of(number) == split]


def test_a_version_shows_its_rows_classes_and_splits(storage):
    ingest(storage, {0: range(30), 1: range(30, 50)})
    dataset = open_dataset(storage.uri)
    assert (dataset.version, dataset.task, dataset.classes) == (1, "single", ["cat", "dog", "eel"])
    assert dataset.splits == ["test", "train"]
    assert dataset.num_rows("train") == 40
    assert dataset.fingerprint == merge(dataset.split_fingerprint(split) for split in dataset.splits)
    table = dataset.table("train", ["image_id", "label"])
    assert table.column_names == ["image_id", "label"]
    assert table.column("image_id").to_pylist() == [image_id(number) for number in numbers("train", 50)]
    assert table.column("label").to_pylist() == [label_of(number) for number in numbers("train", 50)]
    assert dataset.class_indices("train").tolist() == [number % 3 for number in numbers("train", 50)]


def test_row_groups_are_the_table_in_pieces(storage):
    ingest(storage, {0: range(30), 1: range(30, 50)})
    dataset = open_dataset(storage.uri)
    groups = dataset.row_groups("train")
    assert [group.num_rows for group in groups] == [7, 7, 7, 3, 7, 7, 2]
    ids = [dataset.read_group("train", index, ["image_id"]).column(0).to_pylist() for index in range(len(groups))]
    assert [len(part) for part in ids] == [group.num_rows for group in groups]
    assert [name for part in ids for name in part] == dataset.table("train", ["image_id"]).column(0).to_pylist()
    image = dataset.read_group("train", 4).column("image").to_pylist()[1]["bytes"]
    assert image == make_png(numbers("train", 50)[25])


def test_rows_follow_run_and_unit_and_never_the_file_name(storage):
    ingest(storage, {1: range(10, 20), 0: range(10)}, attempt="zz", key="f" * 32)
    ingest(storage, {0: range(20, 30)}, attempt="aa", key="0" * 32, source="more", base=1)
    dataset = open_dataset(storage.uri)
    assert dataset.version == 2
    ids = dataset.table("train", ["image_id"]).column(0).to_pylist()
    expected = [image_id(number) for number in numbers("train", 20)]
    assert ids == expected + [image_id(number, "more") for number in range(20, 30) if split_of(number) == "train"]
    assert open_dataset(f"{storage.uri}@v1").table("train", ["image_id"]).num_rows == 16


def test_mean_and_deviation_are_those_of_the_pixels(storage):
    ingest(storage, {0: range(30)})
    dataset = open_dataset(storage.uri)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(make_png(n)))) for n in numbers("train", 30)]) / 255
    mean, std = dataset.mean_std("train")
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)), rtol=1e-9)


def test_mean_and_deviation_do_not_depend_on_units(tmp_path):
    one, other = Storage.open(tmp_path / "one"), Storage.open(tmp_path / "other")
    ingest(one, {0: range(50)})
    ingest(other, {0: range(49, 20, -1), 1: range(20, -1, -1)})
    first, second = open_dataset(one.uri), open_dataset(other.uri)
    assert first.mean_std() == second.mean_std()  # bit-equal: the sums are exact
    assert first.fingerprint == second.fingerprint


def test_a_pinned_version_does_not_see_later_ones_and_pickles(storage):
    ingest(storage, {0: range(10)})
    dataset = open_dataset(storage.uri)
    ingest(storage, {0: range(10, 20)}, key="b" * 32, source="more", base=1)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.ref == dataset.ref == f"{storage.uri}@v1"
    assert copy.table("train", ["key"]).num_rows == dataset.table("train", ["key"]).num_rows == 8


def test_threads_may_read_at_once(storage):
    ingest(storage, {0: range(200)})
    dataset = open_dataset(storage.uri)
    count = len(dataset.row_groups("train"))
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda index: dataset.read_group("train", index, ["key"]).num_rows, range(count)))
    assert sum(parts) == 160


def test_more_shards_than_open_files(storage):
    ingest(storage, {unit: [unit] for unit in range(40)})
    dataset = open_dataset(storage.uri)
    assert dataset.table("train", ["key"]).num_rows == 32
    assert dataset.read_group("train", 0, ["key"]).num_rows == 1


def test_what_is_not_there_is_named(storage):
    with pytest.raises(InputError, match=r"there is no dataset at .*: no catalog is published there") as error:
        open_dataset(storage.uri)
    assert f"resnet ingest SOURCE --out {storage.uri}" in error.value.mend
    ingest(storage, {0: range(10)})
    dataset = open_dataset(storage.uri)
    with pytest.raises(InputError, match="has no split 'val'; it has test, train"):
        dataset.table("val")
    with pytest.raises(InputError, match="has no column 'age'; it has image, label"):
        dataset.table("train", ["age"])
    with pytest.raises(InputError, match="has no version v2"):
        open_dataset(f"{storage.uri}@v2")


def test_a_damaged_row_group_is_named_and_never_read_as_other_values(storage):
    ingest(storage, {0: range(30)})
    path = open_dataset(storage.uri).shards("train")[0].path
    data = bytearray(storage.read(path))
    data[image_page_end(storage, path, 1)] ^= 4
    storage.put(path, bytes(data))
    dataset = open_dataset(storage.uri)
    assert dataset.read_group("train", 0, ["image"]).num_rows == 7
    with pytest.raises(DataError, match=rf"row group 1 of {path} is damaged") as error:
        dataset.read_group("train", 1, ["image"])
    assert f"resnet data verify {dataset.ref}" in error.value.mend
    with pytest.raises(DataError, match="is damaged"):
        dataset.table("train")


def test_a_deleted_shard_is_named(storage):
    ingest(storage, {0: range(10)})
    dataset = open_dataset(storage.uri)
    path = dataset.shards("train")[0].path
    storage.delete(path)
    with pytest.raises(DataError, match=f"{path} is gone, though {dataset.uri}@v1 names it"):
        dataset.table("train", ["key"])


def test_a_damaged_shard_list_is_named(storage):
    ingest(storage, {0: range(10)})
    entry = open_dataset(storage.uri).catalog["shard_lists"][0]
    storage.put(entry["path"], storage.read(entry["path"])[:-1])
    with pytest.raises(DataError, match="is not what was written: its SHA-256 differs"):
        open_dataset(storage.uri).table("train")


def test_labels_that_are_no_single_class_have_no_class_number(storage):
    ingest(storage, {0: range(10)})
    dataset = open_dataset(storage.uri)
    dataset.catalog["task"] = "multi"
    with pytest.raises(InputError, match="has multi labels; a class number needs a single label per image"):
        dataset.class_indices("train")
