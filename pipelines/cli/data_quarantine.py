"""`resnet data quarantine list|show|retry|accept`: what was refused, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli import options, render
from pipelines.errors import InputError

if TYPE_CHECKING:
    from pipelines.dataset.quarantine import Row

_SHOWN = 30
_WORDS = (
    "source", "key", "occurrence", "image_id", "label", "split", "reason", "message", "bytes_sha256", "size_bytes",
)  # fmt: skip
"""All that is known of a refused member but its thumbnail, which may be 10 KB."""
EXAMPLES = (
    "resnet data quarantine list datasets/photos",
    "resnet data quarantine show datasets/photos --page refused.html",
    "resnet data quarantine retry datasets/photos",
    "resnet data quarantine accept datasets/photos --code TRUNCATED --reason 'lost in the scanner'",
)


@click.group("quarantine", epilog=options.examples(*EXAMPLES))
def command() -> None:
    """List, show, try again or accept the members of a source that a dataset refused."""


@command.command("list")
@click.argument("dataset", metavar="DATASET[@vN]")
@click.option("--accepted", is_flag=True, help="List what was accepted as lost instead.")
@options.as_json
def list_refused(dataset: str, accepted: bool, as_json: bool) -> None:
    """Print what was refused by reason and class, with examples."""
    from pipelines.dataset.quarantine import group, read_quarantine
    from pipelines.dataset.reader import open_dataset

    opened = open_dataset(dataset)
    rows = read_quarantine(opened, accepted=accepted, columns=_WORDS)
    groups = group(rows)
    if as_json:
        facts = [
            {"reason": each.reason, "label": each.label, "members": each.number, "examples": _plain(each.examples)}
            for each in groups
        ]
        render.as_json({"dataset": opened.ref, "members": len(rows), "groups": facts})
        return
    state = "accepted as lost" if accepted else "refused"
    click.echo(
        f"quarantine: {render.clean(opened.ref)}, {len(rows):,} {'member' if len(rows) == 1 else 'members'} {state}"
    )
    if groups:
        table = [(each.reason, each.label or "-", each.number, _example(each.examples)) for each in groups[:_SHOWN]]
        render.table(("reason", "class", "members", "for example"), table)
    if len(groups) > _SHOWN:
        click.echo(f"... and {len(groups) - _SHOWN:,} more groups; --json names all")
    if groups and not accepted:
        code = groups[0].reason
        render.next_steps(
            [
                render.command("data", "quarantine", "show", opened.ref, "--page", "refused.html"),
                render.command("data", "quarantine", "retry", opened.uri),
                render.command("data", "quarantine", "accept", opened.uri, "--code", code, "--reason", "WHY"),
            ]
        )
    else:
        render.next_steps([render.command("data", "show", opened.ref)])


@command.command("show")
@click.argument("dataset", metavar="DATASET[@vN]")
@click.argument("members", nargs=-1, metavar="[KEY|IMAGE_ID ...]")
@click.option(
    "--page",
    default="",
    callback=options.writable,
    metavar="FILE.html",
    help="Write all that was refused as a page with thumbnails.",
)
@options.as_json
def show(dataset: str, members: tuple[str, ...], page: str, as_json: bool) -> None:
    """Print all that is known of refused members: accepted ones too."""
    from pipelines.dataset.quarantine import read_quarantine
    from pipelines.dataset.reader import open_dataset

    opened = open_dataset(dataset)
    rows = read_quarantine(opened, accepted=None)
    if members:
        rows = _named(rows, members, opened.ref)
    if page:
        from pipelines.dataset.quarantine_page import make_page

        Path(page).write_bytes(make_page(rows, opened.ref))
    if as_json:
        render.as_json({"dataset": opened.ref, "members": _plain(rows)})
        return
    for row in _plain(rows[:_SHOWN] if members or not page else []):
        click.echo(f"{render.clean(row['reason'])}  {render.clean(row['key'])}")
        render.pairs({name: value for name, value in row.items() if value is not None})
    if len(rows) > _SHOWN and not page:
        click.echo(f"... and {len(rows) - _SHOWN:,} more; name some, or see all with --page FILE.html")
    if not rows:
        click.echo(f"{render.clean(opened.ref)}: nothing was refused")
    render.next_steps(
        [render.show_page(page)]
        if page
        else [render.command("data", "quarantine", "show", opened.ref, "--page", "refused.html")]
    )


@command.command("retry")
@click.argument("dataset", metavar="DATASET")
@options.overrides
@options.as_json
def retry(dataset: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Read what was refused again from its sources; what passes now is published as the next version.

    Settings are those of the dataset; key=value changes what is a source's own, for example
    allow_broken_archive=true or labels=mended.csv.
    """
    from pipelines.config.load import load_config
    from pipelines.dataset.quarantine import read_quarantine
    from pipelines.dataset.reader import open_dataset
    from pipelines.ingest import stage
    from pipelines.ingest.config import IngestConfig

    opened = open_dataset(_newest(dataset))
    names = [row["source"] for row in read_quarantine(opened, columns=["source"])]
    before = len(names)
    for name in sorted(set(names)):
        given = {"source": opened.catalog["locations"][name], "source_name": name, "out": opened.uri}
        stage.run(load_config(IngestConfig, None, overrides, {**given, "retry_failed": True}))
    now = open_dataset(opened.uri)
    left = len(read_quarantine(now, columns=["source"]))
    if as_json:
        version = now.version if now.version != opened.version else None
        render.as_json({"dataset": opened.uri, "version": version, "retried": before, "refused": left})
        return
    name = render.clean(Path(opened.uri).name)
    if now.version == opened.version:
        click.echo(f"{name}: {before:,} refused, and none of them passes now; nothing was published")
        render.next_steps(
            [render.command("data", "quarantine", "list", opened.ref)]
            if before
            else [render.command("data", "show", opened.ref)]
        )
        return
    click.echo(f"{name}: {before - left:,} of {before:,} pass now, published as v{now.version}; {left:,} stay refused")
    onwards = render.network_step(now.ref, task=now.task, classes=now.classes)
    render.next_steps([render.command("data", "diff", opened.ref, now.ref), onwards])


