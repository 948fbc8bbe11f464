"""`resnet data`: what is in a dataset, whether it is whole, and its files for other tools."""

from __future__ import annotations

from typing import Any

import click

from pipelines.cli import data_edit, data_quarantine, options, render
from pipelines.errors import DataError

_CLASSES_SHOWN = 20
_PROBLEMS_SHOWN = 50
_READ_WITH_PANDAS = (
    "python -c 'import sys, pandas as p;"
    ' print(p.concat(map(p.read_parquet, sys.argv[1:])).drop(columns="image", errors="ignore"))\''
)
EXAMPLES = (
    "resnet data show datasets/photos",
    "resnet data verify datasets/photos@v1",
    "resnet data files datasets/photos --split train",
    "resnet data check datasets/photos min_images_per_class=10 max_near_leak_fraction=0.01",
    "resnet data quarantine list datasets/photos",
    "resnet data relabel datasets/photos corrections.csv",
    "resnet data retract datasets/photos IMAGE_ID && resnet data compact datasets/photos --purge",
)


@click.group("data", epilog=options.examples(*EXAMPLES))
def command() -> None:
    """Show, verify, mend, compact or export a dataset, or list its files (DATASET, or DATASET@v2 for one version)."""


data_edit.add_to(command)
command.add_command(data_quarantine.command)


@command.command("show")
@click.argument("dataset", metavar="DATASET[@vN]")
@click.option("--samples", default=0, type=click.IntRange(0, 100), help="Rows to show of each split.")
@options.as_json
def show(dataset: str, samples: int, as_json: bool) -> None:
    """Print what a dataset holds: rows, classes, splits, what was refused, where it came from."""
    from pipelines.dataset import inspect
    from pipelines.dataset.quarantine import read_quarantine
    from pipelines.dataset.reader import open_dataset

    facts = inspect.show(dataset, samples=samples)
    told = ("source", "key", "label", "reason", "message")
    refused = read_quarantine(open_dataset(dataset), columns=told)
    facts["quarantine"] = [{name: row[name] for name in told} for row in refused]
    if as_json:
        render.as_json(facts)
        return
    click.echo(f"dataset: {render.clean(facts['uri'])}@v{facts['version']}")
    render.pairs(
        {
            "images": facts["rows"],
            "classes": len(facts["classes"]),
            "task": facts["task"],
            "sources": ", ".join(facts["sources"]),
            "mean": ", ".join(f"{value:.4f}" for value in facts["mean"]),
            "std": ", ".join(f"{value:.4f}" for value in facts["std"]),
            "patched rows": facts["patches"],
            "refused": len(refused),
            "fingerprint": facts["fingerprint"],
            **({"what was taken out": ", ".join(facts["audits"])} if facts["audits"] else {}),
        }
    )
    _show_splits(facts)
    for row in refused[:_CLASSES_SHOWN]:
        click.echo(f"refused {render.clean(row['reason'])}: {render.clean(row['key'])}: {render.clean(row['message'])}")
    if len(refused) > _CLASSES_SHOWN:
        click.echo(f"... and {len(refused) - _CLASSES_SHOWN:,} more; --json names all")
    for name, split in facts["splits"].items():
        for row in split.get("samples", ()):
            click.echo(f"{name}  {row['image_id']}  {render.clean(str(row['label']))}  {render.clean(row['key'])}")
    reference = f"{facts['uri']}@v{facts['version']}"
    first = "train" if "train" in facts["splits"] else next(iter(facts["splits"]), "train")
    onwards = render.network_step(reference, task=facts["task"], classes=facts["classes"])
    render.next_steps([render.command("data", "files", reference, "--split", first), onwards])


def _show_splits(facts: dict[str, Any]) -> None:
    usual = ("train", "val", "test")
    names = sorted(facts["splits"], key=lambda name: (usual.index(name) if name in usual else len(usual), name))
    click.echo()
    rows: list[list[object]] = []
    for label in facts["classes"][:_CLASSES_SHOWN]:
        rows.append([label, *(facts["splits"][name]["labels"][label] for name in names)])
    if len(facts["classes"]) > _CLASSES_SHOWN:
        rows.append([f"... {len(facts['classes']) - _CLASSES_SHOWN:,} more classes", *("" for _ in names)])
    rows.append(["all", *(facts["splits"][name]["rows"] for name in names)])
    render.table(("class", *names), rows)
    click.echo()


@command.command("verify")
@click.argument("dataset", metavar="DATASET[@vN]")
@options.as_json
def verify(dataset: str, as_json: bool) -> None:
    """Check that every byte is still what was written; exit code 3 when something is damaged or missing."""
    from pipelines.dataset import inspect
    from pipelines.dataset.reader import open_dataset

    opened = open_dataset(dataset)
    problems = list(inspect.verify(opened))
    if as_json and not problems:
        render.as_json({"dataset": opened.ref, "rows": opened.catalog["rows"], "problems": []})
    if not problems:
        if not as_json:
            click.echo(f"{render.clean(opened.ref)}: whole, {opened.catalog['rows']:,} rows")
            render.next_steps([render.command("data", "show", opened.ref)])
        return
    for problem in problems[:_PROBLEMS_SHOWN]:
        render.note(str(problem))
    raise DataError(
        f"{opened.ref} is damaged: {len(problems)} {'problem' if len(problems) == 1 else 'problems'},"
        f" first {problems[0]}",
        where=opened.uri,
        mend="restore the files named above from a backup, or ingest again into another --out",
    )


