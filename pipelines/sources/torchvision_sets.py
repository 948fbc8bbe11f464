"""Datasets that torchvision knows by name (`torchvision:CIFAR10`): fetched where a network is, read from disk after.

torchvision is loaded to fetch and to list. Workers read image files, and MNIST's arrays, as they lie; only the other
sets of arrays need it again, with torch's 0.7 GB. CIFAR's files are pickles: torchvision checks each against the MD5 in
its own source before it reads them, so what is unpickled is what the authors published, and a changed file is refused
unread.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from pipelines.errors import InputError
from pipelines.image.encode import encode_image
from pipelines.sources.addresses import TORCHVISION
from pipelines.sources.base import Entry, Listing, Member, Source, Unit, image_id, member_of
from pipelines.sources.folder import FolderSource
from pipelines.sources.idx import IdxSource, is_idx
from pipelines.storage import Storage, StoredFile

logger = logging.getLogger(__name__)

DEFAULT_ROOT = "runs/torchvision"
_UNIT_ROWS = 4_096

_BY_FLAG: Mapping[str, Mapping[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST: Mapping[str, Mapping[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_ALL_THREE: Mapping[str, Mapping[str, Any]] = {**_TRAIN_TEST, "val": {"split": "val"}}
_UNDIVIDED: Mapping[str, Mapping[str, Any]] = {"": {}}


@dataclass(frozen=True)
class KnownSet:
    """Where torchvision keeps a set below its root, and how it is asked for."""

    folder: str
    parts: Mapping[str, Mapping[str, Any]]
    """Given split ("" where there is none) -> arguments of the class."""
    paths: str = ""
    """How the paths of its files are had: "loader", "categories", an attribute; "idx" where they are IDX files, empty
    where they are other arrays."""
    files: str = "*"
    """Which files below the folder are the set's, where it shares the root with others."""


SETS: Mapping[str, KnownSet] = {
    "CIFAR10": KnownSet("cifar-10-batches-py", _BY_FLAG),
    "CIFAR100": KnownSet("cifar-100-python", _BY_FLAG),
    "MNIST": KnownSet("MNIST/raw", _BY_FLAG, "idx"),
    "FashionMNIST": KnownSet("FashionMNIST/raw", _BY_FLAG, "idx"),
    "KMNIST": KnownSet("KMNIST/raw", _BY_FLAG, "idx"),
    "STL10": KnownSet("stl10_binary", _TRAIN_TEST),
    "SVHN": KnownSet("", _TRAIN_TEST, files="t*_32x32.mat"),
    "DTD": KnownSet("dtd", _ALL_THREE, "loader"),
    "Flowers102": KnownSet("flowers-102", _ALL_THREE, "loader"),
    "FGVCAircraft": KnownSet("fgvc-aircraft-2013b", _ALL_THREE, "loader"),
    "Food101": KnownSet("food-101", _TRAIN_TEST, "loader"),
    "Country211": KnownSet("country211", {**_TRAIN_TEST, "val": {"split": "valid"}}, "loader"),
    "EuroSAT": KnownSet("eurosat", _UNDIVIDED, "loader"),
    "SUN397": KnownSet("SUN397", _UNDIVIDED, "loader"),
    "Caltech101": KnownSet("caltech101", _UNDIVIDED, "categories"),
    "OxfordIIITPet": KnownSet(
        "oxford-iiit-pet", {"train": {"split": "trainval"}, "test": {"split": "test"}}, "_images"
    ),
    "GTSRB": KnownSet("gtsrb", _TRAIN_TEST, "_samples"),
}


