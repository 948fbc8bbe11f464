"""A sheet of a million images stays small, since it holds aggregates and samples only."""

from __future__ import annotations

import hashlib
import json
import resource
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.dataset.catalog import publish_version
from pipelines.dataset.content import make_catalog
from pipelines.dataset.duplicates import find_alike
from pipelines.dataset.profile import make_profile
from pipelines.dataset.profile_page import make_sheet
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.dataset.receipt import ShardFile
from pipelines.dataset.schema import SHARD_SCHEMA
from pipelines.dataset.shards import write_shard_list
from pipelines.dataset.tables import encode_table
from pipelines.storage import Storage
from tests.unit.dataset.rows import make_png

SHARDS = 20
CLASSES = 1_000


def wide_table(first: int, rows: int) -> pa.Table:
    """Return rows of 1,000 classes with drawn columns; pictures are of 200 kinds."""
    draw = np.random.default_rng(first)
    numbers = np.arange(first, first + rows)
    pictures = [make_png(seed) for seed in range(200)]
    image = [{"bytes": pictures[number % 200], "path": None} for number in numbers]
    digests = [hashlib.sha256(b"%d" % number).hexdigest() for number in numbers]
    sums = pa.array([[18.0, 18.0, 18.0]] * rows, pa.list_(pa.float64()))
    columns = {
        "image": pa.array(image, SHARD_SCHEMA.field("image").type),
        "label": pa.array([f"class <{number % CLASSES}>" for number in numbers]),
        "image_id": pa.array([digest[:32] for digest in digests]),
        "source": pa.array(["photos"] * rows),
        "key": pa.array([f"photos/<b>{number}</b>.png" for number in numbers]),
        "occurrence": np.zeros(rows, np.int32),
        "width": np.full(rows, 6, np.int32),
        "height": np.full(rows, 6, np.int32),
        "source_format": pa.array(["PNG" if number % 3 else "JPEG" for number in numbers]),
        "source_width": draw.integers(200, 4000, rows).astype(np.int32),
        "source_height": draw.integers(200, 4000, rows).astype(np.int32),
        "source_sha256": pa.array(digests),
        "stored_sha256": pa.array(digests),
        "phash": draw.integers(0, 2**63, rows).astype(np.uint64),
        "brightness": draw.random(rows).astype(np.float32),
        "contrast": draw.random(rows).astype(np.float32),
        "sharpness": draw.random(rows).astype(np.float32),
        "channel_sum": sums,
        "channel_square_sum": sums,
        "flags": pa.array([["dark"] if number % 7 == 0 else [] for number in numbers], pa.list_(pa.string())),
        "source_bytes": draw.integers(1_000, 100_000, rows),
        "cropped_fraction": draw.random(rows).astype(np.float32),
    }
    return pa.table([pa.array(columns[name]) for name in SHARD_SCHEMA.names], schema=SHARD_SCHEMA)


def make_wide(root: Path, rows: int) -> Dataset:
    storage, run_id, files = Storage.open(str(root)), f"{'a' * 32}-0", []
    for unit, first in enumerate(range(0, rows, rows // SHARDS)):
        split = ("train", "train", "train", "val", "test")[unit % 5]
        table = wide_table(first, rows // SHARDS)
        data, path = encode_table(table), f"data/{run_id}/{split}/part-{unit:06d}-a0.parquet"
        storage.put(path, data)
        labels = {f"class <{number}>": table.num_rows // CLASSES for number in range(CLASSES)}
        digest = hashlib.sha256(data).hexdigest()
        files.append(
            ShardFile(path, split, unit, table.num_rows, len(data), digest, "0" * 64, (table.num_rows,), labels)
        )
    catalog = make_catalog(
        stage="ingest",
        key="a" * 32,
        run_id=run_id,
        files=files,
        shard_list=write_shard_list(storage, run_id, files),
        sources={"photos": "a" * 32},
        locations={"photos": "/photos"},
        task="single",
        preprocess={},
        split={"by": "hash", "seed": 0},
        counts={"members": rows, "written": rows, "quarantined": 0, "dropped": 0},
        config={},
    )
    publish_version(storage, run_id, catalog)
    return open_dataset(str(root))


@pytest.mark.parametrize(
    "rows", [pytest.param(20_000, id="20-thousand"), pytest.param(1_000_000, marks=pytest.mark.slow, id="million")]
)
def test_a_sheet_holds_aggregates_and_samples_only(tmp_path: Path, rows: int) -> None:
    dataset = make_wide(tmp_path, rows)
    started_s = time.perf_counter()
    profile = make_profile(dataset)
    profiled_s = time.perf_counter()
    alike = find_alike(dataset)
    compared_s = time.perf_counter()
    html = make_sheet(dataset, profile, alike)
    numbers = json.dumps(asdict(profile)).encode()
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\n{rows:,} images: profile {profiled_s - started_s:.1f} s, look-alikes {compared_s - profiled_s:.1f} s, page"
        f" {time.perf_counter() - compared_s:.1f} s, HTML {len(html) / 1e6:.2f} MB, JSON {len(numbers) / 1e3:.0f} kB,"
        f" peak {peak_gib:.2f} GiB"
    )
    assert len(html) < 3e6
    assert len(numbers) < 1e5
    assert profile.flags == {"dark": -(-rows // 7)}
    assert b"<b>" not in html.split(b"<main>")[1].replace(b'<b style="width', b"")  # keys and classes are escaped
    assert b"class &lt;0&gt;" in html
    assert html.count(b"<img") < 200
