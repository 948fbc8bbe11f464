"""The picture of a learning-rate range test."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.plots.canvas import FONT_SIZE, axis_labels, render, style_axes
from pipelines.plots.figures import WIDTH
from pipelines.plots.palette import Palette
from pipelines.plots.picture import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rate_range(rates: Sequence[float], losses: Sequence[float], suggested: float) -> Picture:
    """Draw the smoothed loss over the learning rate, on a logarithmic axis, with the suggested rate marked."""
    top = losses[0] + 0.6 * (losses[0] - min(losses))

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.subplots()
        axes.semilogx(rates, losses, color=palette.accent, linewidth=1.8)
        axes.axvline(suggested, color=palette.muted, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(min(losses) - 0.1 * (top - min(losses)), top)  # what breaks at the end would flatten the rest
        axes.annotate(
            f"{suggested:g}",
            (suggested, top),
            xytext=(-4, -12),
            textcoords="offset points",
            ha="right",
            color=palette.muted,
            fontsize=FONT_SIZE,
        )
        style_axes(axes, palette, title="Training loss while the rate rises")
        axis_labels(axes, palette, x="learning rate")

    return render(draw, WIDTH, 260)
