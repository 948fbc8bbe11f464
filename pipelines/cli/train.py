"""`resnet train`: one network on one dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipelines.cli import options, render

if TYPE_CHECKING:
    from pipelines.train.config import TrainConfig

EXAMPLES = (
    "resnet train default --dataset datasets/photos optimizer.lr=0.1",
    "resnet train datasets/photos epochs=30",
    "resnet train photos.zip",
)


def _check_start(config: TrainConfig) -> None:
    """Refuse weights that do not fit, where there is a dataset to judge by."""
    from pipelines.runner.target import is_dataset

    if config.init.source and config.dataset and is_dataset(config.dataset):
        from pipelines.train import stage

        stage.check(config)


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
        _check_start(resolved)
        options.show_plan("train", resolved, as_json=as_json)
        return
    from pipelines.train import stage  # torch and Ray load here, so that --help stays instant

    render.result(stage.run(resolved), as_json=as_json)
