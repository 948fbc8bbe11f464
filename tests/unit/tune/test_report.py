"""The order of a sweep's trials: the one that is published comes first, in the table and in every picture."""

from __future__ import annotations

from typing import Any

from pipelines.tune.report import can_win, ranked


def row(trial: str, top1: float | None, loss: float | None, status: str = "finished") -> dict[str, Any]:
    return {"id": trial, "val_top1": top1, "val_loss": loss, "status": status}


def test_equals_are_told_apart_by_their_loss_and_what_cannot_win_comes_last() -> None:
    board = [
        row("0001", None, None, "failed"),
        row("0002", 0.9, 0.3),
        row("0003", 0.99, 0.1, "failed"),
        row("0004", 0.9, 0.2, "stopped"),
        row("0005", 0.5, 0.1),
    ]
    assert [trial["id"] for trial in ranked(board)] == ["0004", "0002", "0005", "0003", "0001"]
    assert [trial["id"] for trial in ranked(board) if can_win(trial)] == ["0004", "0002", "0005"]
