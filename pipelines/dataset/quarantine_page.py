"""The refused members of a dataset as one page: by reason and class, with thumbnails where they decode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipelines.dataset.quarantine import Row, group
from pipelines.plots.page import Cell, Page, Section, Tile
from pipelines.plots.thumbnail import make_picture, make_thumbnail

_PICTURES_SHOWN = 48
_ROWS_SHOWN = 200


def make_page(rows: Sequence[Row], title: str) -> bytes:
    """Return a self-contained page of the refused members; accepted ones are marked."""
    open_rows = [row for row in rows if row["accepted"] is None]
    page = Page(
        "Quarantine",
        kicker="resnet-pipelines",
        lead=f"{len(open_rows):,} members of {title.rsplit('/', 1)[-1]} are refused,"
        f" {len(rows) - len(open_rows):,} more are accepted as lost.",
    )
    section = page.section("By reason and class")
    table: list[list[Cell]] = [[each.reason, each.label, each.number] for each in group(open_rows)[:_ROWS_SHOWN]]
    section.table(["reason", "class", "members"], table)
    for reason in dict.fromkeys(each.reason for each in group(rows)):
        members = [row for row in rows if row["reason"] == reason]
        part = page.section(reason)
        add_thumbnails(part, members)
        shown = members[:_ROWS_SHOWN]
        cells: list[list[Cell]] = [
            [row["key"], row["label"], row["message"], row["size_bytes"], row["accepted"]] for row in shown
        ]
        part.table(["member", "class", "message", "bytes", "accepted because"], cells, stack=True)
        if len(members) > len(shown):
            part.note(
                f"{len(members) - len(shown):,} more are not shown; `resnet data quarantine show --json` has all."
            )
    return page.render()


def add_thumbnails(section: Section, rows: Iterable[Row], *, limit: int = _PICTURES_SHOWN) -> None:
    """Add the thumbnails that refused members have, up to a limit; no more rows are asked for than that takes."""
    tiles: list[Tile] = []
    for row in rows:
        pixels = make_thumbnail(row["thumbnail"]) if row["thumbnail"] else None
        if pixels is not None:
            tiles.append(Tile(make_picture(pixels), str(row["label"] or "no class"), f"{row['reason']} · {row['key']}"))
        if len(tiles) == limit:
            break
    if tiles:
        section.images(tiles)