@command.command("accept")
@click.argument("dataset", metavar="DATASET")
@click.argument("members", nargs=-1, metavar="[KEY|IMAGE_ID ...]")
@click.option("--code", "codes", multiple=True, metavar="REASON", help="All that was refused for this reason.")
@click.option("--all", "everything", is_flag=True, help="All that was refused.")
@click.option("--reason", required=True, help="Why the loss is accepted; it is kept with every row.")
@options.as_json
def accept(
    dataset: str, members: tuple[str, ...], codes: tuple[str, ...], everything: bool, reason: str, as_json: bool
) -> None:
    """Accept refused members as lost: checks and lists no longer count them. Recorded in a version of its own.

    A key names the members of all sources that have it, an image id one member.
    """
    from pipelines.dataset import quarantine
    from pipelines.dataset.reader import open_dataset

    if not (members or codes or everything):
        raise InputError(
            "nothing is named to be accepted", mend="name members, --code TRUNCATED for all of a reason, or --all"
        )
    opened = open_dataset(_newest(dataset))
    rows = quarantine.read_quarantine(opened, columns=_WORDS)
    known = sorted({row["reason"] for row in rows})
    if unknown := sorted(set(codes) - set(known)):
        raise InputError(f"nothing was refused as {unknown[0]}", mend=f"reasons are {', '.join(known) or 'none'}")
    names = set(members)
    _named(rows, members, opened.ref)

    def wanted(row: Row) -> bool:
        return everything or row["reason"] in codes or row["key"] in names or row["image_id"] in names

    version, number = quarantine.accept(opened.uri, reason, wanted=wanted)
    if as_json:
        render.as_json({"dataset": opened.uri, "version": version, "accepted": number})
        return
    name = render.clean(Path(opened.uri).name)
    if version is None:
        click.echo(f"{name}: nothing is refused that is not accepted already")
        return
    click.echo(f"{name}: {number:,} accepted as lost, published as v{version}")
    for member in sorted(names):
        if len(sources := sorted({row["source"] for row in rows if row["key"] == member})) > 1:
            words = f"{member} is of {len(sources)} sources ({', '.join(sources)}); an image id names one member"
            click.echo(render.clean(words))
    render.next_steps([render.command("data", "quarantine", "list", f"{opened.uri}@v{version}")])


def _newest(dataset: str) -> str:
    """Return the address of a dataset whose newest version is meant.

    Raises:
        InputError: a version is named, and what is decided of it would be published after the newest.
    """
    from pipelines.dataset.catalog import parse_ref

    uri, version = parse_ref(dataset)
    if version is not None:
        raise InputError(f"{dataset} names a version, and only the newest goes on", mend=f"name the dataset: {uri}")
    return uri


def _named(rows: Sequence[Row], members: Sequence[str], where: str) -> list[Row]:
    """Return the rows with these keys or ids.

    Raises:
        InputError: one of them was not refused.
    """
    found = [row for row in rows if row["key"] in members or row["image_id"] in members]
    unknown = set(members) - {row["key"] for row in found} - {row["image_id"] for row in found}
    if unknown:
        raise InputError(
            f"{min(unknown)} was not refused in {where}", mend=render.command("data", "quarantine", "list", where)
        )
    return found


def _plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows as JSON values; of a thumbnail that was read, its bytes."""
    return [{**row, "thumbnail": len(row["thumbnail"])} if row.get("thumbnail") else row for row in rows]


def _example(rows: Sequence[Row]) -> str:
    return f"{rows[0]['key']}: {rows[0]['message']}"
