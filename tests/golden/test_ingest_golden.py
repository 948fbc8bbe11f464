"""The output of ingest and of the image path on fixed bytes. When one changes on purpose, raise OUTPUT_VERSION too."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np

from pipelines.dataset.reader import open_dataset
from pipelines.image.preprocess import prepare_raw
from pipelines.image.resize import Geometry, apply_geometry
from pipelines.ingest import stage
from pipelines.ingest.config import ImageConfig, IngestConfig
from pipelines.ingest.plan import OUTPUT_VERSION
from pipelines.ingest.quality import Quality, measure
from pipelines.ingest.stored import make_preprocess
from pipelines.ingest.unit import ingest_unit
from pipelines.sources.base import Found, Unit, make_listing
from pipelines.sources.units import file_units, span_units
from tests import factories

SIZES = ((1, 320, 240), (2, 256, 256), (3, 97, 640), (4, 96, 96), (5, 33, 32))
"""Seed, width and height of pictures on either side of the size from which they are measured in another way."""
GOLDEN = Path(__file__).with_name("ingest.json")


def pattern(seed: int, width: int, height: int) -> np.ndarray:
    """Return pixels by arithmetic alone, the same with every library."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    return ((x * 7 + y * 13 + c * 41 + x * y * (seed + 3) + seed * 29) % 256).astype(np.uint8)


def stored_png(pixels: np.ndarray) -> bytes:
    """Return a PNG whose bytes do not depend on a compressor: its deflate blocks are stored."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = factories.png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = factories.png_chunk(b"IDAT", zlib.compress(rows, 0))
    return b"\x89PNG\r\n\x1a\n" + head + data + factories.png_chunk(b"IEND", b"")


def measured(tmp_path: Path) -> dict[str, object]:
    files = [(f"{'abc'[i % 3]}/{i:02d}.png", stored_png(pattern(i, 20 + i % 3, 18))) for i in range(40)]
    files += [("a/copy.png", files[4][1]), ("b/text.jpg", b"text")]
    (tmp_path / "golden.zip").write_bytes(factories.make_zip(files))
    config = IngestConfig(source=str(tmp_path / "golden.zip"), out=str(tmp_path / "out"))
    result = stage.run(config, lambda job, units: (ingest_unit(unit, job) for unit in units))
    catalog = open_dataset(result.out).catalog
    table = open_dataset(result.out).table("train")
    columns = ["phash", "brightness", "contrast", "sharpness", "channel_sum", "channel_square_sum", "flags"]
    values = {row["image_id"]: [row[name] for name in columns] for row in table.to_pylist()}
    photo = pattern(7, 320, 240)
    geometries = [Geometry(100, mode) for mode in ("fit", "crop", "pad", "squash")] + [Geometry(400, "squash")]
    pictures = [pattern(seed, width, height) for seed, width, height in SIZES]
    network_input = prepare_raw(stored_png(photo), make_preprocess(ImageConfig(), 256))
    return {
        "output_version": OUTPUT_VERSION,
        "key": result.key,
        "fingerprint": catalog["fingerprint"],
        "splits": {name: part["fingerprint"] for name, part in catalog["splits"].items()},
        "counts": catalog["counts"],
        "columns": digest(json.dumps(values, sort_keys=True).encode()),
        "measures": [digest(json.dumps(as_stored(measure(picture))).encode()) for picture in pictures],
        "units": digest(json.dumps([[unit.index, len(unit.entries), unit.entries[0].key] for unit in cut()]).encode()),
        "resized": [digest(apply_geometry(photo, geometry).tobytes()) for geometry in geometries],
        "network_input": digest(network_input.tobytes()),
    }


def as_stored(quality: Quality) -> list[float | int]:
    """Return measures as a row's columns hold them, in 32 bits."""
    return [quality.phash, *np.float32([quality.brightness, quality.contrast, quality.sharpness]).tolist()]


def cut() -> list[Unit]:
    """Return how a large listing is cut: the order of rows follows from it."""
    entries = make_listing(
        "set", [Found(b"c%d/%06d.jpg" % (i // 3000, i), 900, i * 900, 900) for i in range(30_000)]
    ).entries
    return [*span_units(entries), *file_units(entries)]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def test_output_is_what_it_was(tmp_path: Path) -> None:
    assert measured(tmp_path) == json.loads(GOLDEN.read_text())
