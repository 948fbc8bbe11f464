"""Makes the golden samples of the dataset's formats: `python -m tests.golden.formats.make_dataset_sample`.

The samples of a format version are made once and then stay: a later reader must still read them. Run this only to add
the samples of a new version, beside the old ones.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image

from pipelines.dataset.catalog import next_run_id, publish_version
from pipelines.dataset.content import make_catalog
from pipelines.dataset.patch import Change, publish_patch
from pipelines.dataset.receipt import UnitReport, write_receipt
from pipelines.dataset.shards import write_shard_list
from pipelines.dataset.writer import ShardWriter
from pipelines.storage import Storage

HERE = Path(__file__).parent
LABELS = ("caf\u00e9", "tea", None)


def sample_row(number: int) -> dict:
    """Return row `number`: a picture of 4 x 4 pixels of one colour."""
    color = (40 * number, 255 - 40 * number, 7)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(buffer, "PNG")
    return {
        "image": {"bytes": buffer.getvalue(), "path": f"{number}.png"},
        "label": LABELS[number % 3],
        "image_id": f"{number:032x}",
        "source": "sample",
        "key": f"caf\u00e9/{number}.png",
        "occurrence": 0,
        "width": 4,
        "height": 4,
        "source_format": "PNG",
        "source_width": 8,
        "source_height": 8,
        "source_sha256": f"{number:064x}",
        "phash": 2**64 - 1 - number,
        "brightness": 0.5,
        "contrast": 0.25,
        "sharpness": 0.125,
        "channel_sum": [16 * value / 255 for value in color],
        "channel_square_sum": [16 * (value / 255) ** 2 for value in color],
        "flags": ["tiny"] if number % 2 else [],
        "source_bytes": 100 + number,
        "cropped_fraction": 0.25 * (number % 2),
    }


def make_dataset(folder: Path) -> None:
    """Make a dataset of one ingest (version 1) and one patch (version 2), with its receipt left standing."""
    storage = Storage.open(folder)
    key = "0123456789abcdef" * 2
    run_id = next_run_id(storage, key)
    writer = ShardWriter(storage, run_id, 0, "a0")
    for number in range(5):
        writer.append("train" if number < 3 else "test", sample_row(number))
    writer.quarantine(
        {
            "source": "sample",
            "key": "small.png",
            "occurrence": 0,
            "reason": "TOO_SMALL",
            "message": "4 x 4 pixels",
            "thumbnail": sample_row(0)["image"]["bytes"],
        }
    )
    report = UnitReport.from_json(write_receipt(storage, run_id, 0, writer.close().to_json()))
    catalog = make_catalog(
        stage="ingest",
        key=key,
        run_id=run_id,
        files=report.files,
        shard_list=write_shard_list(storage, run_id, report.files, report.quarantine),
        sources={"sample": key},
        locations={"sample": "/pictures/sample"},
        task="single",
        preprocess={"stored": {"size_px": 4}},
        split={"by": "hash", "seed": 0},
        counts={"members": 6, "written": 5, "quarantined": 1},
        config={"source": "/pictures/sample"},
    )
    publish_version(storage, run_id, catalog)
    publish_patch(
        storage.uri,
        [
            Change(f"{2:032x}", "label", "tea", "looked at again", old=None),
            Change(f"{4:032x}", "live", False, "LEAK"),
        ],
    )
    shutil.rmtree(folder / "_work/tmp", ignore_errors=True)


if __name__ == "__main__":
    target = HERE / "dataset.v2"
    if target.exists():
        sys.exit(f"{target} stands already; samples of a format version are never made anew")
    make_dataset(target)