def open_set(address: str, name: str = "") -> Source:
    """Return the source of `torchvision:NAME` or `torchvision:NAME:ROOT`, fetched if it is not there.

    ROOT is torchvision's `root`, a local folder; without it the set lies below `runs/torchvision`.

    Raises:
        InputError: no such set is known, or it is not there and cannot be fetched.
    """
    kind, _, root = address.removeprefix(TORCHVISION).partition(":")
    if kind not in SETS:
        folders = "; its images lie in class folders: give the folder" if kind in ("ImageFolder", "ImageNet") else ""
        raise InputError(f"torchvision:{kind} is not known{folders}", mend=f"known are {', '.join(SETS)}")
    if "://" in root:
        raise InputError(f"{address}: torchvision keeps its datasets on a disk", mend="give a local folder")
    root = os.path.abspath(os.path.expanduser(root or DEFAULT_ROOT))
    storage = Storage.open(os.path.join(root, SETS[kind].folder))
    if len(_files(kind, storage)) < (4 if SETS[kind].paths == "idx" else 1):  # two parts of images and labels
        _fetch(kind, root)
    if SETS[kind].paths == "idx":
        return DigitSet(kind, storage, name or kind)
    made = FileSet if SETS[kind].paths else ArraySet
    return made(kind, root, storage, name or kind)


def _files(kind: str, storage: Storage) -> list[StoredFile]:
    known = SETS[kind]
    if known.paths == "idx":  # torchvision leaves the packed files beside the unpacked ones
        return [file for file in storage.list() if is_idx(file.path) and not file.path.endswith(".gz")]
    return [file for file in storage.list() if fnmatchcase(file.path, known.files)]


def _fetch(kind: str, root: str) -> None:
    logger.info("ingest: torchvision fetches %s to %s", kind, root)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is the command's own
            for arguments in SETS[kind].parts.values():
                _make(kind, root, arguments, download=True)
    except (OSError, RuntimeError, EOFError) as error:  # a network that is not there comes as any of these
        raise InputError(
            f"torchvision's {kind} is not in {root}, and it cannot be fetched: {str(error).strip()}",
            mend=f"where a network is: python -c \"import torchvision.datasets as d; d.{kind}('ROOT', download=True)\","
            f" then copy ROOT here and give torchvision:{kind}:ROOT",
        ) from error


