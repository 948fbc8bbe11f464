"""`resnet train`: one network on one dataset."""

from __future__ import annotations

import click

from pipelines.cli import options, render

EXAMPLES = (
    "resnet train default --dataset datasets/photos optimizer.lr=0.1",
    "resnet train datasets/photos epochs=30",
    "resnet train photos.zip",
)


@click.command("train", epilog=options.examples(*EXAMPLES))
@click.argument("config", metavar="CONFIG")
@options.overrides
@options.dataset
@options.out
@options.dry_run
@options.as_json
def command(config: str, overrides: tuple[str, ...], dataset: str, out: str, dry_run: bool, as_json: bool) -> None:
    """Train one network, e.g. `resnet train cifar10 --dataset datasets/cifar model.depth=20`.

    CONFIG is a preset, a YAML file, a dataset, or images (a folder, .zip or .tar), taken in that order; images are
    ingested first and the split that was made is stated.
    """
    from pipelines.train.config import TrainConfig

    resolved = options.resolve("train", TrainConfig, config, overrides, dataset=dataset, out=out, dry_run=dry_run)
    if dry_run:
        options.show_plan("train", resolved, as_json=as_json)
        return
    from pipelines.train import stage  # torch and Ray load here, so that --help stays instant

    render.result(stage.run(resolved), as_json=as_json)
