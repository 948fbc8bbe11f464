"""A small builder of self-contained HTML pages: one file, nothing fetched, no script, every value escaped."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.plots.page_style import STYLE
from pipelines.plots.picture import Picture

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PIXELATED_BELOW = 65
"""Images this small are enlarged in whole pixels: a browser's blur would hide what the network sees."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Fact:
    """One figure that matters, shown large above its name. `tone`: "" or "lead" (accent) or "warn"."""

    value: str
    name: str
    tone: str = ""


@dataclass(frozen=True)
class FigureCard:
    """A picture on a card, with a heading, a sentence, and the words that stand in for it when it can't be seen."""

    picture: Picture
    title: str
    caption: str = ""
    alt: str = ""


@dataclass(frozen=True)
class Tile:
    """One image of a grid with its caption and a smaller second line; `warn` colours the second line."""

    picture: Picture
    caption: str = ""
    note: str = ""
    warn: bool = False


@dataclass(frozen=True)
class Meter:
    """A table cell with a small bar: `fraction` of 0 to 1 and the text beside it."""

    fraction: float
    text: str


Cell = str | int | float | Meter | None


@dataclass
class Section:
    """One part of a page; its methods append blocks in order and return the section, so that calls can be chained."""

    title: str
    anchor: str
    blocks: list[str] = field(default_factory=list)

    def text(self, paragraph: str) -> "Section":
        """Append a paragraph."""
        return self._add(f"<p>{escape(paragraph)}</p>")

    def note(self, sentence: str, *, warn: bool = False) -> "Section":
        """Append a sentence that must not be overlooked."""
        return self._add(f'<div class="block card note{" warn" if warn else ""}">{escape(sentence)}</div>')

    def facts(self, facts: Sequence[Fact]) -> "Section":
        """Append a row of figures, large, each above its name."""
        items = "".join(
            f'<div><dt>{escape(fact.name)}</dt><dd class="{escape(fact.tone)}">{escape(fact.value)}</dd></div>'
            for fact in facts
        )
        return self._add(f'<dl class="block card facts">{items}</dl>')

    def figures(self, cards: Sequence[FigureCard]) -> "Section":
        """Append pictures on cards, as many side by side as the window allows."""
        return self._add(f'<div class="block figures">{"".join(_figure(card) for card in cards)}</div>')

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        *,
        caption: str = "",
        lead_row: int = -1,
        stack: bool = False,
    ) -> "Section":
        """Append a table; numbers align right, `None` shows as a dash, row `lead_row` is emphasised.

        With `stack` a phone shows each row as a block, its cells one below the other: for rows of sentences.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(columns)} columns: {row!r}")
        numeric = [bool(rows) and all(isinstance(row[i], (int, float, type(None))) for row in rows)
                   for i in range(len(columns))]  # fmt: skip
        head = "".join(f"<th{_number(n)} scope=col>{escape(c)}</th>" for c, n in zip(columns, numeric, strict=True))
        body = "".join(
            f"<tr{' class=lead' if index == lead_row else ''}>"
            + "".join(f"<td{_number(n)}>{_cell(cell)}</td>" for cell, n in zip(row, numeric, strict=True))
            + "</tr>"
            for index, row in enumerate(rows)
        )
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        kind = "block card table stack" if stack else "block card table"
        return self._add(
            f'<div class="{kind}" tabindex=0><table>{title}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def images(self, tiles: Sequence[Tile], *, title: str = "") -> "Section":
        """Append a grid of images with captions."""
        heading = f'<h3 class="block">{escape(title)}</h3>' if title else ""
        return self._add(f'{heading}<ul class="block images">{"".join(_tile(tile) for tile in tiles)}</ul>')

    def commands(self, commands: Sequence[str], *, title: str = "", caption: str = "") -> "Section":
        """Append commands to repeat; one click selects a whole command."""
        heading = f"<h3>{escape(title)}</h3>" if title else ""
        words = f"<p>{escape(caption)}</p>" if caption else ""
        lines = "".join(f"<code>{escape(command)}</code>" for command in commands)
        return self._add(f'<div class="block card commands">{heading}{words}<pre tabindex=0>{lines}</pre></div>')

    def details(self, summary: str, text: str) -> "Section":
        """Append preformatted text that is folded away until it is asked for."""
        return self._add(
            f'<details class="block card"><summary>{escape(summary)}</summary>'
            f'<div class="commands"><pre tabindex=0><code>{escape(text)}</code></pre></div></details>'
        )

    def _add(self, block: str) -> "Section":
        self.blocks.append(block)
        return self


class Page:
    """A page under construction: a heading, then sections; `render` gives the bytes of one HTML file."""

    def __init__(self, title: str, *, lead: str = "", kicker: str = "", footer: str = "") -> None:
        self.title = title
        self.lead = lead
        self.kicker = kicker
        self.footer = footer
        self.sections: list[Section] = []

    def section(self, title: str, intro: str = "") -> Section:
        """Open a new section; it appears in the page's navigation."""
        section = Section(title, f"s{len(self.sections) + 1}")
        self.sections.append(section)
        return section.text(intro) if intro else section

    def render(self) -> bytes:
        """Return the page as UTF-8; the same content always gives the same bytes."""
        links = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in self.sections)
        navigation = f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(self.sections) > 1 else ""
        kicker = f'<p class="kicker">{escape(self.kicker)}</p>' if self.kicker else ""
        lead = f'<p class="lead">{escape(self.lead)}</p>' if self.lead else ""
        body = "\n".join(
            f'<section id="{s.anchor}" aria-labelledby="{s.anchor}-title"><h2 id="{s.anchor}-title">'
            f"{escape(s.title)}</h2>{''.join(s.blocks)}</section>"
            for s in self.sections
        )
        text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{escape(self.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>{kicker}<h1>{escape(self.title)}</h1>{lead}</header>
{navigation}
<main>
{body}
</main>
<footer>{escape(self.footer)}</footer>
</body>
</html>
"""
        return text.encode("utf-8", errors="replace")  # names of archive members may hold lone surrogates


def escape(value: object) -> str:
    """Make any value harmless as HTML text or attribute; control characters (terminal escapes) become U+FFFD."""
    return html.escape(_CONTROL.sub("\ufffd", str(value)), quote=True)


def _number(is_number: bool) -> str:
    return " class=number" if is_number else ""


def _cell(cell: Cell) -> str:
    if cell is None:
        return "\N{EN DASH}"
    if isinstance(cell, Meter):
        percent = 100 * min(1.0, max(0.0, cell.fraction))
        return f'<span class="meter"><i><b style="width:{percent:.1f}%"></b></i>{escape(cell.text)}</span>'
    if isinstance(cell, float):
        return escape(f"{cell:,.4g}")
    if isinstance(cell, int) and not isinstance(cell, bool):
        return escape(f"{cell:,}")
    return escape(cell)


def _figure(card: FigureCard) -> str:
    caption = f"<p>{escape(card.caption)}</p>" if card.caption else ""
    return (
        f'<figure class="card"><figcaption><h3>{escape(card.title)}</h3>{caption}</figcaption>'
        f"{_image(card.picture, card.alt or card.title, style=f'max-width:{1.6 * card.picture.width:.0f}px')}</figure>"
    )


def _tile(tile: Tile) -> str:
    note = f"<small{' class=warn' if tile.warn else ''}>{escape(tile.note)}</small>" if tile.note else ""
    words = f"<p>{escape(tile.caption)}{note}</p>" if tile.caption or note else ""
    return f"<li>{_image(tile.picture, tile.caption or 'image')}{words}</li>"


def _image(picture: Picture, alt: str, *, style: str = "") -> str:
    small = ' class="pixels"' if max(picture.width, picture.height) < PIXELATED_BELOW else ""
    width = f' style="{style}"' if style else ""
    image = (
        f'<img src="{picture.data_uri()}" width="{picture.width}" height="{picture.height}" alt="{escape(alt)}"'
        f"{small}{width}>"
    )
    if not picture.dark:
        return image
    dark = f'<source media="screen and (prefers-color-scheme: dark)" srcset="{picture.data_uri(dark=True)}">'
    return f"<picture>{dark}{image}</picture>"