@command.command("check")
@click.argument("dataset", metavar="DATASET[@vN]")
@click.argument("rules", nargs=-1, metavar="[rule=bound ...]")
@options.as_json
def check(dataset: str, rules: tuple[str, ...], as_json: bool) -> None:
    """Measure a dataset against rules; exit code 3 when one fails.

    Rules are those of `checks` in ingest's config, for example min_images_per_class=10 max_near_leak_fraction=0.01 or
    max_predictive_property.brightness=0.8. Without any, those that it was made with.
    """
    from dataclasses import asdict

    from pipelines.dataset.reader import open_dataset
    from pipelines.ingest import checks

    opened = open_dataset(dataset)
    findings = checks.run_checks(checks.read_rules(rules, opened), opened)
    if as_json:
        checks.refuse(findings, opened)  # whose words are the only object on stdout then
        render.as_json({"dataset": opened.ref, "findings": [asdict(finding) for finding in findings]})
        return
    click.echo(f"checks: {render.clean(opened.ref)}")
    render.table(
        ("", "rule", "figure", "bound"),
        [("kept" if each.is_kept else each.level, each.rule, each.figure, each.bound) for each in findings],
    )
    checks.refuse(findings, opened)
    for finding in findings:
        if not finding.is_kept:
            click.echo(f"warning: {render.clean(str(finding))}")
    onwards = render.network_step(opened.ref, task=opened.task, classes=opened.classes)
    render.next_steps(list(dict.fromkeys([render.command("data", "sheet", opened.ref), onwards])))


@command.command("files")
@click.argument("dataset", metavar="DATASET[@vN]")
@click.option("--split", default="", help="The split whose files are listed (default: train; predictions have one).")
@options.as_json
def files(dataset: str, split: str, as_json: bool) -> None:
    """Print the live Parquet files of a split or of predictions, one a line, for pandas, DuckDB, Spark, `datasets`."""
    from pipelines.dataset import inspect

    paths = inspect.files(dataset, split)
    if as_json:
        render.as_json(paths)
        return
    # Paths only, so that the output can be piped; the next commands go to stderr.
    for path in paths:
        click.echo(path)
    again = render.command("data", "files", dataset, *(["--split", split] if split else []))
    render.note(f"next:\n  {again} | tr '\\n' '\\0' | xargs -0 -r {_READ_WITH_PANDAS}")


@command.command("compact")
@click.argument("dataset", metavar="DATASET")
@click.option("--purge", is_flag=True, help="Then purge every earlier version, so that retracted bytes are gone.")
@options.as_json
def compact(dataset: str, purge: bool, as_json: bool) -> None:
    """Write the shards on which patches stand anew, as the next version; rows and fingerprints stay."""
    from pipelines.dataset import collect

    if purge:
        _refuse_idle_purge(dataset)
    version = collect.compact(dataset)
    gone = data_edit.purge_earlier(dataset) if purge else {}
    if as_json:
        render.as_json({"dataset": dataset, "version": version, **gone})
        return
    if gone:
        click.echo(f"{render.clean(dataset)}: {len(gone['purged'])} earlier versions purged,"
                   f" {len(gone['deleted']):,} files deleted")  # fmt: skip
        if gone["temporary"]:
            click.echo(f"warning: {len(gone['temporary'])} temporary files of the last {collect.PUT_LASTS_S / 60:.0f}"
                       " minutes are left, as they may be at work; run it again after that")  # fmt: skip
    if version is None:
        click.echo(f"{render.clean(dataset)}: no patch stands, nothing to write")
    else:
        click.echo(f"{render.clean(dataset)}@v{version}: published, no patch stands")
        render.next_steps([render.command("data", "files", f"{dataset}@v{version}")])


def _refuse_idle_purge(reference: str) -> None:
    """Refuse to delete a dataset's history where nobody took anything out of it."""
    from pipelines.dataset.reader import open_dataset
    from pipelines.dataset.taken import TAKEN
    from pipelines.errors import InputError

    opened = open_dataset(reference)
    is_out = any(not change.get("live", True) for rows in opened.overrides.values() for change in rows.values())
    if not is_out and not opened.catalog.get(TAKEN):
        raise InputError(
            f"no image was taken out of {opened.ref}: --purge would delete its history and nothing else",
            mend=f"{render.command('data', 'retract', opened.uri, 'IMAGE')} first, or delete one version:"
            f" {render.command('data', 'purge', f'{opened.uri}@v1')}",
        )


@command.command("export")
@click.argument("dataset", metavar="DATASET[@vN]")
@click.option("--out", required=True, help="The empty folder to write into.")
@click.option("--split", default="", help="The split to write (default: all).")
@options.as_json
def export(dataset: str, out: str, split: str, as_json: bool) -> None:
    """Write the live images as plain files: SPLIT/CLASS/IMAGE_ID.png and a table, images.csv."""
    from pipelines.dataset.export import export as write_out
    from pipelines.dataset.reader import open_dataset
    from pipelines.storage import Storage

    opened = open_dataset(dataset)
    written = write_out(opened, Storage.open(out), [split] if split else [])
    if as_json:
        render.as_json({"dataset": dataset, "out": out, "images": written})
        return
    click.echo(f"{render.clean(out)}: {written:,} images")
    is_multi = opened.task == "multi"
    again = [out, f"labels={out}/labels.jsonl"] if is_multi else [f"{out}/{split}" if split else out]
    render.next_steps([render.command("ingest", *again)])
