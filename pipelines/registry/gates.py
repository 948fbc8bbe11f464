"""Whether a candidate takes the alias from who holds it; pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipelines.metrics.deciding import in_words


@dataclass(frozen=True)
class Standing:
    """What a version scored.

    Attributes:
        version: its number in the registry.
        correct: rows it had right: top-1, or where images have several labels those with every class told.
        total: rows it was measured on.
        rows: fingerprint of those rows.
        metric: the figure that decides: top1, or map (mean average precision).
        score: its value, 0 to 1, where it is not top1.
    """

    version: str
    correct: int
    total: int
    rows: str
    metric: str = "top1"
    score: float = 0.0

    @property
    def top1(self) -> float:
        """Fraction of rows it had right, 0 to 1."""
        return self.correct / self.total if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        if self.metric == "top1":
            values = asdict(self)
            return {name: values[name] for name in ("version", "correct", "total", "rows")} | {"top1": self.top1}
        return asdict(self)

    @property
    def worth(self) -> float:
        """What is compared: the rows that are right, or the score."""
        return float(self.correct) if self.metric == "top1" else self.score


@dataclass(frozen=True)
class Verdict:
    """Whether the alias moves to the candidate, and why or why not, in a sentence."""

    moves: bool
    reason: str


def judge(candidate: Standing, champion: Standing | None) -> Verdict:
    """Return whether the candidate takes over: only by a strictly better figure on the same rows; a tie stays.

    Raises:
        ValueError: the two were measured on different rows, or by different figures; the champion has to be measured
            again first.
    """
    if champion is None:
        return Verdict(True, f"nothing held the alias; {_score(candidate)}")
    if champion.version == candidate.version:
        return Verdict(False, f"version {candidate.version} holds the alias already")
    if (champion.rows, champion.total, champion.metric) != (candidate.rows, candidate.total, candidate.metric):
        raise ValueError(
            f"version {champion.version} was measured on {champion.total} rows {champion.rows[:12]}, "
            f"version {candidate.version} on {candidate.total} rows {candidate.rows[:12]}"
        )
    words = f"{_score(candidate)} against {_score(champion)} on the same {candidate.total:,} rows"
    if candidate.worth > champion.worth:
        return Verdict(True, words)
    if candidate.worth == champion.worth:
        return Verdict(False, f"{words}: a tie stays with version {champion.version}")
    return Verdict(False, f"{words}: not better")


def _score(standing: Standing) -> str:
    if standing.metric != "top1":
        return f"version {standing.version} has a {in_words(standing.metric)} of {standing.score:.4f}"
    return f"version {standing.version} has {standing.correct:,} of {standing.total:,} right ({standing.top1:.2%})"
