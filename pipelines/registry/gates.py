"""Whether a candidate takes the alias from who holds it; pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Standing:
    """What a version scored.

    Attributes:
        version: its number in the registry.
        correct: rows it had right (top-1).
        total: rows it was measured on.
        rows: fingerprint of those rows.
    """

    version: str
    correct: int
    total: int
    rows: str

    @property
    def top1(self) -> float:
        """Fraction of rows it had right, 0 to 1."""
        return self.correct / self.total if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "top1": self.top1}


@dataclass(frozen=True)
class Verdict:
    """Whether the alias moves to the candidate, and why or why not, in a sentence."""

    moves: bool
    reason: str


def judge(candidate: Standing, champion: Standing | None) -> Verdict:
    """Return whether the candidate takes over: only by strictly more rows right of the same rows; a tie stays.

    Raises:
        ValueError: the two were measured on different rows; the champion has to be measured again first.
    """
    if champion is None:
        return Verdict(True, f"nothing held the alias; {_score(candidate)}")
    if champion.version == candidate.version:
        return Verdict(False, f"version {candidate.version} holds the alias already")
    if (champion.rows, champion.total) != (candidate.rows, candidate.total):
        raise ValueError(
            f"version {champion.version} was measured on {champion.total} rows {champion.rows[:12]}, "
            f"version {candidate.version} on {candidate.total} rows {candidate.rows[:12]}"
        )
    words = f"{_score(candidate)} against {_score(champion)} on the same {candidate.total:,} rows"
    if candidate.correct > champion.correct:
        return Verdict(True, words)
    if candidate.correct == champion.correct:
        return Verdict(False, f"{words}: a tie stays with version {champion.version}")
    return Verdict(False, f"{words}: not better")


def _score(standing: Standing) -> str:
    return f"version {standing.version} has {standing.correct:,} of {standing.total:,} right ({standing.top1:.2%})"
