"""The rows and the formats of score on fixed bytes. When one changes on purpose, raise OUTPUT_VERSION too."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.dataset.receipt import read_receipts
from pipelines.dataset.shards import read_shard_list
from pipelines.image.preprocess import Preprocess
from pipelines.package.resolve import ResolvedPackage
from pipelines.score.catalog import read_predictions
from pipelines.score.config import ScoreConfig
from pipelines.score.model import Model, PackageRef
from pipelines.score.plan import OUTPUT_VERSION, make_plan
from pipelines.score.unit import ScoreJob, score_unit
from pipelines.sources.resolve import open_source
from pipelines.storage import Storage
from tests import factories

GOLDEN = Path(__file__).with_name("score.json")
FORMATS = Path(__file__).with_name("formats")


def stored_png(level: int) -> bytes:
    """Return a PNG whose bytes do not depend on a compressor: its deflate blocks are stored."""
    rows = b"".join(b"\0" + bytes([level, 255 - level, 7]) * 5 for _ in range(4))
    head = factories.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 8, 2, 0, 0, 0))
    data = factories.png_chunk(b"IDAT", zlib.compress(rows, 0))
    return b"\x89PNG\r\n\x1a\n" + head + data + factories.png_chunk(b"IEND", b"")


def answer(pixels: np.ndarray) -> np.ndarray:
    """Answer in eighths: exact in float32, whatever the machine."""
    red = (pixels[:, 0, 0, 0] // 64).astype(np.float32)
    return np.stack([red / 8, 1 - red / 8, np.zeros_like(red)], axis=1)


def measured(tmp_path: Path) -> dict[str, Any]:
    members = [(f"{'ab'[i % 2]}/{i:02d}.png", stored_png(i * 12)) for i in range(20)]
    members += [("a/02.png", stored_png(255)), ("b/text.jpg", b"text")]
    (tmp_path / "golden.zip").write_bytes(factories.make_zip(members))
    source = open_source(str(tmp_path / "golden.zip"))
    config = ScoreConfig(archive=str(tmp_path / "golden.zip"), model="models:/lamps/3", model_sha256="a" * 64, top_k=2)
    pinned = ResolvedPackage(config.model, config.model, "lamps", "3", "a" * 64)
    made = make_plan(config, source, pinned)
    listed = {**made.inputs, "listing": "of another time"}  # the digest holds the file's time
    package = PackageRef("nowhere", "lamps", "3", "a" * 64, "float32", "cpu")
    job = ScoreJob(source, str(tmp_path / "out"), "0f-0", package, 2, 8)
    model = Model(answer, Preprocess(), ("dark", "light", "never"))
    receipts = [score_unit(unit, job, model) for unit in source.units()]
    return {
        "output_version": OUTPUT_VERSION,
        "inputs": listed,
        "fingerprints": [receipt["file"]["fingerprint"] for receipt in receipts],
        "id_sums": [receipt["id_sum"] for receipt in receipts],
        "reasons": [receipt["reasons"] for receipt in receipts],
    }


def test_the_output_on_fixed_bytes_is_unchanged(tmp_path: Path) -> None:
    found = measured(tmp_path)
    assert found == json.loads(GOLDEN.read_text()), f"if this is meant, write {GOLDEN.name} anew: {json.dumps(found)}"


def test_predictions_of_format_1_are_read() -> None:
    store = Storage.open(FORMATS / "predictions.v1")
    catalog = read_predictions(store)
    assert catalog is not None
    assert catalog["counts"] == {"members": 3, "scored": 2, "unscored": 1}
    assert catalog["model"]["name"] == "lamps"
    shards, _ = read_shard_list(store, catalog["shard_lists"][0])
    assert [shard.rows for shard in shards] == [3]
    from pipelines.score.proof import read_ids

    assert sum(len(ids) for ids in read_ids(store, shards[0].path)) == 3


def test_a_receipt_of_format_1_is_read() -> None:
    receipt = read_receipts(Storage.open(FORMATS / "score-receipt.v1"), "0f-0")[0]
    assert receipt["members"] == 3
    assert receipt["file"]["rows"] == 3
    assert receipt["reasons"] == {"NOT_IMAGE": 1}
