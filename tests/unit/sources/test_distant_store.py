"""An object store far away: many small objects are on their way at once, in order, within bounded memory."""

from __future__ import annotations

import gzip
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import object_listing
from pipelines.dataset.reader import open_dataset
from pipelines.errors import StorageError
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.unit import ingest_unit
from pipelines.sources import ahead
from pipelines.sources.ahead import read_ahead
from pipelines.sources.base import Entry, Found, make_listing
from pipelines.sources.resolve import open_source
from pipelines.storage import Storage
from tests import factories
from tests.distant_store import BUCKET, Wire, distant_store

DELAY_S = 0.04


@pytest.fixture(scope="module")
def far() -> Iterator[tuple[Wire, str]]:
    with distant_store(DELAY_S) as (wire, environment), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield wire, f"s3://{BUCKET}"


def put_all(root: Path, place: Storage) -> None:
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    threads = [
        threading.Thread(target=place.put, args=(str(path.relative_to(root)), path.read_bytes())) for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_many_small_objects_are_on_their_way_at_once(far: tuple[Wire, str], tmp_path: Path) -> None:
    wire, bucket = far
    factories.write_class_folder(tmp_path / "set", {"cat": 70, "dog": 50}, size=16)
    put_all(tmp_path / "set", Storage.open(f"{bucket}/set"))
    source = open_source(f"{bucket}/set")
    near = open_source(str(tmp_path / "set"))
    units = source.units()
    wire.forget()
    read = [(member.key, member.data) for unit in units for member in source.open(unit)]
    assert read == [(member.key, member.data) for unit in near.units() for member in near.open(unit)]
    assert wire.requests == 120
    assert 8 < wire.largest <= ahead.MAX_REQUESTS  # one by one it would be 1, and 120 times the delay

    config = IngestConfig(source=f"{bucket}/set", out=f"{bucket}/out")
    wire.forget()
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    assert wire.largest > 8
    local = IngestConfig(source=str(tmp_path / "set"), out=str(tmp_path / "out"))
    stage.run(local, lambda job, units: (ingest_unit(unit, job) for unit in units))
    assert open_dataset(f"{bucket}/out").fingerprint == open_dataset(str(tmp_path / "out")).fingerprint


def test_a_long_listing_is_done_by_folder(far: tuple[Wire, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_listing, "PAGE_OBJECTS", 4)
    monkeypatch.setattr(object_listing, "MAX_PAGES_ALONE", 2)
    _, bucket = far
    place = Storage.open(f"{bucket}/many")
    names = [f"{folder}/{number}.bin" for folder in ("a", "b", "c d", "ab") for number in range(5)] + ["top.bin"]
    for name in names:
        place.put(name, name.encode())
    assert [file.path for file in place.list()] == sorted(names)
    assert [file.path for file in place.list("a")] == sorted(name for name in names if name.startswith("a/"))
    monkeypatch.setattr(object_listing, "MAX_PAGES_ALONE", 100)
    assert [file.path for file in place.list()] == sorted(names)


def entries(sizes: list[int]) -> tuple[Entry, ...]:
    return make_listing("s", [Found(f"{i}.jpg".encode(), size) for i, size in enumerate(sizes)]).entries


def test_what_is_held_is_bounded_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MAX_BYTES", 1_000)
    lock, held, largest = threading.Lock(), 0, 0

    def read(entry: Entry) -> Entry:
        nonlocal held, largest
        with lock:
            held += entry.size
            largest = max(largest, held)
        return entry

    listed = entries([300, 300, 300, 300, 5_000, 10, 900, 200] * 20)
    taken = []
    for entry in read_ahead(listed, read, lambda entry: entry.size):
        with lock:
            held -= entry.size
        taken.append(entry)
    assert taken == list(listed)
    assert largest <= 5_000 + 1_000  # the one that is too large goes alone, beside what was just taken


def test_a_reader_that_stops_early_and_a_fault_end_the_threads() -> None:
    before = threading.active_count()
    reader = read_ahead(entries([1] * 100), lambda entry: entry.key, len)
    assert next(reader) == "0.jpg"
    reader.close()  # type: ignore[attr-defined]

    def fail(entry: Entry) -> str:
        raise StorageError(f"{entry.key} cannot be read")

    with pytest.raises(StorageError, match=r"0\.jpg cannot be read"):
        list(read_ahead(entries([1] * 100), fail, len))
    assert threading.active_count() == before


def test_archives_are_listed_side_by_side(far: tuple[Wire, str]) -> None:
    wire, bucket = far
    place = Storage.open(f"{bucket}/shards")
    for number in range(12):
        files = [(f"{number}/{i}.png", factories.make_png(i, 8, 8)) for i in range(3)]
        place.put(f"{number:02d}.tar", factories.make_tar(files))
    source = open_source(f"{bucket}/shards")
    wire.forget()
    keys = [entry.key for entry in source.listing().entries]
    assert keys == [f"{n:02d}.tar!/{n}/{i}.png" for n in range(12) for i in range(3)]
    assert wire.largest > 4


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.zst"])
def test_an_archive_is_listed_and_read_with_few_requests(far: tuple[Wire, str], name: str) -> None:
    wire, bucket = far
    pack = {"gz": gzip.compress, "zst": factories.zstd}.get(name.rpartition(".")[2], bytes)
    files = [(f"c{i % 3}/{i}.png", random.Random(i).randbytes(40_000)) for i in range(100)]
    Storage.open(bucket).put(name, pack(factories.make_tar(files)))
    source = open_source(f"{bucket}/{name}")
    wire.forget()
    assert len(source.listing().entries) == 100
    assert wire.requests <= 3
    assert sum(member.data is not None for unit in source.units() for member in source.open(unit)) == 100
    assert wire.requests <= 12


@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
def test_the_spans_of_an_archive_are_fetched_side_by_side(
    far: tuple[Wire, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.sources.units.MAX_SPAN_BYTES", 100_000)
    wire, bucket = far
    make = factories.make_tar if name.endswith("tar") else factories.make_zip
    files = [(f"c{i % 3}/{i}.png", random.Random(i).randbytes(30_000 if i % 9 else 200_000)) for i in range(90)]
    Storage.open(bucket).put(name, make(files))
    source = open_source(f"{bucket}/{name}")
    units = source.units()
    wire.forget()
    read = {member.key: member.data for unit in units for member in source.open(unit)}
    assert read == dict(files)
    assert wire.largest > 6
