"""Datasets of torchvision by name, read from tiny copies in each one's own format on disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.errors import InputError
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.plan import plan
from pipelines.ingest.unit import ingest_unit
from pipelines.sources.base import Source, Unit
from pipelines.sources.resolve import open_source
from tests import factories

ROOT = Path(__file__).parents[3]
JPEGS = [factories.make_jpeg(seed, 24, 20) for seed in range(8)]


def members(source: Source) -> dict[str, Any]:
    travelled = pickle.loads(pickle.dumps(source))
    units = [Unit.from_text(unit.to_text()) for unit in source.units()]
    return {member.key: member for unit in units for member in travelled.open(unit)}


def write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def write_mnist(root: Path, name: str = "MNIST") -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    for prefix, part in (("train", slice(0, 8)), ("t10k", slice(8, 12))):
        images, labels = pixels[part], (np.arange(12) % 10).astype(np.uint8)[part]
        head = b"\0\0\x08\x03" + struct.pack(">3I", *images.shape)
        write(root / name / "raw" / f"{prefix}-images-idx3-ubyte", head + images.tobytes())
        head = b"\0\0\x08\x01" + struct.pack(">I", len(labels))
        write(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", head + labels.tobytes())
    return pixels


@pytest.mark.parametrize(("name", "label"), [("MNIST", "3 - three"), ("FashionMNIST", "Dress"), ("KMNIST", "tsu")])
def test_the_mnist_family(tmp_path: Path, name: str, label: str) -> None:
    pixels = write_mnist(tmp_path, name)
    found = members(open_source(f"torchvision:{name}:{tmp_path}"))
    assert len(found) == 12
    member = found["train-images-idx3-ubyte!/000003.png"]
    assert (member.label, member.given_split) == (label, "train")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(member.data))), pixels[3])
    assert found["t10k-images-idx3-ubyte!/000001.png"].given_split == "test"


def test_mnist_as_torchvision_leaves_it_with_packed_files_beside(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    for path in list((tmp_path / "MNIST" / "raw").iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert len(members(open_source(f"torchvision:MNIST:{tmp_path}"))) == 12


def test_a_label_without_a_class_is_damage(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\xc8")
    with pytest.raises(InputError, match=r"is not whole: train-images-idx3-ubyte!/000007\.png has label 200"):
        open_source(f"torchvision:MNIST:{tmp_path}").listing()


def test_workers_need_no_torch_for_what_lies_as_it_is(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_eurosat(tmp_path)
    for name in ("MNIST", "EuroSAT"):
        source = open_source(f"torchvision:{name}:{tmp_path}")
        (tmp_path / "job").write_bytes(pickle.dumps((source, source.units()[0].to_text())))
        program = (
            "import pickle, sys\nfrom pipelines.sources.base import Unit\n"
            "source, text = pickle.load(open(sys.argv[1], 'rb'))\n"
            "assert all(member.data for member in source.open(Unit.from_text(text)))\n"
            "assert not {'torch', 'torchvision'} & set(sys.modules)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "job"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def write_cifar(root: Path, patch: pytest.MonkeyPatch) -> np.ndarray:
    """Write CIFAR-10's files, and have torchvision know their checksums in place of the real ones."""
    place = root / "cifar-10-batches-py"
    pixels = np.random.default_rng(1).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)

    def batch(part: slice) -> bytes:
        return pickle.dumps({"data": pixels[part].reshape(-1, 3072), "labels": list(range(6))[part]})

    files = {"data_batch_1": batch(slice(0, 4)), "test_batch": batch(slice(4, 6))}
    files["batches.meta"] = pickle.dumps({"label_names": ["airplane", "car", "bird", "cat", "deer", "dog"]})
    for name, data in files.items():
        write(place / name, data)
    sums = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    patch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    patch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    patch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": sums["batches.meta"]})
    return pixels


