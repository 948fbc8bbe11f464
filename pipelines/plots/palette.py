"""The colours of figures and pages: one accent, one warm counterpoint for errors, the rest ink on paper."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """Colours of one theme, as `#rrggbb`."""

    paper: str
    """Page background."""
    card: str
    """Background of cards, tables and figures."""
    ink: str
    """Text."""
    muted: str
    """Secondary text, at least 4.5 : 1 against card and paper."""
    line: str
    """Hairlines and grids."""
    accent: str
    """The one accent: links, the series that matters, what is right."""
    warm: str
    """What is wrong: errors, misses, warnings."""
    quiet: str
    """Fill of what is only context: the other series, bars behind."""


LIGHT = Palette(
    paper="#f7f7f4",
    card="#ffffff",
    ink="#1b1e22",
    muted="#62686f",
    line="#e4e4df",
    accent="#0b6e69",
    warm="#b4521a",
    quiet="#a9b0b6",
)
DARK = Palette(
    paper="#121417",
    card="#1a1d21",
    ink="#e8e9ea",
    muted="#9aa1a9",
    line="#2c3137",
    accent="#4cc3b8",
    warm="#ee9a5c",
    quiet="#5f676f",
)
