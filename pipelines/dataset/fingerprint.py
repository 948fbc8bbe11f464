"""The fingerprint of a set of rows: a sum of row hashes modulo 2^256, so that order and sharding do not matter.

A sum needs no sort at 10^9 rows, merges across shards, and lets a patch swap one row for another. It finds
accidents and changes; it is not meant to resist someone who chooses rows to collide.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

MODULUS = 1 << 256

Label = str | float | list[str] | None


def row_hash(
    image_id: str,
    source_sha256: str,
    stored_sha256: str,
    label: Label,
    split: str,
    carried: Mapping[str, Any] | None = None,
) -> int:
    """Return the hash of one row, in [0, 2^256): SHA-256 of a JSON list of the six values, names sorted."""
    values = [image_id, source_sha256, stored_sha256, label, split, dict(carried or {})]
    return int.from_bytes(hashlib.sha256(_ENCODER.encode(values).encode()).digest(), "big")


def add(hashes: Iterable[int]) -> int:
    """Return the sum of row hashes or fingerprints modulo 2^256."""
    return sum(hashes) % MODULUS


def to_hex(fingerprint: int) -> str:
    """Return a fingerprint as 64 hex digits."""
    return f"{fingerprint % MODULUS:064x}"


def from_hex(text: str) -> int:
    """Return the number behind 64 hex digits; the empty text is the fingerprint of no rows."""
    return int(text, 16) if text else 0


def merge(fingerprints: Iterable[str]) -> str:
    """Return the fingerprint of the union of disjoint sets of rows, from their fingerprints in hex."""
    return to_hex(add(from_hex(text) for text in fingerprints))


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_plain)
"""Built once: `json.dumps` with settings builds one a call, which takes longer than encoding a row."""
