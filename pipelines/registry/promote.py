"""Moves an alias, by the figures or by a person's word, so that two at once never leave it on the worse version.

A registry can set an alias, but not "set it if it still is what I read". So a promotion first writes its intent (an
open audit record), then sets the alias, then reads all intents that were not settled when it began: if one of them is
better, it sets the alias to that. Whoever writes last has seen the other's intent, and both would choose the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.errors import PipelineError
from pipelines.registry.audit import AuditRecord, make_record
from pipelines.registry.gates import Standing, Verdict, judge

_MAX_ROUNDS = 20


class Board(Protocol):
    """What a promotion needs of a registry, for one registered model."""

    def read_alias(self, alias: str) -> str:
        """Return the version that holds the alias; empty for none."""

    def set_alias(self, alias: str, version: str) -> None:
        """Give the alias to a version."""

    def read_records(self) -> list[AuditRecord]:
        """Return all audit records, oldest first."""

    def write_record(self, record: AuditRecord) -> None:
        """Write a record, or write it again when it is settled."""


@dataclass(frozen=True)
class Decision:
    """What became of a candidate.

    Attributes:
        moved: whether the alias has moved to it.
        champion: the version that holds the alias now.
        before: the version that held it; empty for none.
        reason: why, in a sentence.
        record: the audit record.
    """

    moved: bool
    champion: str
    before: str
    reason: str
    record: AuditRecord

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "moved": self.moved,
            "champion": self.champion,
            "before": self.before,
            "reason": self.reason,
            "record": self.record.to_json(),
        }


def compete(
    board: Board, alias: str, candidate: Standing, measure: Callable[[str], Standing], *, key: str = ""
) -> Decision:
    """Let a candidate take the alias if it is strictly better than who holds it.

    Args:
        board: the registry.
        alias: the alias.
        candidate: the candidate's figures.
        measure: returns a version's figures on the candidate's rows; may take as long as an evaluation.
        key: key of the registration; a command that was killed after its move finds the move by it.
    """
    for _ in range(_MAX_ROUNDS):
        before, settled = _survey(board, alias)
        if before == candidate.version and (done := _own_move(board.read_records(), alias, candidate.version, key)):
            return Decision(True, before, done.before, done.reason, done)
        verdict = _verdict(candidate, before, measure)
        if verdict.moves and board.read_alias(alias) != before:
            continue  # it changed while the champion was measured
        record = make_record(
            alias=alias,
            action="gate",
            version=candidate.version,
            before=before,
            moves=verdict.moves,
            reason=verdict.reason,
            standing=candidate,
            key=key,
        )
        board.write_record(record)
        if not verdict.moves:
            return Decision(False, before, before, verdict.reason, record)
        board.set_alias(alias, candidate.version)
        rival = _better_rival(board.read_records(), record, settled)
        if rival is not None:
            board.set_alias(alias, rival.version)
            board.write_record(rival.closed())
        board.write_record(record.closed())
        _survey(board, alias)
        if rival is None:
            return Decision(True, candidate.version, before, verdict.reason, record.closed())
        reason = f"{verdict.reason}; version {rival.version} was promoted at the same time: {rival.reason}"
        return Decision(False, rival.version, before, reason, record.closed())
    return _gave_up(board, alias, candidate, key)


def promote(board: Board, alias: str, version: str, reason: str) -> Decision:
    """Give the alias to a version because a person says so (a rollback, for instance), whatever the figures.

    It ends every promotion by figures that was cut off, so that none of them can undo it later.
    """
    before = board.read_alias(alias)
    moves = before != version
    record = make_record(alias=alias, action="promote", version=version, before=before, moves=moves, reason=reason)
    board.write_record(record)
    if moves:
        board.set_alias(alias, version)
    for other in board.read_records():
        if other.is_open and other.alias == alias:
            board.write_record(other.closed())
    return Decision(moves, version, before, reason, record.closed())


def _survey(board: Board, alias: str) -> tuple[str, set[str]]:
    """Return who holds the alias and which records are settled; close those that a killed command left open.

    The records are read first: whatever they call settled had set the alias before it is read. An open record whose
    version holds the alias is settled too, its effect is what we see.
    """
    records = board.read_records()
    holder = board.read_alias(alias)
    settled = {record.record_id for record in records if not record.is_open}
    for record in records:
        if record.is_open and record.alias == alias and record.version == holder:
            board.write_record(record.closed())
            settled.add(record.record_id)
    return holder, settled


def _verdict(candidate: Standing, before: str, measure: Callable[[str], Standing]) -> Verdict:
    if before in ("", candidate.version):
        return judge(candidate, None if not before else candidate)
    try:
        return judge(candidate, measure(before))
    except PipelineError as error:
        # A champion that cannot be measured is not thereby worse: a person has to decide.
        return Verdict(False, f"version {before} holds the alias and cannot be measured on the same rows: {error.what}")


def _better_rival(records: Sequence[AuditRecord], own: AuditRecord, settled: set[str]) -> AuditRecord | None:
    """Return the intent that the alias belongs to instead of ours, among those not settled when we began."""
    rivals = [
        record
        for record in records
        if record.alias == own.alias
        and record.moves
        and record.record_id not in settled
        and record.record_id != own.record_id
        and record.version != own.version
    ]
    by_hand = [record for record in rivals if record.action == "promote"]
    if by_hand:
        return by_hand[-1]
    same_rows = [record for record in rivals if (record.rows, record.metric) == (own.rows, own.metric)]
    best = max(same_rows, key=_rank, default=None)
    return best if best is not None and _rank(best) > _rank(own) else None


def _rank(record: AuditRecord) -> tuple[float, int]:
    return record.worth, -int(record.version)  # of equal ones the older version


def _own_move(records: Sequence[AuditRecord], alias: str, version: str, key: str) -> AuditRecord | None:
    """Return the record of the move that this very registration made before it was killed."""
    own = [r for r in records if key and r.key == key and r.moves and (r.alias, r.version) == (alias, version)]
    return own[-1] if own else None


def _gave_up(board: Board, alias: str, candidate: Standing, key: str) -> Decision:
    champion = board.read_alias(alias)
    reason = f"the alias was moved by others {_MAX_ROUNDS} times while version {candidate.version} was compared"
    record = make_record(
        alias=alias,
        action="gate",
        version=candidate.version,
        before=champion,
        moves=False,
        reason=reason,
        standing=candidate,
        key=key,
    )
    board.write_record(record)
    return Decision(False, champion, champion, reason, record)
