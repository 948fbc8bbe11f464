"""A residual network as papers draw it: layers in boxes, shortcuts as arcs, solid where identity and dashed where not.

Stages stand side by side, each read downwards (He et al. 2015, arXiv:1512.03385, fig. 3, folded to fit a screen). The
SVG is self-contained, holds no script, and follows the viewer's light or dark theme.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from pipelines.plots.palette import DARK, LIGHT, Palette


@dataclass(frozen=True)
class Box:
    """One layer."""

    text: str
    """What it is, e.g. 3x3 conv, 64."""
    before: str = ""
    """What happens to its input, in small letters."""
    after: str = ""
    """What happens to its output, in small letters."""
    is_quiet: bool = False
    """Whether it has no weights to speak of: poolings and gates."""

    @property
    def height(self) -> int:
        """Height in pixels."""
        return 24 + 13 * (bool(self.before) + bool(self.after))


@dataclass(frozen=True)
class DrawnBlock:
    """A residual block, or a run of equal ones."""

    boxes: tuple[Box, ...]
    """Its branch."""
    shortcut: str = ""
    """What the shortcut is; empty: the identity."""
    after: str = ""
    """What follows the sum."""
    times: int = 1
    """Equal blocks in a row."""
    entry: tuple[Box, ...] = ()
    """What comes before the branch and the shortcut part."""


@dataclass(frozen=True)
class Column:
    """Stem, a stage or head."""

    title: str
    notes: tuple[str, ...] = ()
    """Lines below the title."""
    boxes: tuple[Box, ...] = ()
    """Layers in a row, above the blocks."""
    blocks: tuple[DrawnBlock, ...] = ()


@dataclass(frozen=True)
class NetworkDrawing:
    """A whole network."""

    title: str
    notes: tuple[str, ...]
    """Lines below the title."""
    columns: tuple[Column, ...]


_BOX, _LEFT, _RIGHT = 136, 56, 44
_PITCH = _LEFT + _BOX + _RIGHT
_TOP = 74
_LETTER = {"label": 6.4, "small": 5.6}
"""Usual width of a letter in boxes, in pixels."""
_GAP, _SUM, _FORK = 12, 8, 8


def draw_network(drawing: NetworkDrawing) -> str:
    """Return the SVG text of a network."""
    canvas = _Canvas()
    note_lines = max((len(column.notes) for column in drawing.columns), default=0)
    start = _TOP + 22 + 15 * note_lines + 26
    ends = []
    for index, column in enumerate(drawing.columns):
        left = index * _PITCH + _LEFT
        canvas.text(left + _BOX / 2, _TOP + 14, column.title, "title")
        for line, note in enumerate(column.notes):
            canvas.text(left + _BOX / 2, _TOP + 32 + 15 * line, note, "note")
        ends.append(_draw_column(canvas, column, left, start, is_first=index == 0))
    for index, end in enumerate(ends[:-1]):
        _draw_link(canvas, index, end, start)
    bottom = max([*ends, start])
    width, height = len(drawing.columns) * _PITCH + 16, bottom + 64
    _draw_legend(canvas, height - 20)
    head = [canvas.made_text(20, 32, drawing.title, "heading")]
    head += [canvas.made_text(20, 54 + 16 * line, note, "about") for line, note in enumerate(drawing.notes)]
    return _wrap(drawing, [*head, *canvas.parts], width, height)


@dataclass
class _Canvas:
    """SVG elements so far."""

    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, kind: str, *, turn: bool = False) -> None:
        self.parts.append(self.made_text(x, y, text, kind, turn=turn))

    @staticmethod
    def made_text(x: float, y: float, text: str, kind: str, *, turn: bool = False) -> str:
        shown = escape(text) if kind == "heading" else _shown(text)
        more = f' transform="rotate(90 {x:g} {y:g})"' if turn else ""
        if kind in _LETTER and len(text) * _LETTER[kind] > _BOX - 8:  # words that would leave their box are squeezed
            more += f' textLength="{_BOX - 8}" lengthAdjust="spacingAndGlyphs"'
        return f'<text x="{x:g}" y="{y:g}" class="{kind}"{more}>{shown}</text>'

    def path(self, d: str, kind: str) -> None:
        self.parts.append(f'<path d="{d}" class="{kind}"/>')

    def box(self, left: float, top: float, box: Box) -> None:
        kind = "quiet" if box.is_quiet else "layer"
        self.parts.append(
            f'<rect x="{left:g}" y="{top:g}" width="{_BOX}" height="{box.height}" rx="5" class="{kind}"/>'
        )
        middle, y = left + _BOX / 2, top + 16
        if box.before:
            self.text(middle, y - 1, box.before, "small")
            y += 13
        self.text(middle, y, box.text, "label")
        if box.after:
            self.text(middle, y + 13, box.after, "small")


def _draw_column(canvas: _Canvas, column: Column, left: float, top: float, *, is_first: bool) -> float:
    """Draw a column from `top` down; return where it ends."""
    middle = left + _BOX / 2
    y = top
    if is_first:
        canvas.text(middle, y - 8, "image", "small")
    for box in column.boxes:
        canvas.path(f"M{middle:g} {y:g}V{y + _GAP:g}", "flow")
        canvas.box(left, y + _GAP, box)
        y += _GAP + box.height
    for block in column.blocks:
        y = _draw_block(canvas, block, left, y)
    return y


def _draw_block(canvas: _Canvas, block: DrawnBlock, left: float, top: float) -> float:
    """Draw a block from `top` down; return where it ends."""
    middle, side = left + _BOX / 2, left + _BOX + 16
    y = top
    for box in block.entry:
        canvas.path(f"M{middle:g} {y:g}V{y + _GAP:g}", "flow")
        canvas.box(left, y + _GAP, box)
        y += _GAP + box.height
    fork = y + 9
    canvas.path(f"M{middle:g} {y:g}v{_FORK}", "flow")
    y += _FORK
    for box in block.boxes:
        canvas.path(f"M{middle:g} {y:g}V{y + _GAP:g}", "flow")
        canvas.box(left, y + _GAP, box)
        y += _GAP + box.height
    centre = y + _GAP + _SUM
    canvas.path(f"M{middle:g} {y:g}V{centre - _SUM:g}", "flow arrow")
    kind = "beside other" if block.shortcut else "beside"
    canvas.path(
        f"M{middle:g} {fork:g}H{side - 8:g}Q{side:g} {fork:g} {side:g} {fork + 8:g}V{centre - 8:g}"
        f"Q{side:g} {centre:g} {side - 8:g} {centre:g}H{middle + _SUM:g}",
        f"{kind} arrow",
    )
    if block.shortcut:
        canvas.text(side + 6, (fork + centre) / 2, block.shortcut, "beside-label", turn=True)
    canvas.parts.append(f'<circle cx="{middle:g}" cy="{centre:g}" r="{_SUM}" class="sum"/>')
    canvas.path(f"M{middle - 4:g} {centre:g}h8m-4 -4v8", "plus")
    if block.after:
        canvas.text(middle - 14, centre + 4, block.after, "after")
    if block.times > 1:
        brace = left - 10
        canvas.path(f"M{brace + 6:g} {top + 6:g}H{brace:g}V{centre + 8:g}H{brace + 6:g}", "brace")
        canvas.text(brace - 4, (top + centre) / 2 + 5, f"{block.times}x", "times")
    return centre + _SUM


def _draw_link(canvas: _Canvas, index: int, end: float, start: float) -> None:
    """Lead from the end of one column to the start of the next."""
    here, there = index * _PITCH + _LEFT + _BOX / 2, (index + 1) * _PITCH + _LEFT + _BOX / 2
    lane, low, high = (index + 1) * _PITCH + 1, end + 16, start - 12
    canvas.path(
        f"M{here:g} {end:g}V{low - 6:g}Q{here:g} {low:g} {here + 6:g} {low:g}H{lane - 6:g}Q{lane:g} {low:g} {lane:g} "
        f"{low - 6:g}V{high + 6:g}Q{lane:g} {high:g} {lane + 6:g} {high:g}H{there - 6:g}Q{there:g} {high:g} {there:g} "
        f"{high + 6:g}V{start:g}",
        "flow",  # no arrow: the next layer's line goes on from here
    )


def _draw_legend(canvas: _Canvas, y: float) -> None:
    canvas.path(f"M20 {y - 4:g}H56", "beside")
    canvas.text(64, y, "identity shortcut", "about")
    canvas.path(f"M184 {y - 4:g}H220", "beside other")
    canvas.text(228, y, "shortcut that changes the shape", "about")


_TIMES_SIGN = re.compile(r"(?<=\d)x(?=\d|$)|(?<= )x(?= )")


def _shown(text: str) -> str:
    """Return text for SVG, a times sign between sizes."""
    return escape(_TIMES_SIGN.sub("\u00d7", text))


def _wrap(drawing: NetworkDrawing, parts: Sequence[str], width: float, height: float) -> str:
    notes = escape(". ".join(drawing.notes))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" style="max-width:100%;height:auto">\n'
        f"<title>{escape(drawing.title)}</title>\n<desc>{notes}</desc>\n<style>{_STYLE}</style>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" class="tip"/></marker></defs>\n'
        f'<rect width="{width:g}" height="{height:g}" class="card"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _variables(palette: Palette) -> str:
    return "".join(
        f"--{name}:{getattr(palette, name)};"
        for name in ("card", "paper", "ink", "muted", "line", "accent", "warm", "quiet")
    )


_STYLE = (
    f"svg{{{_variables(LIGHT)}font-family:system-ui,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}}"
    f"@media(prefers-color-scheme:dark){{svg{{{_variables(DARK)}}}}}"
    ".card{fill:var(--card)}"
    "text{fill:var(--ink);font-size:12px;text-anchor:middle}"
    ".heading{font-size:20px;font-weight:600;text-anchor:start}"
    ".about{fill:var(--muted);text-anchor:start}"
    ".title{font-size:14px;font-weight:600}.note,.small{fill:var(--muted)}.small{font-size:10.5px}"
    ".after{fill:var(--muted);font-size:10.5px;text-anchor:end}"
    ".beside-label{fill:var(--warm);font-size:10.5px}"
    ".times{font-weight:600;fill:var(--accent);font-size:14px;text-anchor:end}"
    ".layer{fill:var(--paper);stroke:var(--accent);stroke-width:1.2}"
    ".quiet{fill:var(--card);stroke:var(--quiet);stroke-width:1}"
    ".sum{fill:var(--card);stroke:var(--ink)}"
    "path{fill:none;stroke:var(--muted);stroke-width:1.2}"
    ".plus{stroke:var(--ink)}.beside{stroke:var(--ink)}.other{stroke:var(--warm);stroke-dasharray:5 3}"
    ".brace{stroke:var(--accent);stroke-width:1.5}.arrow{marker-end:url(#tip)}.tip{fill:var(--muted);stroke:none}"
)