def test_cifar_and_its_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_cifar(tmp_path, monkeypatch)
    source = open_source(f"torchvision:CIFAR10:{tmp_path}")
    found = members(source)
    assert source.name == "CIFAR10"
    assert {key: (member.label, member.given_split) for key, member in found.items()} == {
        "train/000000.png": ("airplane", "train"),
        "train/000001.png": ("car", "train"),
        "train/000002.png": ("bird", "train"),
        "train/000003.png": ("cat", "train"),
        "test/000000.png": ("deer", "test"),
        "test/000001.png": ("dog", "test"),
    }
    shown = np.asarray(Image.open(io.BytesIO(found["test/000001.png"].data)))
    assert np.array_equal(shown, pixels[5].transpose(1, 2, 0))


def test_svhn_beside_another_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (32, 32, 3, 3), dtype=np.uint8)
    known: dict[str, list[str]] = {}
    for split in ("train", "test"):
        out = io.BytesIO()
        savemat(out, {"X": pixels, "y": np.array([[1], [10], [3]])})
        write(tmp_path / f"{split}_32x32.mat", out.getvalue())
        known[split] = ["", f"{split}_32x32.mat", hashlib.md5(out.getvalue()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", known)
    source = open_source(f"torchvision:SVHN:{tmp_path}")
    digest = source.listing_digest()
    found = members(source)
    assert [member.label for key, member in sorted(found.items()) if "train" in key] == ["1", "0", "3"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found["test/000002.png"].data))), pixels[..., 2])
    write_eurosat(tmp_path)
    assert open_source(f"torchvision:SVHN:{tmp_path}").listing_digest() == digest


class _Canary:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._path),)


def test_a_changed_pickle_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)
    for name in ("data_batch_1", "batches.meta"):
        write_cifar(tmp_path, monkeypatch)
        write(tmp_path / "cifar-10-batches-py" / name, pickle.dumps(_Canary(tmp_path / "canary")))
        with pytest.raises(InputError, match=r"torchvision's CIFAR10 in .* is not whole: Dataset .*corrupted"):
            open_source(f"torchvision:CIFAR10:{tmp_path}").listing()
    assert not (tmp_path / "canary").exists()


def write_eurosat(root: Path) -> None:
    for number, data in enumerate(JPEGS):
        write(root / "eurosat" / "2750" / ("Forest" if number % 2 else "River") / f"{number}.jpg", data)


def write_dtd(root: Path) -> None:
    for number, (part, data) in enumerate(zip(("train", "train", "val", "test"), JPEGS, strict=False)):
        name = f"{'banded' if number % 2 else 'dotted'}/{number}.jpg"
        write(root / "dtd" / "dtd" / "images" / name, data)
        with (root / "dtd" / f"{part}1").open("a") as lines:
            lines.write(f"{name}\n")
    for part in ("train", "val", "test"):
        write(root / "dtd" / "dtd" / "labels" / f"{part}1.txt", (root / "dtd" / f"{part}1").read_bytes())
        (root / "dtd" / f"{part}1").unlink()


def write_food(root: Path) -> None:
    parts = {"train": {"pie": ["pie/1", "pie/2"], "soup": ["soup/3"]}, "test": {"pie": ["pie/4"], "soup": ["soup/5"]}}
    for part, classes in parts.items():
        write(root / "food-101" / "meta" / f"{part}.json", json.dumps(classes))
        for name in [name for names in classes.values() for name in names]:
            write(root / "food-101" / "images" / f"{name}.jpg", JPEGS[int(name[-1])])


def write_pets(root: Path) -> None:
    place = root / "oxford-iiit-pet"
    for part, lines in (("trainval", ["Bombay_1 1 1 1", "pug_2 2 2 1"]), ("test", ["Bombay_3 1 1 1", "pug_4 2 2 1"])):
        write(place / "annotations" / f"{part}.txt", "\n".join(lines))
        for line in lines:
            name = line.split()[0]
            write(place / "images" / f"{name}.jpg", JPEGS[int(name[-1])])


def write_caltech(root: Path) -> None:
    place = root / "caltech101"
    for number, name in enumerate(["ant", "bass", "bass", "BACKGROUND_Google"]):
        write(place / "101_ObjectCategories" / name / f"image_{1 + (number == 2):04d}.jpg", JPEGS[number])
    (place / "Annotations").mkdir()