def _open(kind: str, root: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return _make(kind, root, arguments)
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        raise InputError(
            f"torchvision's {kind} in {root} is not whole: {str(error).strip()}",
            mend=f"remove its files below {os.path.join(root, SETS[kind].folder)}, and it is fetched again",
        ) from error


def _make(kind: str, root: str, arguments: Mapping[str, Any], *, download: bool = False) -> Any:
    from torchvision import datasets

    by_path = {"loader": os.fspath} if SETS[kind].paths == "loader" else {}
    return getattr(datasets, kind)(root, **arguments, **by_path, download=download)


def _label(dataset: Any, target: object) -> str | None:
    """Return the class's name where torchvision has names, else its number; -1 means unlabelled there."""
    number = int(str(target))
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    return None if number < 0 else str(names[number]) if names else str(number)


class FileSet(FolderSource):
    """A set of image files: their bytes as they lie; keys are paths below the set's own folder."""

    def __init__(self, kind: str, root: str, storage: Storage, name: str) -> None:
        super().__init__(storage, name)
        self._kind, self._root = kind, root

    @override
    def _list(self) -> Listing:
        sizes = {file.path: file.size for file in self.files()}
        entries: list[Entry] = []
        for split, arguments in SETS[self._kind].parts.items():
            dataset = _open(self._kind, self._root, arguments)
            for path, target in self._pairs(dataset):
                key = Path(path).relative_to(self.storage.uri).as_posix()
                is_there = key in sizes
                entries.append(
                    Entry(
                        key=key,
                        occurrence=0,
                        image_id=image_id(self.name, key.encode(), 0),
                        size=sizes.get(key, 0),
                        label=_label(dataset, target),
                        given_split=split or None,
                        reason="" if is_there else "MISSING",
                        message="" if is_there else f"torchvision's {self._kind} lists it, and the file is not there",
                    )
                )
        return Listing(tuple(entries))

    def _pairs(self, dataset: Any) -> Iterator[tuple[str, object]]:
        """Yield (path, class) of each item; nothing is decoded."""
        how = SETS[self._kind].paths
        if how == "loader":
            yield from (dataset[index] for index in range(len(dataset)))
        elif how == "categories":
            for number, target in zip(dataset.index, dataset.y, strict=True):
                place = Path(dataset.root, "101_ObjectCategories", dataset.categories[target])
                yield str(place / f"image_{number:04d}.jpg"), target
        elif how == "_samples":
            yield from dataset._samples
        else:
            yield from zip(getattr(dataset, how), dataset._labels, strict=True)


class DigitSet(IdxSource):
    """A set in the format of MNIST, with its classes by name; keys are FILE!/NUMBER.png."""

    def __init__(self, kind: str, storage: Storage, name: str) -> None:
        super().__init__(storage, _files(kind, storage), name)
        self._kind = kind

    @override
    def _list(self) -> Listing:
        from torchvision import datasets

        names = {str(number): name for number, name in enumerate(getattr(datasets, self._kind).classes)}
        listing = super()._list()
        stray = next((entry for entry in listing.entries if entry.label not in names), None)
        if stray is not None:
            raise InputError(
                f"torchvision's {self._kind} in {self.uri} is not whole: {stray.key} has label {stray.label}",
                mend="remove its files there, and it is fetched again",
            )
        return replace(listing, entries=tuple(e._replace(label=names[str(e.label)]) for e in listing.entries))


class ArraySet(Source):
    """A set that torchvision keeps as arrays: each image as a PNG of its pixels; keys are SPLIT/NUMBER.png."""

    def __init__(self, kind: str, root: str, storage: Storage, name: str) -> None:
        super().__init__(storage.uri, name)
        self._kind, self._root = kind, root
        self._storage = storage
        self._loaded: dict[str, Any] = {}

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_loaded": {}}

    @override
    def _list(self) -> Listing:
        entries: list[Entry] = []
        for number, split in enumerate(SETS[self._kind].parts):
            dataset = self._dataset(split)
            targets = dataset.targets if hasattr(dataset, "targets") else dataset.labels
            for row, target in enumerate(np.asarray(targets).tolist()):
                key = f"{split}/{row:06d}.png"
                entries.append(
                    Entry(
                        key=key,
                        occurrence=0,
                        image_id=image_id(self.name, key.encode(), 0),
                        size=int(np.prod(dataset.data.shape[1:])),
                        label=_label(dataset, target),
                        given_split=split,
                        detail=(number, row),
                    )
                )
        return Listing(tuple(entries))

    @override
    def listing_digest(self) -> str:
        digest = hashlib.sha256(self._kind.encode())
        for file in _files(self._kind, self._storage):
            digest.update(f"\n{file.path}\0{file.size}\0{file.modified:.6f}".encode())
        return digest.hexdigest()

    @override
    def units(self) -> list[Unit]:
        return self.units_of(self.listing().entries)

    @override
    def units_of(self, entries: Sequence[Entry]) -> list[Unit]:
        by_id = sorted(entries, key=lambda entry: (entry.detail[0], entry.image_id))
        units: list[Unit] = []
        for number in range(len(SETS[self._kind].parts)):
            mine = [entry for entry in by_id if entry.detail[0] == number]
            for start in range(0, len(mine), _UNIT_ROWS):
                units.append(Unit(len(units), tuple(mine[start : start + _UNIT_ROWS])))
        return units

    @override
    def open(self, unit: Unit) -> Iterator[Member]:
        splits = list(SETS[self._kind].parts)
        for entry in unit.entries:
            dataset = self._dataset(splits[entry.detail[0]])
            if entry.detail[1] >= len(dataset):
                yield member_of(entry, None, "CHANGED", "the set has fewer images than when it was listed")
                continue
            picture, _ = dataset[entry.detail[1]]
            data, _ = encode_image(np.asarray(picture), "png", 0)
            yield member_of(entry._replace(size=len(data)), data)

    def _dataset(self, split: str) -> Any:
        if split not in self._loaded:
            self._loaded = {split: _open(self._kind, self._root, SETS[self._kind].parts[split])}  # one at a time
        return self._loaded[split]
