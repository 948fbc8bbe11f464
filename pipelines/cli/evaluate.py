"""`resnet evaluate`: what a model is worth on rows it has not seen."""

from __future__ import annotations

import click

from pipelines.cli import options, render

EXAMPLES = (
    "resnet evaluate runs/train/1a2b3c4d5e6f datasets/photos",
    "resnet evaluate models:/photos@champion datasets/photos@v2 --split val",
)


@click.command("evaluate", epilog=options.examples(*EXAMPLES))
@click.argument("model")
@click.argument("dataset")
@options.overrides
@click.option("--split", default="", metavar="NAME", help="The split to measure on (default: test).")
@options.out
@options.dry_run
@options.as_json
def command(
    model: str, dataset: str, overrides: tuple[str, ...], split: str, out: str, dry_run: bool, as_json: bool
) -> None:
    """Measure MODEL (a training folder or models:/NAME@ALIAS) on DATASET."""
    from pipelines.config.load import load_config
    from pipelines.evaluate.config import EvaluateConfig

    inputs = options.given(model=model, dataset=dataset, split=split, out=out)
    config = load_config(EvaluateConfig, None, overrides, inputs)
    if dry_run:
        options.show_plan("evaluate", config, as_json=as_json)
        return
    from pipelines.evaluate import stage

    render.result(stage.run(config), as_json=as_json)
