"""Opens a version of a dataset and reads its live rows: whole columns, or one row group at a time."""

from __future__ import annotations

import contextlib
import math
import shlex
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dataset.catalog import DATASET_FORMAT, Catalog, format_ref, parse_ref, read_version
from pipelines.dataset.overrides import Overrides, apply_overrides, live_rows, load_overrides
from pipelines.dataset.receipt import QuarantineFile, ShardFile
from pipelines.dataset.schema import OUR_COLUMNS, make_shard_schema, with_later_columns
from pipelines.dataset.shards import read_shard_list
from pipelines.dataset.tables import open_parquet
from pipelines.errors import DataError, InputError, NotFound
from pipelines.storage import Storage

_OPEN_FILES = 32


@dataclass(frozen=True)
class RowGroup:
    """One row group with live rows.

    Attributes:
        shard: path of its shard.
        index: its index in the shard.
        num_rows: its live rows.
        first: index in the shard of its first row, dead ones counted.
        live: which of its rows live, as indices from 0; None where all do.
    """

    shard: str
    index: int
    num_rows: int
    first: int
    live: npt.NDArray[np.int64] | None = field(default=None, compare=False)


class Dataset:
    """One version of a dataset, pinned: what is published later does not show. Pickles as its reference."""

    def __init__(self, uri: str, version: int, catalog: Catalog) -> None:
        self.uri = uri
        self.version = version
        self.catalog = catalog
        self.storage = Storage.open(uri)
        self._open = threading.local()  # a file object must not be read by two threads at once
        self._groups: dict[str, list[RowGroup]] = {}

    def __reduce__(self) -> tuple[object, ...]:
        return Dataset, (self.uri, self.version, self.catalog)

    def __repr__(self) -> str:
        return f"Dataset({self.ref!r})"

    @property
    def ref(self) -> str:
        """The address with the version, as `open_dataset` takes it."""
        return format_ref(self.uri, self.version)

    @property
    def task(self) -> str:
        """What a label is: single, multi or regression."""
        return str(self.catalog["task"])

    @property
    def classes(self) -> list[str]:
        """Class names; the place of a name is its class number, for good."""
        return list(self.catalog["classes"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all live rows, 64 hex digits."""
        return str(self.catalog["fingerprint"])

    @property
    def preprocess(self) -> dict[str, Any]:
        """The `Preprocess` that the stored images were made with, as JSON values."""
        return dict(self.catalog["preprocess"])

    @property
    def splits(self) -> list[str]:
        """Names of the splits, in alphabetical order."""
        return sorted(self.catalog["splits"])

    @cached_property
    def overrides(self) -> Overrides:
        """What patches change in the rows of the shards."""
        return load_overrides(self.storage, self.catalog["patches"])

    @cached_property
    def _files(self) -> tuple[list[ShardFile], list[QuarantineFile]]:
        shards: list[ShardFile] = []
        quarantine: list[QuarantineFile] = []
        for entry in self.catalog["shard_lists"]:  # in the order the runs were published
            more_shards, more_quarantine = read_shard_list(self.storage, entry)
            shards += more_shards
            quarantine += more_quarantine
        return shards, quarantine

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows."""
        if not self.catalog["carried"] or not self.shards():
            return make_shard_schema(self.task)
        standing = self._parquet(self.shards()[0].path).schema_arrow
        return make_shard_schema(self.task, [field for field in standing if field.name not in OUR_COLUMNS])

    def shards(self, split: str | None = None) -> list[ShardFile]:
        """Return the shards of a split, or of all, in the order of rows."""
        shards = self._files[0]
        return list(shards) if split is None else [file for file in shards if file.split == self._split(split)]

    def quarantine_files(self) -> list[QuarantineFile]:
        """Return the files of refused members."""
        return list(self._files[1])

    def num_rows(self, split: str) -> int:
        """Return the number of live rows of a split."""
        return int(self.catalog["splits"][self._split(split)]["rows"])

    def split_fingerprint(self, split: str) -> str:
        """Return the fingerprint of a split's live rows, 64 hex digits."""
        return str(self.catalog["splits"][self._split(split)]["fingerprint"])

    def row_groups(self, split: str) -> list[RowGroup]:
        """Return the row groups that have live rows, numbered by (run, unit, row group), never by file name.

        The row position of the k-th live row of group g is the sum of `num_rows` of the groups before g, plus k.
        """
        if split not in self._groups:
            groups = []
            for file in self.shards(split):
                changes = self.overrides.get(file.path, {})
                first = 0
                for index, size in enumerate(file.row_groups):
                    live = live_rows(size, changes, first) if changes else None
                    if num_rows := size if live is None else len(live):
                        groups.append(RowGroup(file.path, index, num_rows, first, live))
                    first += size
            self._groups[split] = groups
        return self._groups[split]

    def table(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the live rows of a split in the order of row positions, patches applied.

        Args:
            split: name of the split.
            columns: names to read; None reads all, the images too.

        Raises:
            DataError: a shard is damaged.
        """
        schema = self._wanted_schema(columns)
        tables = [
            apply_overrides(self.written_rows(file, schema.names), self.overrides.get(file.path, {}))
            for file in self.shards(split)
        ]
        # Only where there is no other: pyarrow imports pandas for an empty one, a third of a second of every start.
        return pa.concat_tables(tables or [schema.empty_table()])

    def written_rows(self, file: ShardFile, columns: Sequence[str]) -> pa.Table:
        """Return columns of one shard as they were written: dead rows too, no patch applied."""
        schema = self._wanted_schema(columns)
        with self._faults(file.path):
            table = self._parquet(file.path).read(columns=schema.names)
        return with_later_columns(table, schema).cast(schema)

    def read_group(self, split: str, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the live rows of one row group of `row_groups(split)`, patches applied.

        Raises:
            DataError: the shard is damaged.
        """
        row_group = self.row_groups(split)[group]
        schema = self._wanted_schema(columns)
        with self._faults(row_group.shard, row_group.index):
            table = self._parquet(row_group.shard).read_row_group(row_group.index, columns=schema.names)
        table = with_later_columns(table, schema)
        return apply_overrides(table, self.overrides.get(row_group.shard, {}), row_group.first)

    def class_indices(self, split: str) -> npt.NDArray[np.int64]:
        """Return the class number of every live row of a single-label dataset; -1 where unlabelled.

        Raises:
            InputError: the dataset's labels are lists or numbers.
        """
        if self.task != "single":
            raise InputError(f"{self.ref} has {self.task} labels; a class number needs a single label per image")
        number = {name: index for index, name in enumerate(self.classes)}
        labels = self.table(split, ["label"]).column("label").to_pylist()
        return np.array([-1 if label is None else number[label] for label in labels], dtype=np.int64)

    def class_matrix(self, split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Return which classes every live row of a multi-label dataset has, and which rows are labelled at all.

        Returns:
            1 where a row has a class, else 0, (N, classes); whether a row is labelled, (N,). A row whose list is empty
            is labelled: none of the classes is there.

        Raises:
            InputError: the dataset's labels are no lists.
        """
        if self.task != "multi":
            raise InputError(f"{self.ref} has {self.task} labels; a row of classes needs a list of labels per image")
        number = {name: index for index, name in enumerate(self.classes)}
        labels = self.table(split, ["label"]).column("label").to_pylist()
        matrix = np.zeros((len(labels), len(number)), dtype=np.uint8)
        for row, names in enumerate(labels):
            matrix[row, [number[name] for name in names or ()]] = 1
        return matrix, np.array([names is not None for names in labels], dtype=bool)

    def mean_std(self, split: str = "train") -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation per channel over the pixels of a split's live rows, values in [0, 1].

        From the sums kept in the rows, added exactly (`math.fsum`), so that neither sharding nor compaction shows.

        Raises:
            InputError: the split has no rows.
        """
        table = self.table(split, ["width", "height", "channel_sum", "channel_square_sum"])
        if not table.num_rows:
            raise InputError(f"{self.ref} has no rows in split {split!r}, so that there is no mean")
        width, height = (_numbers(table.column(name).combine_chunks()) for name in ("width", "height"))
        pixels = float(np.dot(width, height.astype(np.int64)))
        sums = [_column_sums(table.column(name)) for name in ("channel_sum", "channel_square_sum")]
        means = tuple(total / pixels for total in sums[0])
        squares = (total / pixels for total in sums[1])
        return means, tuple(math.sqrt(max(s - m * m, 0.0)) for s, m in zip(squares, means, strict=True))

    def files(self, split: str) -> list[str]:
        """Return the addresses of a split's shards, for pandas, DuckDB, Spark or Hugging Face `datasets`.

        Raises:
            InputError: a patch stands on one of them, so that reading it plainly would give other rows.
        """
        shards = self.shards(split)
        if patched := [file.path for file in shards if file.path in self.overrides]:
            raise InputError(
                f"{len(patched)} of {len(shards)} shards of split {split!r} in {self.ref} are patched;"
                " other tools would read rows that no longer count",
                where=self.storage.address(patched[0]),
                mend=f"`resnet data compact {shlex.quote(self.uri)}` writes them anew;"
                f" `resnet data export {shlex.quote(self.ref)} --out FOLDER` gives plain files",
            )
        return [self.storage.address(file.path) for file in shards]

    def verify(self) -> list[Any]:
        """Return every difference between what was written and what stands there; see `inspect.verify`."""
        from pipelines.dataset.inspect import verify

        return list(verify(self))

    def _split(self, split: str) -> str:
        if split not in self.catalog["splits"]:
            raise InputError(
                f"{self.ref} has no split {split!r}; it has {', '.join(self.splits) or 'none'}",
                mend="name one of them",
            )
        return split

    def _wanted_schema(self, columns: Sequence[str] | None) -> pa.Schema:
        schema = self.schema
        if columns is None:
            return schema
        if unknown := [name for name in columns if name not in schema.names]:
            raise InputError(f"{self.ref} has no column {unknown[0]!r}; it has {', '.join(schema.names)}")
        return pa.schema([schema.field(name) for name in columns])

    def _parquet(self, path: str) -> pq.ParquetFile:
        if not hasattr(self._open, "files"):
            self._open.files = OrderedDict()
        files: OrderedDict[str, pq.ParquetFile] = self._open.files
        if path not in files:
            while len(files) >= _OPEN_FILES:
                files.popitem(last=False)[1].close(force=True)
            with self._faults(path):
                files[path] = open_parquet(self.storage, path)
        files.move_to_end(path)
        return files[path]

    @contextlib.contextmanager
    def _faults(self, path: str, group: int | None = None) -> Iterator[None]:
        """Turn what pyarrow and storage raise into errors that name the shard."""
        part = path if group is None else f"row group {group} of {path}"
        verify = f"`resnet data verify {shlex.quote(self.ref)}`"
        mend = f"{verify} lists all damage; restore the file from a backup or ingest again"
        try:
            yield
        except NotFound as error:
            raise DataError(
                f"{part} is gone, though {self.ref} names it",
                where=self.storage.address(path),
                mend=mend,
            ) from error
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{part} is damaged: {error}",
                where=self.storage.address(path),
                mend=mend,
            ) from error


def open_dataset(reference: str, *, stage_format: str | None = DATASET_FORMAT) -> Dataset:
    """Open `DATASET` (its newest version) or `DATASET@v3`.

    Args:
        reference: the address, with or without a version.
        stage_format: the `format` its catalog must have; None for any that lists files, such as predictions.

    Raises:
        InputError: there is no dataset or no such version, or it was purged.
    """
    uri, version = parse_ref(reference)
    storage = Storage.open(uri)
    if storage.is_local and Path(storage.uri).is_file():
        raise InputError(
            f"{storage.uri} is a file, not a dataset", mend="a dataset is a folder that ingest has written"
        )
    catalog = read_version(storage, version, stage_format=stage_format)
    if catalog is None:
        raise InputError(
            f"there is no dataset at {storage.uri}: no catalog is published there",
            mend=f"make one: resnet ingest SOURCE --out {shlex.quote(uri)}",
        )
    return Dataset(storage.uri, int(catalog["version"]), catalog)


def _column_sums(column: pa.ChunkedArray) -> list[float]:
    values = cast(pa.ListArray, column.combine_chunks())
    flat = _numbers(values.flatten())
    width = len(flat) // len(values)
    return [math.fsum(flat[channel::width]) for channel in range(width)]


def _numbers(values: pa.Array) -> npt.NDArray[Any]:
    """Return an Arrow array of numbers as NumPy's; `to_numpy` imports pandas, for which no start should wait."""
    return np.from_dlpack(values) if not values.null_count else values.to_numpy(zero_copy_only=False)
