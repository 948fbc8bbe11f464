"""`resnet data relabel|exclude|retract|duplicates|log|diff|gc|purge`: new versions, what they changed, what goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli import options, render

if TYPE_CHECKING:
    from pipelines.dataset.patch import Change
    from pipelines.dataset.reader import Dataset

_SHOWN = 20


def add_to(group: click.Group) -> None:
    """Add the commands to `resnet data`."""
    for command in (relabel, exclude, retract, duplicates, sheet, log, diff, gc, purge):
        group.add_command(command)


@click.command("relabel")
@click.argument("dataset", metavar="DATASET")
@click.argument("corrections", metavar="TABLE")
@options.as_json
def relabel(dataset: str, corrections: str, as_json: bool) -> None:
    """Publish a version with the labels that TABLE gives.

    TABLE is a .csv, .tsv, .jsonl or .parquet file with columns image_id or key, label, and if wanted old_label (refused
    where it does not stand) and reason.
    """
    from pipelines.dataset.corrections import read_relabels
    from pipelines.dataset.reader import open_dataset

    opened = open_dataset(dataset)
    _publish(opened, read_relabels(opened, corrections), "relabelled", as_json)


@click.command("exclude")
@click.argument("dataset", metavar="DATASET")
@click.argument("images", nargs=-1, metavar="[IMAGE ...]")
@click.option("--from", "table", default="", metavar="TABLE", help="Take the images from a table: image_id or key.")
@click.option("--reason", required=True, help="Why; it is kept with every row.")
@options.as_json
def exclude(dataset: str, images: tuple[str, ...], table: str, reason: str, as_json: bool) -> None:
    """Publish a version without the images (ids or keys); earlier versions keep them."""
    from pipelines.dataset.corrections import exclusions
    from pipelines.dataset.reader import open_dataset

    opened = open_dataset(dataset)
    _publish(opened, exclusions(opened, images, table, reason), "excluded", as_json)


@click.command("retract")
@click.argument("dataset", metavar="DATASET")
@click.argument("images", nargs=-1, metavar="[IMAGE ...]")
@click.option("--from", "table", default="", metavar="TABLE", help="Take the images from a table: image_id or key.")
@click.option("--reason", default="retracted", show_default=True, help="Why; it is kept with every row.")
@options.as_json
def retract(dataset: str, images: tuple[str, ...], table: str, reason: str, as_json: bool) -> None:
    """Consent or licence withdrawn: exclude the images, and list every version whose files still hold them.

    Refused members can be named too: they are not read again, and `compact --purge` deletes their thumbnails.
    """
    from pipelines.dataset.compare import versions_with
    from pipelines.dataset.corrections import exclusions
    from pipelines.dataset.patch import publish_patch
    from pipelines.dataset.reader import open_dataset

    opened = open_dataset(dataset)
    changes = exclusions(opened, images, table, reason, refused=True)
    version = publish_patch(opened.uri, changes)
    held = versions_with(opened.storage, [change.image_id for change in changes])
    if as_json:
        render.as_json({"dataset": opened.uri, "version": version, "images": len(changes), "held_by": held})
        return
    state = f"published as v{version}" if version else "they were out already"
    click.echo(f"{render.clean(opened.uri)}: {_images(len(changes))} retracted, {state}")
    if not held:
        click.echo("no version's files hold them any more")
        return
    render.table(("version", "of these images in its files"), [(f"v{number}", count) for number, count in held.items()])
    render.next_steps([render.command("data", "compact", opened.uri, "--purge")])


@click.command("duplicates")
@click.argument("dataset", metavar="DATASET[@vN]")
@click.option("--distance", default=4, show_default=True, type=click.IntRange(0, 4), help="Bits of 64 that may differ.")
@click.option("--across-splits", is_flag=True, help="Take out only what stands in a less held-out split too.")
@click.option(
    "--table", default="", callback=options.writable, metavar="FILE.csv", help="Write the images to take out."
)
@click.option(
    "--page",
    default="",
    callback=options.writable,
    metavar="FILE.html",
    help="Write the clusters as a page with images.",
)
@options.as_json
def duplicates(dataset: str, distance: int, across_splits: bool, table: str, page: str, as_json: bool) -> None:
    """Find images that look alike, by perceptual hash; what to do about them is yours to say."""
    from pipelines.dataset.duplicates import find_alike
    from pipelines.dataset.reader import open_dataset

    opened = open_dataset(dataset)
    alike = find_alike(opened, max_distance=distance)
    surplus = alike.surplus(across_splits=across_splits)
    if table and surplus:
        _write_table(table, surplus)
    if page:
        from pipelines.dataset.duplicates_page import make_page

        Path(page).write_bytes(make_page(alike, opened))
    if as_json:
        render.as_json({"dataset": opened.ref, "counts": alike.counts(), "surplus": surplus})
        return
    click.echo(f"look-alikes: {render.clean(opened.ref)}, at most {distance} of 64 bits apart")
    render.pairs(alike.counts())
    if alike.doubt:
        click.echo(f"warning: {alike.doubt}")
    commands = (
        [render.show_page(page)] if page else [render.command("data", "duplicates", dataset, "--page", "alike.html")]
    )
    if table and surplus:
        commands.append(render.command("data", "exclude", opened.uri, "--from", table, "--reason", "near-duplicate"))
    elif table:
        click.echo(f"nothing to take out: {render.clean(table)} was not written")
    elif surplus:
        commands.append(render.command("data", "duplicates", dataset, "--across-splits", "--table", "alike.csv"))
    render.next_steps(commands)


@click.command("sheet")
@click.argument("dataset", metavar="DATASET[@vN]")
@click.option(
    "--page",
    default="sheet.html",
    show_default=True,
    callback=options.writable,
    metavar="FILE.html",
    help="The page to write.",
)
@click.option(
    "--numbers", default="", callback=options.writable, metavar="FILE.json", help="Write the figures as JSON too."
)
@options.as_json
def sheet(dataset: str, page: str, numbers: str, as_json: bool) -> None:
    """Write the data sheet: classes, splits, properties, outliers, what gives labels away, leaks, what was refused."""
    import json

    from pipelines.dataset.duplicates import find_alike
    from pipelines.dataset.profile import make_profile, sheet_numbers
    from pipelines.dataset.profile_page import make_sheet
    from pipelines.dataset.reader import open_dataset

    opened = open_dataset(dataset)
    profile, alike = make_profile(opened), find_alike(opened)
    Path(page).write_bytes(make_sheet(opened, profile, alike))
    figures = sheet_numbers(opened, profile, alike.counts())
    if numbers:
        Path(numbers).write_text(json.dumps(figures, indent=1, ensure_ascii=False), encoding="utf-8")
    if as_json:
        render.as_json({"page": page, **figures})
        return
    click.echo(f"sheet: {render.clean(page)}")
    render.pairs(
        {
            **{f"{kind} images": number for kind, (number, _) in profile.outliers.items()},
            "groups of look-alikes": alike.counts()["clusters"],
            "of them across splits": alike.counts()["clusters_across_splits"],
            "refused members": sum(profile.refused.values()),
        }
    )
    render.next_steps([render.show_page(page), render.command("data", "duplicates", dataset, "--page", "alike.html")])


def _write_table(path: str, rows: list[dict[str, Any]]) -> None:
    import csv

    columns = ["image_id", "key", "split", "label", "like", "like_split", "distance"]
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@click.command("log")
@click.argument("dataset", metavar="DATASET")
@options.as_json
def log(dataset: str, as_json: bool) -> None:
    """List the versions of a dataset: what made each, and its rows."""
    from pipelines.dataset.inspect import history
    from pipelines.dataset.reader import open_dataset

    opened = open_dataset(dataset)
    lines = history(opened.storage)
    if as_json:
        render.as_json(lines)
        return
    rows = [
        (f"v{line['version']}", line.get("stage") or "", line.get("rows", ""), line.get("note", "")) for line in lines
    ]
    render.table(("version", "made by", "rows", ""), rows)
    if len(lines) > 1 and not lines[-2].get("note"):
        render.next_steps([render.command("data", "diff", f"{opened.uri}@v{opened.version - 1}", opened.ref)])
    else:
        render.next_steps([render.command("data", "show", opened.ref)])


@click.command("diff")
@click.argument("old", metavar="DATASET@vM")
@click.argument("new", metavar="DATASET@vN")
@options.as_json
def diff(old: str, new: str, as_json: bool) -> None:
    """Say which images were added, removed, relabelled or changed between two versions."""
    from pipelines.dataset.compare import difference, label_shift

    found = difference(old, new)
    if as_json:
        render.as_json({"counts": found.counts(), **{name: getattr(found, name) for name in found.counts()}})
        return
    render.pairs(found.counts(), indent="")
    for was, now, number in label_shift(found)[:_SHOWN]:
        click.echo(f"  {number:>6,}  {render.clean(was)} -> {render.clean(now)}")
    for sign, rows in (("+", found.added), ("-", found.removed), ("~", found.changed)):
        for row in rows[:_SHOWN]:
            click.echo(f"{sign} {row['split']}  {render.clean(str(row['label']))}  {render.clean(row['key'])}")
        if len(rows) > _SHOWN:
            click.echo(f"{sign} ... and {len(rows) - _SHOWN:,} more; --json names all")
    render.next_steps([render.command("data", "show", new)])


@click.command("gc")
@click.argument("dataset", metavar="DATASET")
@click.option(
    "--older-than-hours", default=24.0, show_default=True, type=click.FloatRange(0), help="Age of an unfinished run."
)
@options.as_json
def gc(dataset: str, older_than_hours: float, as_json: bool) -> None:
    """Delete what no version names: lost attempts, and what unfinished runs left behind."""
    from pipelines.dataset import collect
    from pipelines.dataset.reader import open_dataset

    opened = open_dataset(dataset)
    done = collect.gc(opened.storage, dead_after_s=older_than_hours * 3600.0)
    if as_json:
        render.as_json({"version": done.version, "dead": done.dead, "deleted": done.deleted, "bytes": done.freed_bytes})
        return
    click.echo(
        f"{render.clean(opened.uri)}: {len(done.deleted):,} files deleted ({done.freed_bytes:,} bytes),"
        f" {len(done.dead)} unfinished runs declared dead"
    )
    render.next_steps([render.command("data", "verify", opened.uri)])


@click.command("purge")
@click.argument("dataset", metavar="DATASET@vN")
@options.as_json
def purge(dataset: str, as_json: bool) -> None:
    """Make one version refuse to open for good, and delete the files that only it names."""
    from pipelines.dataset import collect
    from pipelines.dataset.catalog import parse_ref
    from pipelines.errors import InputError
    from pipelines.storage import Storage

    uri, version = parse_ref(dataset)
    if version is None:
        raise InputError(f"{dataset} names no version", mend=f"{render.command('data', 'log', dataset)} lists them")
    deleted = collect.purge(Storage.open(uri), version)
    if as_json:
        render.as_json({"dataset": uri, "version": version, "deleted": deleted})
        return
    click.echo(f"{render.clean(uri)}@v{version}: purged, {len(deleted):,} files deleted")
    render.next_steps([render.command("data", "log", uri)])


def purge_earlier(uri: str) -> dict[str, Any]:
    """Purge every version before the newest; return their numbers, the files deleted, and temporary ones too young."""
    from pipelines.dataset import collect
    from pipelines.dataset.catalog import list_versions, purged_path
    from pipelines.storage import Storage

    storage = Storage.open(uri)
    earlier = [each for each in list_versions(storage)[:-1] if not storage.exists(purged_path(each))]
    deleted = [path for version in earlier for path in collect.purge(storage, version)]
    swept, young = collect.sweep(storage)  # also where every earlier version is purged already
    return {"purged": earlier, "deleted": [*deleted, *swept], "temporary": young}


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def _publish(opened: Dataset, changes: list[Change], done: str, as_json: bool) -> None:
    from pipelines.dataset.patch import publish_patch

    version = publish_patch(opened.uri, changes)
    if as_json:
        render.as_json({"dataset": opened.uri, "version": version, "images": len(changes)})
        return
    name = render.clean(Path(opened.uri).name)
    if version is None:
        click.echo(f"{name}: {_images(len(changes))} as wanted already, nothing was published")
        render.next_steps([render.command("data", "show", opened.ref)])
        return
    click.echo(f"{name}: {_images(len(changes))} {done}, published as v{version}")
    from pipelines.dataset.reader import open_dataset

    now = open_dataset(f"{opened.uri}@v{version}")
    onwards = render.network_step(now.ref, task=now.task, classes=now.classes)
    render.next_steps([render.command("data", "diff", opened.ref, now.ref), onwards])
