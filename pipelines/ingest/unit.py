"""One unit in one task: read, take through the image path, write; image bytes never leave the process."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.dataset.attempt import begin_attempt, new_driver
from pipelines.dataset.label_text import label_text
from pipelines.dataset.receipt import write_receipt
from pipelines.dataset.schema import make_shard_schema
from pipelines.dataset.writer import ShardWriter
from pipelines.image.header import RefusedImage
from pipelines.ingest.audit import audit_row, write_unit_audit
from pipelines.ingest.config import ImageConfig, PrivacyConfig
from pipelines.ingest.privacy import Box, carried_columns, read_regions
from pipelines.ingest.quality import measure, quality_flags
from pipelines.ingest.split import SplitPlan
from pipelines.ingest.stored import NO_PRIVACY, StoredImage, make_stored_image
from pipelines.ingest.thumbnail import MAX_THUMBNAILS, make_thumbnail
from pipelines.ingest.watchdog import Watchdog
from pipelines.sources.base import Member, Source, Unit
from pipelines.storage import Storage

logger = logging.getLogger(__name__)

KILLS_BEFORE_CARE = 2

Alone = Callable[[bytes, tuple[Box, ...]], "RefusedImage | None"]
"""Tries one image with its boxes in another process; returns why it must be refused, or None when it did no harm."""


@dataclass(frozen=True)
class IngestJob:
    """All that a task needs to know; plain values, so that it travels to any node."""

    source: Source
    out: str
    run_id: str
    image: ImageConfig
    split_plan: SplitPlan
    privacy: PrivacyConfig = NO_PRIVACY
    driver: str = field(default_factory=new_driver)
    """Whose job it is; made anew by each driver."""


def ingest_unit(
    unit: Unit, job: IngestJob, alone: Alone | None = None, watchdog: Watchdog | None = None
) -> dict[str, Any]:
    """Read one unit, write its shards (one per split) and quarantine rows, and return the receipt that stands.

    Files are invisible until a catalog names them, so a unit that is retried or run twice does no harm. An
    unreadable image never raises: it becomes a quarantine row that keeps its reason.

    Args:
        unit: what to read.
        job: the run that it belongs to.
        alone: tries one image in another process. It is used when two attempts at this unit died, which
            is how an image that kills its process is found.
        watchdog: is told when an image begins; it ends a process that hangs.
    """
    store = Storage.open(job.out)
    if job.privacy.applies:
        logging.getLogger("PIL").setLevel(logging.INFO)  # its debug lines quote EXIF
    with begin_attempt(store, job.run_id, unit.index, job.driver) as attempt:
        careful = alone if attempt.died >= KILLS_BEFORE_CARE else None
        if careful is not None:
            logger.warning("unit %d died %d times: its images are tried alone", unit.index, attempt.died)
        writer = ShardWriter(store, job.run_id, unit.index, attempt.name, schema=schema_of(job.source, job.privacy))
        report, audit = _write_unit(unit, job, writer, careful, watchdog)
        if job.privacy.applies:
            report["audit"] = write_unit_audit(store, job.run_id, unit.index, attempt.name, audit)
        return write_receipt(store, job.run_id, unit.index, report)


def schema_of(source: Source, privacy: PrivacyConfig) -> pa.Schema:
    """Return the schema of a source's rows: ours, and its further columns that travel, as text.

    Raises:
        InputError: the column of boxes is not among the source's.
    """
    return make_shard_schema(
        "multi" if source.task == "multi" else "single",
        [pa.field(name, pa.string()) for name in carried_columns(source.carried, privacy)],
    )


def _write_unit(
    unit: Unit, job: IngestJob, writer: ShardWriter, careful: Alone | None, watchdog: Watchdog | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write what a unit comes to; return the report, and what privacy rules took out of each image."""
    largest_side_px, flags, audit = 0, Counter[str](), list[dict[str, Any]]()
    pictures_left = MAX_THUMBNAILS  # of whole images: a table may refuse all that there are
    column = job.source.carried.index(job.privacy.region_column) if job.privacy.region_column else None
    timed: AbstractContextManager[None] = watchdog or nullcontext()
    travelling = frozenset(carried_columns(job.source.carried, job.privacy))
    for member in job.source.open(unit):
        try:
            if member.reason or member.data is None:
                raise RefusedImage(member.reason or "UNREADABLE", member.message)
            regions = () if column is None else read_regions(member.carried[column])
            if careful is not None and (refusal := careful(member.data, regions)) is not None:
                raise refusal
            with timed:
                image = make_stored_image(member.data, member.key, job.image, job.privacy, regions)
        except RefusedImage as refused:  # this type only: a bug of ours must still stop the job
            thumbnail = None
            is_whole = bool(member.reason) and member.data is not None
            # one that is refused by its header may be what kills when it is decoded
            if careful is None and (pictures_left or not is_whole):
                pictures_left -= is_whole
                with timed:
                    thumbnail = make_thumbnail(member.data, refused.reason, job.image, job.privacy)
            writer.quarantine(_quarantine_row(member, refused, job, thumbnail))
            continue
        row = _row(member, image, job, travelling)
        if job.privacy.applies:
            audit.append(audit_row(member, image, regions, job.privacy))
        largest_side_px = max(largest_side_px, row["width"], row["height"])
        flags.update(row["flags"])
        writer.append(job.split_plan.place(member, job.source.carried), row)
    report = {
        **writer.close().to_json(),
        "members": len(unit.entries),
        "largest_side_px": largest_side_px,
        "flags": dict(sorted(flags.items())),
    }
    return report, audit


def _row(member: Member, image: StoredImage, job: IngestJob, travelling: Collection[str]) -> dict[str, Any]:
    quality = measure(image.pixels, image.width * image.height)
    return {
        "image": {"bytes": image.data, "path": member.key},
        "label": list(member.label) if isinstance(member.label, tuple) else member.label,
        "image_id": member.image_id,
        "source": job.source.name,
        "key": member.key,
        "occurrence": member.occurrence,
        "width": image.width,
        "height": image.height,
        "source_format": image.source_format,
        "source_width": image.source_width,
        "source_height": image.source_height,
        "source_sha256": image.source_sha256,
        "stored_sha256": image.stored_sha256,
        "flags": [*image.flags, *member.flags, *quality_flags(quality, image.source_width, image.source_height)],
        "source_bytes": len(member.data or b""),
        "cropped_fraction": image.cropped_fraction,
        **quality._asdict(),
        **{name: value for name, value in zip(job.source.carried, member.carried, strict=True) if name in travelling},
    }


def _quarantine_row(member: Member, refused: RefusedImage, job: IngestJob, thumbnail: bytes | None) -> dict[str, Any]:
    return {
        "source": job.source.name,
        "key": member.key,
        "occurrence": member.occurrence,
        "image_id": member.image_id,
        "label": label_text(member.label),
        "split": job.split_plan.place(member, job.source.carried),
        "reason": refused.reason,
        # a decoder's words may quote the file
        "message": "left out, as a privacy rule applies" if job.privacy.applies else refused.message,
        "bytes_sha256": None if member.data is None else hashlib.sha256(member.data).hexdigest(),
        "size_bytes": member.size,
        "thumbnail": thumbnail,
    }
