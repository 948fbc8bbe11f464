"""`resnet models`: what is registered, which version is champion, and changing that."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from pipelines.cli import options, render
from pipelines.cli.models_import import import_command

if TYPE_CHECKING:
    from pipelines.registry.listing import VersionRow
    from pipelines.tracking import TrackingConfig

EXAMPLES = (
    "resnet models list",
    "resnet models show digits",
    "resnet models register runs/train/1a2b3c4d5e6f --name photos --evaluation runs/evaluate/6f5e4d3c2b1a",
    "resnet models promote photos 3 --reason 'rollback: version 4 fails on night shots'",
    "resnet models open digits 2",
    "resnet models import resnet50.pth --arch resnet50 --licence BSD-3-Clause --source https://HOST --out resnet50",
)

tracking_uri = click.option(
    "--tracking", default="", metavar="URI", help="The MLflow store (or MLFLOW_TRACKING_URI; default runs/mlflow.db)."
)


def tracking_of(uri: str) -> TrackingConfig:
    """Return the tracking config for an option's value."""
    from pipelines.tracking import TrackingConfig

    return TrackingConfig(uri=uri)


@click.group("models", epilog=options.examples(*EXAMPLES))
def command() -> None:
    """List, show, register, promote or open registered models; import weights made elsewhere."""


command.add_command(import_command)


@command.command("list")
@tracking_uri
@options.as_json
def list_command(tracking: str, as_json: bool) -> None:
    """List the registered models of the MLflow store."""
    from pipelines.registry.listing import list_models

    models = list_models(tracking_of(tracking))
    if as_json:
        render.as_json([asdict(model) for model in models])
        return
    if not models:
        click.echo("nothing is registered yet")
        render.next_steps(["resnet run demo"])
        return
    rows = [
        (model.name, model.num_versions, f"v{model.latest}", _aliases(model.aliases), _when(model.updated_s))
        for model in models
    ]
    render.table(("model", "versions", "latest", "aliases", "changed"), rows)
    render.next_steps([f"resnet models show {shlex.quote(models[0].name)}" + _option("--tracking ", tracking)])


@command.command("show")
@click.argument("name")
@tracking_uri
@options.as_json
def show(name: str, tracking: str, as_json: bool) -> None:
    """Show the versions of one model, their figures, and who moved its aliases and why."""
    from pipelines.registry.listing import show_model

    model = show_model(name, tracking_of(tracking))
    if as_json:
        render.as_json(asdict(model))
        return
    click.echo(f"model: {render.clean(model.name)}  ({_aliases(model.aliases) or 'no alias'})")
    rows = [
        (
            f"v{row.version}",
            ", ".join(row.aliases),
            _measured(row),
            f"mAP {_percent(row.val_map)}" if row.val_map else _percent(row.val_top1),
            row.weights_sha256[:12],
            _when(row.created_s),
        )
        for row in model.versions
    ]
    render.table(("version", "aliases", "test top-1", "val top-1", "weights", "registered"), rows)
    for record in model.audit[:10]:
        moved = "moved" if record.moves else "stayed"
        click.echo(f"{record.time}  {record.alias} {moved}, version {record.version}: {render.clean(record.reason)}")
    version = model.aliases.get("champion", model.latest)
    quoted_ref = shlex.quote(f"models:/{model.name}/{version}")
    render.next_steps(
        [
            f"resnet score ARCHIVE --model {quoted_ref}" + _option("tracking.uri=", tracking),
            f"resnet models open {shlex.quote(model.name)} {version}" + _option("--tracking ", tracking),
        ]
    )


@command.command("register")
@click.argument("model")
@options.overrides
@click.option("--name", required=True, help="Registered name; the version is the next free number.")
@click.option("--evaluation", required=True, metavar="FOLDER", help="The out folder of `resnet evaluate` for MODEL.")
@options.out
@options.dry_run
@options.as_json
def register(
    model: str,
    overrides: tuple[str, ...],
    name: str,
    evaluation: str,
    out: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Register MODEL (a train or tune folder); champion moves to it only if it is strictly better on the same rows."""
    from pipelines.config.load import load_config
    from pipelines.registry.config import RegisterConfig

    inputs = options.given(model=model, name=name, evaluation=evaluation, out=out)
    config = load_config(RegisterConfig, None, overrides, inputs)
    if dry_run:
        options.show_plan("register", config, as_json=as_json)
        return
    from pipelines.registry import stage

    render.result(stage.run(config), as_json=as_json)


@command.command("promote")
@click.argument("name")
@click.argument("version")
@click.option("--alias", default="champion", show_default=True, help="The alias to give.")
@click.option("--reason", default="", metavar="TEXT", help="Why; kept in the model's record.")
@tracking_uri
@options.as_json
def promote(name: str, version: str, alias: str, reason: str, tracking: str, as_json: bool) -> None:
    """Give an alias to VERSION by a person's word; a rollback is the promotion of an older version."""
    from pipelines.registry.listing import promote_version

    decision = promote_version(name, version.removeprefix("v"), tracking_of(tracking), alias=alias, reason=reason)
    if as_json:
        render.as_json(decision.to_json())
        return
    was = f"was version {decision.before}" if decision.before else "was held by none"
    word = "moved to" if decision.moved else "stays on"
    click.echo(f"{render.clean(name)}: {render.clean(alias)} {word} version {decision.champion} ({was})")
    render.next_steps([f"resnet models show {shlex.quote(name)}" + _option("--tracking ", tracking)])


@command.command("open")
@click.argument("name", required=False, default="")
@click.argument("version", required=False, default="")
@click.option("--browser", is_flag=True, help="Also open it in the web browser.")
@tracking_uri
def open_command(name: str, version: str, browser: bool, tracking: str) -> None:
    """Print the address of a model's page in the MLflow UI."""
    from pipelines.registry.listing import model_page, page_of
    from pipelines.tracking import resolve_uri

    version = version.removeprefix("v")
    store = tracking_of(tracking)
    if resolve_uri(store).startswith("sqlite:"):
        from pipelines.cli.ui import DEFAULT_PORT

        address = f"http://127.0.0.1:{DEFAULT_PORT}{model_page(name, version)}"
        render.note("the store is a file; the page is there while `resnet ui` runs")
    else:
        address = page_of(store, name, version)
    click.echo(address)
    if browser:
        import webbrowser

        webbrowser.open(address)
    render.note("next:\n  resnet ui" + _option("uri=", tracking))


def _option(name: str, uri: str) -> str:
    """Return what a next command needs to ask the same store, with a space before it; empty for the usual store."""
    return f" {name}{shlex.quote(uri)}" if uri else ""


def _aliases(aliases: dict[str, str]) -> str:
    return ", ".join(f"{alias} v{version}" for alias, version in aliases.items())


def _measured(row: VersionRow) -> str:
    """Return what a version scored, and on how many rows."""
    if row.test_map is not None:
        return f"mAP {row.test_map:.2%} of {row.test_rows:,}"
    return "-" if row.test_top1 is None else f"{row.test_top1:.2%} of {row.test_rows:,}"


def _percent(text: str) -> str:
    try:
        return f"{float(text):.2%}"
    except ValueError:
        return "-"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "-"
