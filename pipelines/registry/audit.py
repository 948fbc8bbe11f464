"""The record of every decision about an alias; it lies in the registry itself, beside the alias it explains.

Each record is one tag of the registered model under a name that is never used twice, so that the log can only grow.
A record is open from the intent to move the alias until the move is settled: that is what makes two promotions at
once end well (`promote.py`).
"""

from __future__ import annotations

import getpass
import json
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal

from pipelines.redact import redact
from pipelines.registry.gates import Standing

AUDIT_PREFIX = "resnet.audit."
_MAX_REASON = 1000  # a tag holds 5,000 characters

Action = Literal["gate", "promote"]


@dataclass(frozen=True)
class AuditRecord:
    """One decision.

    Attributes:
        record_id: sorts by time; part of the tag's name.
        time: when, ISO 8601 in UTC.
        alias: the alias it is about.
        action: gate (by the figures) or promote (by a person).
        version: the version that was to hold the alias.
        before: the version that held it; empty for none.
        moves: whether the alias was to move.
        reason: why or why not.
        correct: rows that the version had right; -1 when a person decided.
        total: rows it was measured on; 0 when a person decided.
        rows: fingerprint of those rows; empty when a person decided.
        user: who ran the command.
        is_open: whether the move is under way, or was cut off.
        key: key of the registration; empty when a person decided.
        metric: the figure that decided, as in `Standing`.
        score: its value, as in `Standing`.
    """

    record_id: str
    time: str
    alias: str
    action: Action
    version: str
    before: str
    moves: bool
    reason: str
    correct: int
    total: int
    rows: str
    user: str
    is_open: bool
    key: str = ""
    metric: str = "top1"
    score: float = 0.0

    @property
    def worth(self) -> float:
        """What is compared, as in `Standing`."""
        return float(self.correct) if self.metric == "top1" else self.score

    @property
    def tag(self) -> str:
        """Name of the tag that holds it."""
        return f"{AUDIT_PREFIX}{self.record_id}"

    def closed(self) -> AuditRecord:
        """Return the record as it is once the move is settled."""
        return replace(self, is_open=False)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        values = asdict(self)
        if self.metric == "top1":  # as records were before there were others
            del values["metric"], values["score"]
        return values


_FIELDS = frozenset(field.name for field in fields(AuditRecord))
"""Others are of a newer release, and are left out."""


def make_record(
    *,
    alias: str,
    action: Action,
    version: str,
    before: str,
    moves: bool,
    reason: str,
    standing: Standing | None = None,
    key: str = "",
) -> AuditRecord:
    """Return a new record of now; it is open when the alias is to move."""
    return AuditRecord(
        record_id=f"{time.time_ns():020d}-{secrets.token_hex(4)}",
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        alias=alias,
        action=action,
        version=version,
        before=before,
        moves=moves,
        reason=redact(reason)[:_MAX_REASON],
        correct=standing.correct if standing else -1,
        total=standing.total if standing else 0,
        rows=standing.rows if standing else "",
        user=_user(),
        key=key,
        is_open=moves,
        metric=standing.metric if standing else "top1",
        score=standing.score if standing else 0.0,
    )


def encode_record(record: AuditRecord) -> str:
    """Return the value of the record's tag."""
    return json.dumps(record.to_json(), ensure_ascii=False)


def parse_records(tags: Mapping[str, str]) -> list[AuditRecord]:
    """Return the records among a registered model's tags, oldest first; a tag that is no record is left out."""
    return sorted(_parse(tags), key=lambda record: record.record_id)


def _parse(tags: Mapping[str, str]) -> Iterable[AuditRecord]:
    for name, value in tags.items():
        if name.startswith(AUDIT_PREFIX):
            try:
                values = json.loads(value)
                yield AuditRecord(**{field: values[field] for field in _FIELDS & values.keys()})
            except (ValueError, TypeError, AttributeError):
                continue  # edited by hand; it can't be trusted either way


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user id has no name
        return "unknown"