def write_signs(root: Path) -> None:
    picture = factories.encode(factories.make_pixels(1, 20, 20), "PPM")
    write(root / "gtsrb" / "GTSRB" / "Training" / "00000" / "1.ppm", picture)
    write(root / "gtsrb" / "GTSRB" / "Training" / "00001" / "2.ppm", picture)
    write(root / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / "3.ppm", picture)
    write(root / "gtsrb" / "GT-final_test.csv", "Filename;ClassId\n3.ppm;1\n")


FILE_SETS = {
    "EuroSAT": (write_eurosat, 8, "2750/Forest/1.jpg", "Forest", None),
    "DTD": (write_dtd, 4, "dtd/images/dotted/2.jpg", "dotted", "val"),
    "Food101": (write_food, 5, "images/soup/5.jpg", "soup", "test"),
    "OxfordIIITPet": (write_pets, 4, "images/pug_2.jpg", "Pug", "train"),
    "Caltech101": (write_caltech, 3, "101_ObjectCategories/bass/image_0002.jpg", "bass", None),
    "GTSRB": (write_signs, 3, "GTSRB/Final_Test/Images/3.ppm", "1", "test"),
}


@pytest.mark.parametrize("name", FILE_SETS)
def test_sets_of_files_keep_their_bytes(tmp_path: Path, name: str) -> None:
    write_set, number, key, label, split = FILE_SETS[name]
    write_set(tmp_path)
    source = open_source(f"torchvision:{name}:{tmp_path}")
    found = members(source)
    assert len(found) == number
    member = found[key]
    assert (member.label, member.given_split, member.reason) == (label, split, None)
    assert member.data == Path(source.uri, key).read_bytes()


def test_a_set_becomes_a_dataset_and_is_known_again(tmp_path: Path) -> None:
    write_dtd(tmp_path)
    config = IngestConfig(source=f"torchvision:DTD:{tmp_path}", out=str(tmp_path / "out"))
    stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    dataset = open_dataset(str(tmp_path / "out"))
    assert dataset.catalog["split"]["by"] == "given"
    assert {split: dataset.num_rows(split) for split in dataset.splits} == {"test": 1, "train": 2, "val": 1}
    assert plan(config).key == dataset.catalog["key"]
    assert stage.run(config).skipped


def test_a_listed_file_that_is_gone_has_a_reason(tmp_path: Path) -> None:
    write_food(tmp_path)
    path = tmp_path / "food-101" / "images" / "pie" / "4.jpg"
    data = path.read_bytes()
    path.unlink()
    source = f"torchvision:Food101:{tmp_path}"
    assert members(open_source(source))["images/pie/4.jpg"].reason == "MISSING"

    def ingest(**settings: Any) -> Dataset:
        config = IngestConfig(source=source, out=str(tmp_path / "out"), max_quarantined_fraction=0.5, **settings)
        stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
        return open_dataset(str(tmp_path / "out"))

    dataset = ingest()
    assert (dataset.catalog["rows"], dataset.catalog["counts"]["quarantined.MISSING"]) == (4, 1)
    path.write_bytes(data)
    dataset = ingest(append=True)
    assert (dataset.catalog["rows"], dataset.catalog["counts"]["quarantined"]) == (5, 0)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("torchvision:CIFAR", r"torchvision:CIFAR is not known\n  mend:  known are CIFAR10, "),
        ("torchvision:ImageNet", r"its images lie in class folders: give the folder"),
        ("torchvision:MNIST:s3://bucket/x", r"keeps its datasets on a disk"),
    ],
)
def test_names_that_are_refused(address: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(address)


def test_without_a_network_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies that it was made with
    for name in ("CIFAR10", "MNIST", "EuroSAT"):
        with pytest.raises(InputError, match=rf"torchvision's {name} is not in .*, and it cannot be fetched") as caught:
            open_source(f"torchvision:{name}:{tmp_path}")
        assert f"give torchvision:{name}:ROOT" in caught.value.mend
        assert caught.value.exit_code == 2
