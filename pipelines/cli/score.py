"""`resnet score`: a prediction for every image of an archive."""

from __future__ import annotations

import click

from pipelines.cli import options, render

EXAMPLES = ("resnet score new-photos.tar --model models:/photos@champion --out predictions/new-photos",)


@click.command("score", epilog=options.examples(*EXAMPLES))
@click.argument("archive")
@options.overrides
@click.option("--model", required=True, metavar="models:/NAME@ALIAS", help="A registered model, or a package folder.")
@options.config_file("score")
@options.out
@options.dry_run
@options.as_json
def command(
    archive: str,
    overrides: tuple[str, ...],
    model: str,
    config_source: str,
    out: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Score every image of ARCHIVE (.zip, .tar or a folder), each exactly once, into Parquet."""
    from pipelines.config.load import load_config
    from pipelines.score.config import ScoreConfig

    inputs = options.given(archive=archive, model=model, out=out)
    config = load_config(ScoreConfig, options.config_path("score", config_source), overrides, inputs)
    if dry_run:
        options.show_plan("score", config, as_json=as_json)
        return
    from pipelines.score import stage

    render.result(stage.run(config), as_json=as_json)
