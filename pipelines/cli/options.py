"""Options that several commands share, so that one word means one thing everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipelines.cli import render

if TYPE_CHECKING:
    from pipelines.config.strict import StrictModel

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound="StrictModel")


def writable(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Return the path of a file to write, a leading ~ expanded; the callback of options that name one.

    Raises:
        InputError: it is a folder, or its folder is missing or cannot be written to; no work was done yet.
    """
    import os
    import shlex

    from pipelines.errors import InputError

    if not value:
        return value
    path = Path(value).expanduser()
    if path.is_dir():
        raise InputError(f"{value} cannot be written: it is a folder", mend="name a file in it")
    if not path.parent.is_dir():
        raise InputError(
            f"{value} cannot be written: there is no folder {path.parent}",
            mend=f"mkdir -p {shlex.quote(str(path.parent))}, or name a file in a folder that is there",
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{value} cannot be written: permission denied", mend="name another file")
    return str(path)


overrides = click.argument("overrides", nargs=-1, metavar="[key=value ...]", type=str)
out = click.option("--out", default="", metavar="URI", help="Folder to write to: a path, or s3://bucket/prefix.")
dataset = click.option(
    "--dataset",
    default="",
    metavar="DATASET[@vN]",
    help="The dataset, or images to ingest first (a folder or archive).",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
dry_run = click.option("--dry-run", is_flag=True, help="Check everything, print the resolved config, stop.")
address = click.option(
    "--address",
    default="",
    envvar="RESNET_ADDRESS",
    metavar="http://HOST:8265",
    help="The Ray cluster's job server (or RESNET_ADDRESS).",
)


def examples(*commands: str) -> str:
    """Return the epilog of a command: examples, one a line (the first mark keeps click from reflowing them)."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


def config_file(stage: str) -> Callable[[F], F]:
    """Return the option `--config` of a stage whose positional argument is data."""
    return click.option(
        "--config", "config_source", default="", metavar="NAME|FILE.yaml", help=f"A preset of {stage}, or a YAML file."
    )


def given(**inputs: str) -> dict[str, object]:
    """Return the inputs that the user named; an option left out keeps the config's own value."""
    return {name: value for name, value in inputs.items() if value}


def config_path(stage: str, name: str) -> Path | None:
    """Return the file of a preset's name or of a YAML path; None for no name at all."""
    from pipelines.runner.target import config_path as path_of

    return path_of(stage, name) if name else None


def resolve(
    stage: str,
    schema: type[C],
    target: str,
    overrides: Sequence[str],
    *,
    dataset: str,
    out: str,
    dry_run: bool,
) -> C:
    """Return the config behind a positional CONFIG, ingesting images first where it names images (not when dry)."""
    from pipelines.runner import target as targets

    resolved = targets.resolve(stage, target, dataset=dataset)
    render.note(f"{stage}: {resolved.words}")
    return targets.load(schema, resolved, overrides, out=out, dry_run=dry_run, say=render.note)


def show_plan(stage: str, config: StrictModel, *, as_json: bool) -> None:
    """Print the resolved config of a stage, its key and where its output would go; nothing is run."""
    from pipelines.errors import InputError
    from pipelines.runner.cache import plan_of

    values = config.model_dump(mode="json")
    try:
        plan = plan_of(stage, config)
    except InputError as error:
        # A dry run of a stage whose input is yet to be made is still worth its config.
        render.note(f"the key is not known yet: {error.what}")
        plan_values: dict[str, Any] = {}
    else:
        plan_values = {"stage": stage, "key": plan.key, "out": plan.out, "inputs": plan.inputs}
    if as_json:
        render.as_json({"config": values, "plan": plan_values})
        return
    render.as_yaml(values)
    if plan_values:
        click.echo(f"# would write {render.clean(plan_values['out'])} (key {plan_values['key']})")


def repeat(stage: str, target: str, overrides: Sequence[str], *, out: str = "") -> str:
    """Return the command line that was given, quoted for a shell."""
    import shlex

    words = ["resnet", stage, target, *overrides, *(["--out", out] if out else [])]
    return shlex.join(words)
