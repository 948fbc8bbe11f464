"""`resnet config`: the effective configuration, its schema for editors, and errors without running anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipelines.cli import options, render
from pipelines.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.config.strict import StrictModel

STAGES = ("run", "ingest", "train", "tune", "evaluate", "register", "score")
# Inputs that a preset cannot know; `config show` fills them so that the rest can be seen and checked.
_PLACEHOLDERS: dict[str, dict[str, object]] = {
    "ingest": {"source": "SOURCE"},
    "train": {"dataset": "DATASET"},
    "tune": {"train.dataset": "DATASET"},
    "evaluate": {"model": "MODEL", "dataset": "DATASET"},
    "register": {"model": "MODEL", "name": "NAME", "evaluation": "EVALUATION"},
    "score": {"archive": "ARCHIVE", "model": "MODEL"},
}

EXAMPLES = (
    "resnet config show train cifar-fast epochs=5",
    "resnet config schema run > run.schema.json",
    "resnet config validate run my-run.yaml",
)


@click.group("config", epilog=options.examples(*EXAMPLES))
def command() -> None:
    """Show, describe or check a configuration; nothing is run."""


@command.command("show")
@click.argument("stage", type=click.Choice(STAGES))
@click.argument("source", required=False, default="", metavar="[NAME|FILE.yaml]")
@options.overrides
@options.as_json
def show(stage: str, source: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print the effective config of STAGE: defaults, then the preset or file, then key=value."""
    values = _load(stage, source, overrides).model_dump(mode="json")
    if as_json:
        render.as_json(values)
    else:
        render.as_yaml(values)


@command.command("schema")
@click.argument("stage", type=click.Choice(STAGES))
def schema(stage: str) -> None:
    """Print the JSON schema of STAGE's config, for an editor's completion and checks."""
    from pipelines.runner.target import schema_of

    render.as_json(schema_of(stage).model_json_schema())


@command.command("validate")
@click.argument("stage", type=click.Choice(STAGES))
@click.argument("source", required=False, default="", metavar="[NAME|FILE.yaml]")
@options.overrides
def validate(stage: str, source: str, overrides: tuple[str, ...]) -> None:
    """Check a config of STAGE and say what is wrong with it; exit code 2 when something is."""
    _load(stage, source, overrides)
    click.echo(f"{stage}: {render.clean(source) or 'the defaults'} is valid")
    words = " ".join([source, *overrides]).strip()
    if stage in ("run", "train", "tune"):
        render.next_steps([f"resnet {stage} {words} --dry-run".replace("  ", " ")])


def _load(stage: str, source: str, overrides: tuple[str, ...]) -> StrictModel:
    from pipelines.config.load import load_config

    if "=" in source and not source.endswith((".yaml", ".yml")):
        source, overrides = "", (source, *overrides)
    from pipelines.runner.target import schema_of

    schema, path = schema_of(stage), options.config_path(stage, source) if source else None
    try:
        return load_config(schema, path, overrides)
    except ConfigError:
        # Inputs are named on the command line of the stage, not in its config: fill them in, and judge the rest.
        return load_config(schema, path, overrides, _PLACEHOLDERS.get(stage, {}))
