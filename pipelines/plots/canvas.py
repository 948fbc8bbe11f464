"""How every figure is drawn: twice (light and dark), without pyplot, in one style."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pipelines.plots.palette import DARK, LIGHT, Palette
from pipelines.plots.picture import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 100.0
PIXEL_RATIO = 2.0
"""Pixels stored for each CSS pixel: sharp on phones, which have two or three."""
FONT_SIZE = 8.5
"""Points; 12 CSS pixels at 100 dots an inch."""

Draw = Callable[["Figure", Palette], None]


def render(draw: Draw, width: int, height: int) -> Picture:
    """Draw a figure of `width` x `height` CSS pixels for a light and for a dark page."""
    light, dark = (_render_one(draw, width, height, palette) for palette in (LIGHT, DARK))
    return Picture(light, "image/png", width, height, dark=dark)


def _render_one(draw: Draw, width: int, height: int, palette: Palette) -> bytes:
    # Figure + Agg canvas, never pyplot: no global list of figures, no display, safe in a worker thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.06, hspace=0.06)
    figure = Figure(figsize=(width / DOTS_PER_INCH, height / DOTS_PER_INCH), layout=layout)
    FigureCanvasAgg(figure)
    figure.set_facecolor(palette.card)
    draw(figure, palette)
    buffer = io.BytesIO()
    # No software or date stamp: equal figures must be equal bytes.
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH * PIXEL_RATIO, metadata={"Software": None})
    return _reduce(buffer)


def _reduce(png: io.BytesIO) -> bytes:
    """Store a drawing with a table of 128 colours: no visible difference, a third of the bytes."""
    from PIL import Image

    reduced = io.BytesIO()
    with Image.open(png) as image:
        table = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        table.save(reduced, "PNG", optimize=True)
    return reduced.getvalue()


def style_axes(axes: "Axes", palette: Palette, *, title: str = "", grid: Literal["x", "y", "none"] = "y") -> None:
    """Give axes the house style: title at the left, hairline grid behind, no box."""
    axes.set_facecolor(palette.card)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side == "bottom" and grid != "none")
        axes.spines[side].set_color(palette.line)
    axes.tick_params(which="both", colors=palette.muted, labelsize=FONT_SIZE, length=0, pad=4)
    axes.set_axisbelow(True)
    if grid != "none":
        axes.grid(axis=grid, color=palette.line, linewidth=0.7)
    if title:
        axes.set_title(
            title, loc="left", fontsize=FONT_SIZE + 1, fontweight="bold", color=palette.ink, pad=8, parse_math=False
        )


def axis_labels(axes: "Axes", palette: Palette, *, x: str = "", y: str = "") -> None:
    """Name the axes in the secondary colour."""
    axes.set_xlabel(x, fontsize=FONT_SIZE, color=palette.muted, parse_math=False)
    axes.set_ylabel(y, fontsize=FONT_SIZE, color=palette.muted, parse_math=False)


def whole_numbers(axes: "Axes") -> None:
    """Put ticks of the horizontal axis at whole numbers only: there is no epoch 2.5."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def shorten(text: str, limit: int) -> str:
    """Cut a long name in the middle, where names of one family differ least."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2 + (limit - 1) % 2
    return f"{text[:head]}…{text[len(text) - (limit - 1) // 2 :]}"
