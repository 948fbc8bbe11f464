"""The Ray side of ingesting: Ray Data hands out units, a task returns a receipt, image bytes never come back."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from pipelines import errors
from pipelines.errors import DataError, PipelineError
from pipelines.image.header import RefusedImage
from pipelines.ingest.config import ImageConfig, PrivacyConfig
from pipelines.ingest.privacy import Box
from pipelines.ingest.stored import make_stored_image
from pipelines.ingest.unit import IngestJob, ingest_unit
from pipelines.ingest.watchdog import Watchdog
from pipelines.sources.base import Unit

_MAX_BLOCKS = 10_000
_ALONE_TIMEOUT_S = 60.0
_ALONE_MEMORY_BYTES = 1 << 30
"""Twenty bytes for each of the 50 million pixels that an image may have."""


def run_units(job: IngestJob, units: Sequence[Unit]) -> Iterator[dict[str, Any]]:
    """Yield the receipt of each unit as it is done, in whatever order.

    Raises:
        PipelineError: what stopped a unit.
    """
    import ray.data
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)
    rows = [{"unit": unit.to_text()} for unit in units]
    reports = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MAX_BLOCKS)).map(
        ingest_row, fn_kwargs={"job": job}, num_cpus=1
    )
    for row in reports.iter_rows():
        report: dict[str, Any] = json.loads(row["report"])
        if fault := report.get("fault"):
            kind = getattr(errors, fault["kind"], DataError)
            raise kind(fault["what"], where=fault["where"], mend=fault["mend"])
        yield report


def ingest_row(row: dict[str, Any], job: IngestJob) -> dict[str, str]:
    """Ingest the unit in a row and return its receipt as JSON.

    A fault that a user can mend comes back as words: raised here, Ray would wrap it and its exit code be lost.
    """
    unit = Unit.from_text(row["unit"])
    alone = partial(try_alone, settings=job.image, privacy=job.privacy)
    try:
        with Watchdog().watching() as watchdog:
            report = ingest_unit(unit, job, alone, watchdog)
    except PipelineError as error:
        fault = {"kind": type(error).__name__, "what": error.what, "where": error.where, "mend": error.mend}
        report = {"unit": unit.index, "fault": fault}
    return {"report": json.dumps(report)}


def try_alone(
    data: bytes, regions: Sequence[Box], settings: ImageConfig, privacy: PrivacyConfig
) -> RefusedImage | None:
    """Prepare one image in a Ray process of its own, which may die; return why it must be refused, if so."""
    import ray

    task = ray.remote(num_cpus=0, max_retries=0)(_prepare_here).remote(data, regions, settings, privacy)
    try:
        refusal: RefusedImage | None = ray.get(task, timeout=_ALONE_TIMEOUT_S)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        return RefusedImage("KILLED_WORKER", f"the process that prepared it died ({type(error).__name__})")
    except ray.exceptions.GetTimeoutError:
        ray.cancel(task, force=True)
        return RefusedImage("TIMEOUT", f"not prepared within {_ALONE_TIMEOUT_S:.0f} s")
    return refusal


def _prepare_here(
    data: bytes, regions: Sequence[Box], settings: ImageConfig, privacy: PrivacyConfig
) -> RefusedImage | None:
    """Prepare an image as the unit does, within a bound of memory; return why it must not be tried there."""
    try:
        with _bounded_memory(_ALONE_MEMORY_BYTES):
            make_stored_image(data, "", settings, privacy, regions)
    except RefusedImage as refused:
        return refused if refused.reason == "MEMORY" else None  # others the unit refuses again, with their reason
    except (MemoryError, cv2.error) as error:
        return RefusedImage(
            "MEMORY", f"preparing it asked for more than {_ALONE_MEMORY_BYTES >> 20:,} MB: {error}"[:200]
        )
    return None


@contextlib.contextmanager
def _bounded_memory(extra_bytes: int) -> Iterator[None]:
    """Bound what this process may allocate beyond what it holds now; only where the system tells how much that is."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    held_kb = next((int(line.split()[1]) for line in lines if line.startswith("VmData:")), None)
    if held_kb is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held_kb * 1024 + extra_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
