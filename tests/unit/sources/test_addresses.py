"""Patterns over folders and stores, and the names that sources get."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.reader import open_dataset
from pipelines.errors import InputError
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.unit import ingest_unit
from pipelines.sources.addresses import Pattern, default_name, is_virtual, split_pattern
from pipelines.sources.base import Source
from pipelines.sources.resolve import open_source
from pipelines.storage import Storage
from tests import factories

PLACES = (
    "2024-01/cat/1.jpg",
    "2024-01/dog/2.png",
    "2024-02/cat/3.jpg",
    "2023-12/cat/4.jpg",
    "5.jpg",
    "[odd]/cat/6.jpg",
)


@pytest.fixture(params=["disk", "object store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    on_disk = request.param == "disk"
    storage = Storage.open(tmp_path / "photos" if on_disk else f"memory://{tmp_path.name}-{id(request)}/photos")
    for number, path in enumerate(PLACES):
        storage.put(path, factories.make_jpeg(number, 16, 16))
    return storage


def keys(source: Source) -> set[str]:
    read = [member for unit in source.units() for member in source.open(unit)]
    assert all(member.reason is None for member in read)
    return {member.key for member in read}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("2024-*", {"2024-01/cat/1.jpg", "2024-01/dog/2.png", "2024-02/cat/3.jpg"}),
        ("2024-*/", {"2024-01/cat/1.jpg", "2024-01/dog/2.png", "2024-02/cat/3.jpg"}),
        ("*/cat/*.jpg", {"2024-01/cat/1.jpg", "2024-02/cat/3.jpg", "2023-12/cat/4.jpg", "[odd]/cat/6.jpg"}),
        ("*.jpg", {"5.jpg"}),
        ("**/*.png", {"2024-01/dog/2.png"}),
        ("20[0-9][!3]-0?/cat", {"2024-01/cat/1.jpg", "2024-02/cat/3.jpg"}),
        ("[[]odd]", {"[odd]/cat/6.jpg"}),
    ],
)
def test_a_pattern_is_a_part_of_its_folder(place: Storage, pattern: str, found: set[str]) -> None:
    source = open_source(place.address(pattern))
    assert keys(source) == found
    assert source.name == "photos"
    whole = {entry.key: entry.image_id for entry in open_source(place.uri).listing().entries}
    assert {entry.key: entry.image_id for entry in source.listing().entries}.items() <= whole.items()


def test_the_digest_sees_what_matches_and_nothing_else(place: Storage) -> None:
    def digest() -> str:
        return open_source(place.address("2024-*")).listing_digest()

    before = digest()
    place.put("2023-01/cat/9.jpg", factories.make_jpeg(9))
    assert digest() == before
    place.put("2024-03/cat/9.jpg", factories.make_jpeg(9))
    assert digest() != before


def test_a_pattern_of_archives(place: Storage) -> None:
    for number in range(3):
        files = [(f"cat/{number}.png", factories.make_png(number, 8, 8))]
        place.put(f"shards-{number}.tar", factories.make_tar(files))
    assert keys(open_source(place.address("shards-[01].tar"))) == {"shards-0.tar!/cat/0.png", "shards-1.tar!/cat/1.png"}


def test_a_path_that_stands_is_no_pattern(tmp_path: Path) -> None:
    factories.write_class_folder(tmp_path / "a[1]", {"cat": 2})
    source = open_source(str(tmp_path / "a[1]"))
    assert (source.name, len(keys(source))) == ("a[1]", 2)


def test_a_pattern_that_matches_nothing_is_refused(place: Storage) -> None:
    with pytest.raises(InputError, match=r"nothing matches .*photos/\*\.gif"):
        open_source(place.address("*.gif"))


@pytest.mark.parametrize(
    ("address", "split", "name"),
    [
        ("s3://bucket/*.jpg", Pattern("s3://bucket", "*.jpg"), "bucket"),
        ("s3://bucket/a/b*/c", Pattern("s3://bucket/a", "b*/c"), "a"),
        ("/data/*/x", Pattern("/data", "*/x"), "data"),
        ("/*.jpg", Pattern("/", "*.jpg"), ""),
        ("photos/2024-?", Pattern("photos", "2024-?"), "photos"),
        ("s3://bucket/photos/", None, "photos"),
        ("photos.zip", None, "photos.zip"),
        ("torchvision:CIFAR10:~/sets", None, "CIFAR10"),
    ],
)
def test_addresses_and_names(address: str, split: Pattern | None, name: str) -> None:
    assert split_pattern(address) == split
    assert default_name(address) == name
    assert is_virtual(address) == (split is not None or address.startswith("torchvision:"))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab*?[]!\\^-", min_size=1, max_size=6), min_size=1, max_size=3), st.text("ab/.-", max_size=9))
def test_a_pattern_means_on_a_disk_what_it_means_in_a_store(parts: list[str], path: str) -> None:
    import glob
    import tempfile

    path = "/".join(part for part in path.split("/") if part.strip("."))  # no hidden name, no way up
    if not path or any(part.startswith(".") for part in path.split("/")) or any("**" in part for part in parts):
        return
    with tempfile.TemporaryDirectory() as root:
        target = Path(root, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"x")
        met = [Path(root, found) for found in glob.glob("/".join(parts), root_dir=root)]
        on_disk = any(found == target or found in target.parents for found in met)
    assert Pattern("x", "/".join(parts)).matches(path) == on_disk


def test_a_dataset_grows_by_patterns_over_one_folder(tmp_path: Path) -> None:
    for number, month in enumerate(("2024-01", "2024-02", "2025-01")):
        factories.write_class_folder(tmp_path / "photos" / month, {"cat": 6, "dog": 6}, seed=number)

    def grow(pattern: str, *, append: bool) -> dict[str, int]:
        config = IngestConfig(source=f"{tmp_path}/photos/{pattern}", out=str(tmp_path / "out"), append=append)
        stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
        dataset = open_dataset(str(tmp_path / "out"))
        keys = [row["key"] for split in dataset.splits for row in dataset.table(split, ["key"]).to_pylist()]
        return dict(Counter(key[:7] for key in keys))

    assert grow("2024-*", append=False) == {"2024-01": 12, "2024-02": 12}
    assert grow("2025-*", append=True) == {"2024-01": 12, "2024-02": 12, "2025-01": 12}
    assert list(open_dataset(str(tmp_path / "out")).catalog["sources"]) == ["photos"]
