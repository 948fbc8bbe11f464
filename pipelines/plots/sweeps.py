"""Figures of a sweep: what each sampled value did, and how the trials learnt and were stopped."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.plots.canvas import axis_labels, render, shorten, style_axes, whole_numbers
from pipelines.plots.figures import WIDTH
from pipelines.plots.palette import Palette
from pipelines.plots.params import format_value
from pipelines.plots.picture import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 6
MAX_NAMED_VALUES, MAX_NAMED_RATES = 6, 3
"""More different values than this make a scale of numbers; rates like 0.0515 need more room than 8 or 14."""
LOG_RANGE = 20.0
"""Values that span more than this factor are drawn on a logarithmic axis."""


def sweep_slices(trials: Sequence[Mapping[str, Any]]) -> Picture:
    """Draw validation top-1 against each sampled value, one panel per value, the first trial, the best, filled.

    A trial holds `id`, `params`, `val_top1` (None leaves it out) and `status`.
    """
    scored = [trial for trial in trials if trial.get("val_top1") is not None]
    paths = sorted({path for trial in scored for path in trial["params"]})[:MAX_PANELS]
    columns = min(3, max(1, len(paths)))
    rows = -(-max(1, len(paths)) // columns)

    def draw(figure: "Figure", palette: Palette) -> None:
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for index, axes in enumerate(panels.flat):
            if index < len(paths):
                _slice(axes, palette, scored, paths[index])
            else:
                axes.set_visible(False)
        figure.suptitle(
            "Validation top-1, %, by sampled value", x=0.01, ha="left", color=palette.ink, fontsize=9.5, weight="bold"
        )

    return render(draw, WIDTH, 60 + 230 * rows)


def sweep_curves(trials: Sequence[Mapping[str, Any]]) -> Picture:
    """Draw validation top-1 over epochs for every trial; the first, the best, in the accent, early stops end in a dot.

    A trial holds `id`, `status` and `curve`: a list of (epoch, val_top1).
    """
    drawn = [trial for trial in trials if trial.get("curve")]
    best = drawn[0] if drawn else None

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.subplots()
        style_axes(axes, palette, title="Validation top-1 of every trial, %")
        axis_labels(axes, palette, x="epoch; a dot ends a trial that was stopped early")
        for trial in sorted(drawn, key=lambda trial: trial is best):
            epochs = [int(epoch) for epoch, _ in trial["curve"]]
            values = [100 * float(value) for _, value in trial["curve"]]
            colour, width = (palette.accent, 2.4) if trial is best else (palette.quiet, 1.2)
            axes.plot(epochs, values, color=colour, linewidth=width, marker="o" if len(epochs) == 1 else None, ms=4)
            if trial.get("status") == "stopped":
                axes.plot(epochs[-1], values[-1], "o", color=colour, markersize=4)
        whole_numbers(axes)

    return render(draw, WIDTH, 320)


def _slice(axes: "Axes", palette: Palette, trials: Sequence[Mapping[str, Any]], path: str) -> None:
    style_axes(axes, palette)
    axis_labels(axes, palette, x=shorten(path, 24))
    here = [trial for trial in trials if path in trial["params"]]
    # Blocks per stage and the like are lists, which are named as one step.
    sampled = [trial["params"][path] for trial in here]
    values = [format_value(value) if isinstance(value, list) else value for value in sampled]
    scores = np.asarray([100 * float(trial["val_top1"]) for trial in here])
    positions: Sequence[float]
    few = MAX_NAMED_RATES if any(isinstance(v, float) for v in values) else MAX_NAMED_VALUES
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values) and len(set(values)) > few:
        positions = [float(v) for v in values]
        if min(positions) > 0 and max(positions) / min(positions) > LOG_RANGE:
            axes.set_xscale("log")
        else:
            axes.locator_params(axis="x", nbins=3)  # a panel is a third of a phone's width
    else:  # few different values: equal steps, each named
        numbers = all(isinstance(v, (int, float)) for v in values)
        steps = sorted(set(values)) if numbers else sorted(set(values), key=str)
        positions = [float(steps.index(value)) for value in values]
        axes.set_xticks(range(len(steps)), [shorten(format_value(step), 12) for step in steps], parse_math=False)
        axes.set_xlim(-0.6, len(steps) - 0.4)
    axes.plot(positions[1:], scores[1:], "o", color=palette.quiet, markersize=5, alpha=0.8)
    axes.plot(positions[0], scores[0], "o", color=palette.accent, markersize=8)
    axes.margins(y=0.12)
