"""`resnet tune`: a sweep over depth, width, learning rate and whatever else `space` names."""

from __future__ import annotations

import click

from pipelines.cli import options, render

EXAMPLES = (
    "resnet tune default --dataset datasets/photos train.epochs=20",
    "resnet tune datasets/photos num_trials=8",
)


@click.command("tune", epilog=options.examples(*EXAMPLES))
@click.argument("config", metavar="CONFIG")
@options.overrides
@options.dataset
@options.out
@options.dry_run
@options.as_json
def command(config: str, overrides: tuple[str, ...], dataset: str, out: str, dry_run: bool, as_json: bool) -> None:
    """Search for a better network, e.g. `resnet tune cifar10 --dataset datasets/cifar num_trials=12`.

    CONFIG is a preset, a YAML file, a dataset, or images (a folder, .zip or .tar), taken in that order; images are
    ingested first and the split that was made is stated. A killed sweep goes on where it stopped.
    """
    from pipelines.tune.config import TuneConfig

    resolved = options.resolve("tune", TuneConfig, config, overrides, dataset=dataset, out=out, dry_run=dry_run)
    if dry_run:
        options.show_plan("tune", resolved, as_json=as_json)
        return
    from pipelines.tune import stage

    render.result(stage.run(resolved), as_json=as_json)
