"""What a sweep shows of itself: its leaderboard as rows and the pictures of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.plots.figures import leaderboard
from pipelines.plots.sweeps import sweep_curves, sweep_slices
from pipelines.storage import Storage


def ranked(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the trials of a catalog, best first; among equals the lower loss. Behind them those that cannot win."""
    return sorted(
        trials,
        key=lambda trial: (not can_win(trial), -(trial["val_top1"] or 0.0), trial["val_loss"] or 0.0),
    )


def can_win(trial: dict[str, Any]) -> bool:
    """Return whether a trial has a figure and weights: a failed one may have the first alone."""
    return trial["val_top1"] is not None and trial["status"] in ("finished", "stopped")


def draw_pictures(storage: Storage, trials: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    """Write the pictures of a sweep into its output folder and return them by path."""
    trials = ranked(trials)
    pictures = {
        "figures/leaderboard.png": leaderboard(trials).data,
        "figures/values.png": sweep_slices(trials).data,
        "figures/curves.png": sweep_curves(trials).data,
    }
    for path, data in pictures.items():
        storage.put(path, data)
    return pictures
