"""Receipts: the record, created if absent, that one unit of a run is done and which of its files count.

Two attempts at one unit may run at once (a retried task, a second driver). Both write files under their own names;
the first receipt wins and the other attempt goes on with it, so that nothing is counted twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.errors import AlreadyExists, DataError
from pipelines.storage import Storage

FORMAT = "resnet-pipelines/receipt"
FORMAT_VERSION = 1
_NAME = re.compile(r"/unit-(\d+)\.json$")


@dataclass(frozen=True)
class ShardFile:
    """One written shard and what is known of it without opening it.

    `labels` counts rows per class name (a multi-label row counts once per name); `row_groups` are their row counts.
    """

    path: str
    split: str
    unit: int
    rows: int
    bytes: int
    sha256: str
    fingerprint: str
    row_groups: tuple[int, ...]
    labels: dict[str, int] = field(default_factory=dict)
    unlabelled: int = 0

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ShardFile:
        """Return the shard that `asdict` or a receipt describes."""
        return ShardFile(**{**value, "row_groups": tuple(value["row_groups"])})


@dataclass(frozen=True)
class QuarantineFile:
    """One written file of quarantine rows."""

    path: str
    unit: int
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class UnitReport:
    """What one attempt at a unit wrote: its shards, its quarantine files and its counts.

    `counts` holds `written` and `quarantined`, and one `quarantined.<REASON>` per reason.
    """

    unit: int
    attempt: str
    files: list[ShardFile]
    quarantine: list[QuarantineFile]
    counts: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        value = asdict(self)
        for file in value["files"]:
            file["row_groups"] = list(file["row_groups"])
        return value

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> UnitReport:
        """Return the report behind JSON values, for example a receipt; other keys are ignored."""
        return UnitReport(
            unit=value["unit"],
            attempt=value["attempt"],
            files=[ShardFile.from_json(file) for file in value["files"]],
            quarantine=[QuarantineFile(**file) for file in value["quarantine"]],
            counts=dict(value["counts"]),
        )


def receipt_path(run_id: str, unit: int) -> str:
    """Return where the receipt of a unit stands."""
    return f"_work/{run_id}/unit-{unit:06d}.json"


def write_receipt(storage: Storage, run_id: str, unit: int, report: Mapping[str, Any]) -> dict[str, Any]:
    """Create the receipt of a unit and return the one that stands, which is another attempt's if that came first.

    Call it only after the unit's files are written (and thereby synced).
    """
    receipt = {"format": FORMAT, "format_version": FORMAT_VERSION, "run_id": run_id, **report, "unit": unit}
    path = receipt_path(run_id, unit)
    try:
        storage.create(path, json.dumps(receipt, indent=1, ensure_ascii=False).encode())
    except AlreadyExists:
        return _read(storage, path)
    return receipt


def read_receipts(storage: Storage, run_id: str) -> dict[int, dict[str, Any]]:
    """Return the receipts of a run by unit number; a unit without one is not done."""
    found = {}
    for file in storage.list(f"_work/{run_id}"):
        if match := _NAME.search(file.path):
            found[int(match.group(1))] = _read(storage, file.path)
    return found


def _read(storage: Storage, path: str) -> dict[str, Any]:
    try:
        receipt = json.loads(storage.read(path))
    except ValueError as error:
        raise DataError(
            f"receipt {storage.address(path)} is not JSON: {error}", mend="delete it; its unit will be done again"
        ) from error
    if receipt.get("format") != FORMAT or receipt.get("format_version", 0) > FORMAT_VERSION:
        raise DataError(
            f"receipt {storage.address(path)} has format {receipt.get('format')!r}"
            f" version {receipt.get('format_version')!r}; this program reads {FORMAT!r} up to {FORMAT_VERSION}",
            mend="upgrade resnet-pipelines, or delete it; its unit will be done again",
        )
    return dict(receipt)
