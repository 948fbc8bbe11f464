"""What becomes of copies and look-alikes under each policy, and that no image is lost by it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.dataset import inspect, near
from pipelines.dataset.duplicates import HELD_OUT, find_alike
from pipelines.dataset.leaks import find_leaks
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.dataset.writer import ShardWriter
from pipelines.errors import DataError
from pipelines.ingest import finish, stage
from pipelines.ingest.checks import run_checks
from pipelines.ingest.config import CheckConfig, DuplicatesConfig, IngestConfig
from pipelines.ingest.dedupe import find_duplicates
from pipelines.ingest.plan import plan
from pipelines.ingest.unit import ingest_unit
from pipelines.storage import Storage
from tests import factories
from tests.unit.dataset.rows import make_row, make_test_catalog


def scene(seed: int, quality: int = 95) -> bytes:
    """Return a smooth picture: noise would be another picture after compression."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


FILES = {
    **{f"train/cat/{seed}.jpg": scene(seed) for seed in range(8)},
    **{f"val/cat/{seed}.jpg": scene(seed) for seed in range(20, 23)},
    **{f"test/cat/{seed}.jpg": scene(seed) for seed in range(30, 34)},
    "test/cat/exact.jpg": scene(0),  # of train/cat/0.jpg
    "val/cat/exact.jpg": scene(0),
    "train/cat/beside.jpg": scene(1),  # of train/cat/1.jpg, in the same split
    "test/cat/near.jpg": scene(2, 60),  # looks like train/cat/2.jpg
    "train/cat/near-beside.jpg": scene(3, 60),
    "train/dog/conflict.jpg": scene(4),  # train/cat/4.jpg under another name
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copies") / "set"
    for key, data in FILES.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(data)
    return root


def ingest(source: Path, out: Path, *, members: int = len(FILES), **policy: Any) -> Dataset:
    config = IngestConfig(
        source=str(source), out=str(out), duplicates=DuplicatesConfig(**policy), max_quarantined_fraction=0.5
    )
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    dataset = open_dataset(str(out))
    assert list(inspect.verify(dataset)) == []
    counts = dataset.catalog["counts"]
    assert counts["members"] == members == counts["written"] + counts["quarantined"] + counts["dropped"]
    return dataset


def keys(dataset: Dataset) -> set[str]:
    return {key for split in dataset.splits for key in dataset.table(split, ["key"]).column("key").to_pylist()}


LEAKS = {"train/cat/0.jpg", "val/cat/exact.jpg"}
POLICIES = [
    ({}, LEAKS),
    ({"exact": "keep"}, set()),
    ({"exact": "drop"}, LEAKS | {"train/cat/beside.jpg", "train/dog/conflict.jpg"}),
    ({"near": "one_side"}, LEAKS | {"train/cat/2.jpg"}),
    ({"near": "one_side", "exact": "keep"}, LEAKS | {"train/cat/2.jpg"}),  # equal bytes look alike too
    (
        {"near": "drop"},
        LEAKS | {"train/cat/2.jpg", "train/cat/beside.jpg", "train/cat/near-beside.jpg", "train/dog/conflict.jpg"},
    ),
    ({"conflicts": "quarantine"}, LEAKS | {"train/cat/4.jpg", "train/dog/conflict.jpg"}),
]


def one_of(dropped: set[str], twins: tuple[str, str]) -> set[str]:
    """Return the names with the second twin for the first: which of two equals stays is decided by their ids."""
    return {twins[1] if key == twins[0] else key for key in dropped}


@pytest.mark.parametrize("is_patched", [False, True], ids=["rewritten", "patched"])
@pytest.mark.parametrize(
    ("policy", "expected"),
    POLICIES,
    ids=["-".join(f"{name}-{value}" for name, value in policy.items()) or "default" for policy, _ in POLICIES],
)
def test_each_policy_takes_out_what_it_says(
    policy: dict[str, str],
    expected: set[str],
    source: Path,
    tmp_path: Path,
    is_patched: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if is_patched:
        monkeypatch.setattr(finish, "MAX_REWRITE_BYTES", 0)
    dataset = ingest(source, tmp_path / "out", **policy)
    gone = set(FILES) - keys(dataset)
    if policy.get("conflicts") != "quarantine":
        for twins in (
            ("train/cat/1.jpg", "train/cat/beside.jpg"),
            ("train/cat/3.jpg", "train/cat/near-beside.jpg"),
            ("train/cat/4.jpg", "train/dog/conflict.jpg"),
        ):
            gone = one_of(gone, twins)
    assert gone == expected
    assert bool(dataset.catalog["patches"]) == (is_patched and bool(expected))
    found = dataset.catalog["duplicates"]
    assert sum(found["dropped"].values()) == dataset.catalog["counts"]["dropped"]
    assert found["label_conflicts"] == 1
    refused = [row["key"] for row in inspect.quarantined(dataset)]
    if policy.get("conflicts") == "quarantine":
        assert sorted(refused) == ["train/cat/4.jpg", "train/dog/conflict.jpg"]
        shown = [(row["size_bytes"] > 0, (row["thumbnail"] or b"")[:1]) for row in inspect.quarantined(dataset)]
        assert all(has_size and first in (b"\xff", b"\x89") for has_size, first in shown)
        assert dataset.catalog["counts"]["quarantined.LABEL_CONFLICT"] == 2
    else:
        assert refused == []


def test_a_shard_of_conflicting_copies_is_opened_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real, write_conflicts = finish.open_parquet, finish._quarantine_conflicts

    def open_parquet(storage: Storage, path: str) -> Any:
        opened.append(path)
        return real(storage, path)

    def counted(*args: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(finish, "open_parquet", open_parquet)
            return write_conflicts(*args, **options)

    monkeypatch.setattr(finish, "_quarantine_conflicts", counted)
    ingest(source, tmp_path / "out", conflicts="quarantine")
    assert len(opened) == 1  # both are in the only shard of train


@pytest.mark.parametrize("is_patched", [False, True], ids=["rewritten", "patched"])
def test_images_that_go_do_not_decide_the_size_at_which_networks_see_the_others(
    source: Path, tmp_path: Path, is_patched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_patched:
        monkeypatch.setattr(finish, "MAX_REWRITE_BYTES", 0)
    folder = shutil.copytree(source, tmp_path / "set")
    for name in ("cat/large.jpg", "dog/large.jpg"):
        (folder / "train" / name).write_bytes(factories.make_jpeg(77, 65, 65))
    small = ingest(folder, tmp_path / "small", members=len(FILES) + 2, conflicts="quarantine")
    assert small.preprocess["evaluation"]["size_px"] == 64
    large = ingest(folder, tmp_path / "large", members=len(FILES) + 2)
    assert large.preprocess["evaluation"]["size_px"] == 224


def test_the_catalog_says_what_went_and_what_looks_alike(source: Path, tmp_path: Path) -> None:
    found = ingest(source, tmp_path / "out").catalog["duplicates"]
    assert found["policy"] == {"exact": "one_side", "near": "report", "max_distance": 4, "conflicts": "report"}
    assert found["leaks_dropped"] == 2
    assert found["dropped"] == {"LEAK": 2}
    assert {(row["dropped"], row["kept"], row["in"], row["reason"]) for row in found["leaks"]} == {
        (key, "test/cat/exact.jpg", "test", "LEAK") for key in LEAKS
    }
    # what is dropped as a copy is no look-alike any more; copies that stay are
    assert {name: found["near"][name] for name in ("clusters", "images", "leaks")} == {
        "clusters": 4, "images": 8, "leaks": 1,
    }  # fmt: skip
    assert found["near"]["examples"] == [
        {"image": "train/cat/2.jpg", "from": "train", "like": "test/cat/near.jpg", "in": "test"}
    ]


def write_hashes(root: Path, hashes: list[tuple[str, int]]) -> Dataset:
    """Return a dataset, not published, with one row for each (split, hash)."""
    storage = Storage.open(str(root))
    writer = ShardWriter(storage, "r" * 32 + "-1", 0, "a0")
    for number, (split, phash) in enumerate(hashes):
        writer.append(split, {**make_row(number), "phash": phash})
    return Dataset(
        storage.uri, 0, make_test_catalog(storage, "r" * 32 + "-1", list(writer.close().files), [], "photos")
    )


def test_what_goes_looks_like_something_that_stays_and_nothing_that_stays_looks_alike(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    hashes = draw.integers(0, 2**63, 4, dtype=np.uint64)[draw.integers(0, 4, 120)]
    for _ in range(4):
        hashes = hashes ^ (np.uint64(1) << draw.integers(0, 64, 120).astype(np.uint64))
    splits = [("train", "val", "test")[number] for number in draw.integers(0, 3, 120)]
    dataset = write_hashes(tmp_path / "out", list(zip(splits, hashes.tolist(), strict=True)))
    by_key = {f"{number}.png": (splits[number], value) for number, value in enumerate(hashes.tolist())}
    found = find_duplicates(dataset.storage, dataset.shards(), DuplicatesConfig(near="drop"))
    by_ingest = {each.copy.key: (each.kept.key, each.reason) for each in found.dropped}
    by_command = {
        row["key"]: (row["like"], "NEAR_LEAK" if row["split"] != row["like_split"] else "NEAR_DUPLICATE")
        for row in find_alike(dataset).surplus(across_splits=False)
    }
    assert found.near.leaks == sum(reason == "NEAR_LEAK" for _, reason in by_ingest.values())
    assert len(set(by_ingest.values())) > 5
    for gone in (by_ingest, by_command):
        stays = by_key.keys() - gone.keys()
        apart = [(by_key[one][1] ^ by_key[other][1]).bit_count() for one in stays for other in stays if one < other]
        assert min(apart) > 4
        for key, (kept, reason) in gone.items():
            assert kept in stays
            assert (by_key[key][1] ^ by_key[kept][1]).bit_count() <= 4
            assert HELD_OUT.index(by_key[kept][0]) <= HELD_OUT.index(by_key[key][0])
            assert reason == ("NEAR_DUPLICATE" if by_key[kept][0] == by_key[key][0] else "NEAR_LEAK")


def test_hashes_that_were_not_compared_with_all_are_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "MAX_PARTNERS", 0)
    dataset = ingest(source, tmp_path / "out")
    assert dataset.catalog["duplicates"]["near"]["capped"] == 4  # all that share two blocks with another
    assert (
        "4 perceptual hashes resemble so many others that not all were compared: more may look alike than was counted"
        in dataset.catalog["warnings"]
    )


def write_digits(root: Path, number: int) -> Path:
    """Write handwritten digits of 8 x 8 pixels: strokes on black, which the hash hardly tells apart."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index in range(number):
        path = root / str(digits.target[index]) / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 15.9).astype(np.uint8)).save(path)
    return root


def test_pictures_that_are_all_drawn_alike_are_not_taken_for_copies(tmp_path: Path) -> None:
    digits = write_digits(tmp_path / "set", 600)
    config = IngestConfig(source=str(digits), out=str(tmp_path / "out"))
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    dataset = open_dataset(str(tmp_path / "out"))
    found = dataset.catalog["duplicates"]["near"]
    assert found["accidents"] > 0.1
    assert found["clusters"] == found["images"] == found["leaks"] == 0  # no pairs are sought that say nothing
    assert dataset.catalog["warnings"] == [
        "look-alikes are not counted as leaks: the perceptual hash takes many of these pictures for each other"
    ]
    assert not find_leaks(dataset, "test").near.any()
    assert "by accident: most look-alikes are no copies" in find_alike(dataset).doubt
    (finding,) = run_checks([CheckConfig(rule="max_near_leak_fraction", bound=0)], dataset)
    assert finding.is_kept
    assert finding.words.endswith("takes many of these pictures for each other, so none is counted")
    with pytest.raises(
        DataError, match=r"duplicates.near is one_side, and by the perceptual hash each of these images"
    ):
        stage.run(
            IngestConfig(source=str(digits), out=str(tmp_path / "other"), duplicates=DuplicatesConfig(near="one_side")),
            lambda job, units: (ingest_unit(unit, job) for unit in units),
        )


@pytest.mark.parametrize("standing", [20, 150])
def test_few_pictures_that_are_drawn_alike_refuse_no_newcomers(standing: int, tmp_path: Path) -> None:
    digits = write_digits(tmp_path / "set", standing)
    config = IngestConfig(source=str(digits), out=str(tmp_path / "out"))
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    write_digits(tmp_path / "set", standing + 50)
    config = IngestConfig(source=str(digits), out=str(tmp_path / "out"), append=True)
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    counts = open_dataset(str(tmp_path / "out")).catalog["counts"]
    assert (counts["written"], counts["quarantined"]) == (standing + 50, 0)


def test_the_default_policy_keeps_the_keys_of_before(source: Path) -> None:
    key = plan(IngestConfig(source=str(source))).key
    assert plan(IngestConfig(source=str(source), duplicates=DuplicatesConfig(exact="one_side"))).key == key
    assert plan(IngestConfig(source=str(source), duplicates=DuplicatesConfig(near="drop"))).key != key
