"""What ingest is measured against: loops over files in plain processes, and Ray Data as its documentation shows it."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg

from pipelines.dataset.tables import IMAGE_BYTES, MAX_PACKED_BYTES, open_writer
from pipelines.ingest.config import ImageConfig
from pipelines.ingest.quality import measure
from pipelines.ingest.stored import make_stored_image

NUM_PROCESSES = 2
SIDE_PX = 256
GROUP_BYTES = 2 << 20

Names = Sequence[str]
Loop = Callable[[Path, Names, Path], int]
"""Takes an archive or a folder, some of its members and the file to write; returns how many it did."""


def members(source: Path, names: Names) -> Iterable[tuple[str, bytes]]:
    """Read members of a zip, or files of a folder."""
    if source.is_dir():
        for name in names:
            yield name, (source / name).read_bytes()
        return
    with zipfile.ZipFile(source) as archive:
        for name in names:
            yield name, archive.read(name)


def same_functions(source: Path, names: Names, out: Path, *, config: ImageConfig | None = None) -> int:
    """Decode, resize, hash, score and encode as ingest does, and write Parquet with the same writer."""
    with Table(out) as table:
        for name, data in members(source, names):
            image = make_stored_image(data, name, config or ImageConfig())
            row = {"key": name, "source": image.source_sha256, "stored": image.stored_sha256}
            table.add(image.data, {**row, **measure(image.pixels, image.width * image.height)._asdict()})
    return len(names)


def same_functions_kept(source: Path, names: Names, out: Path) -> int:
    """Do the same where every size fits, so that bytes are kept."""
    return same_functions(source, names, out, config=ImageConfig(size_px=0))


def small_jpeg(data: bytes) -> bytes:
    """Decode, crop, shrink, encode."""
    cv2.setNumThreads(1)
    pixels = simplejpeg.decode_jpeg(data, "RGB")
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    small = cv2.resize(square, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(small), 90, "RGB", "420"))


def minimal(source: Path, names: Names, out: Path) -> int:
    """Decode, crop, shrink, encode, write: nothing that tells a good image from a bad one."""
    with out.open("wb") as target:
        for _, data in members(source, names):
            target.write(small_jpeg(data))
        target.flush()
        os.fsync(target.fileno())
    return len(names)


def checked_copies(source: Path, names: Names, out: Path) -> int:
    """Read, hash, decode every entropy stream at 1/8, write Parquet."""
    with Table(out) as table:
        for name, data in members(source, names):
            simplejpeg.decode_jpeg(data, "RGB", min_height=1, min_width=1)
            table.add(data, {"key": name, "source": hashlib.sha256(data).hexdigest()})
    return len(names)


class Table:
    """Writes rows as Parquet in groups of 2 MB as ingest does, synced at the end."""

    def __init__(self, path: Path) -> None:
        self._path, self._sink = path, io.BytesIO()
        self._rows: list[dict[str, Any]] = []
        self._size = 0
        self._writer: Any = None

    def __enter__(self) -> Table:
        return self

    def add(self, data: bytes, row: dict[str, Any]) -> None:
        """Add one row."""
        if self._rows and (self._size + len(data) > GROUP_BYTES or len(self._rows) == 512):
            self._flush()
        self._rows.append({IMAGE_BYTES: data, **row})
        self._size += len(data)

    def _flush(self) -> None:
        columns = {name: [row[name] for row in self._rows] for name in self._rows[0]}
        columns |= {"phash": pa.array(columns["phash"], pa.uint64())} if "phash" in columns else {}
        table = pa.table(columns)
        packs = self._size <= MAX_PACKED_BYTES * len(self._rows)
        self._writer = self._writer or open_writer(self._sink, table.schema, packs_images=packs)
        self._writer.write_table(table)
        self._rows, self._size = [], 0

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()
        with self._path.open("wb") as target:
            target.write(self._sink.getbuffer())
            target.flush()
            os.fsync(target.fileno())


class Pool:
    """Two processes that stand before a measurement begins."""

    def __init__(self) -> None:
        self._pool = multiprocessing.get_context("spawn").Pool(NUM_PROCESSES)

    def rate(self, loop: Loop, source: Path, names: Names, folder: Path) -> float:
        """Return images per second of a loop over all names, shared out between the processes."""
        folder.mkdir(parents=True, exist_ok=True)
        warm = [(source, names[:2], folder / f"warm{rank}") for rank in range(NUM_PROCESSES)]
        self._pool.starmap(loop, warm)
        parts = [(source, names[rank::NUM_PROCESSES], folder / f"{rank}") for rank in range(NUM_PROCESSES)]
        started_s = time.perf_counter()
        done = sum(self._pool.starmap(loop, parts))
        return done / (time.perf_counter() - started_s)

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
        self._pool.join()


def ray_data_rate(folder: Path, out: Path) -> float:
    """Return images per second of `read_images`, `map` and `write_parquet`; Ray must be running."""
    import ray.data

    def store(row: dict[str, Any]) -> dict[str, Any]:
        pixels = row["image"]
        height, width = pixels.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = np.ascontiguousarray(pixels[top : top + side, left : left + side])
        small = cv2.resize(square, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
        return {"bytes": simplejpeg.encode_jpeg(np.ascontiguousarray(small), 90, "RGB", "420"), "path": row["path"]}

    started_s = time.perf_counter()
    images = ray.data.read_images(str(folder), include_paths=True, mode="RGB")
    images.map(store).write_parquet(str(out))
    return sum(1 for _ in folder.rglob("*.jpg")) / (time.perf_counter() - started_s)
