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
    "resnet train --resume runs/train/KEY num_workers=2",
)


def _check_start(config: TrainConfig) -> None:
    """Refuse a network or weights that do not fit, where there is a dataset to judge by."""
    from pipelines.runner.target import is_dataset

    if config.dataset and is_dataset(config.dataset):
        from pipelines.train import stage

        stage.check(config)


@click.command("train", epilog=options.examples(*EXAMPLES))
@click.argument("config", metavar="CONFIG", required=False, default="")
@options.overrides
@options.dataset
@options.out
@click.option("--resume", default="", metavar="RUN", help="Go on with a run by its folder, in CONFIG's place.")
@click.option("--max-hours", type=click.FloatRange(min=0, min_open=True), help="Stop after it with a checkpoint.")
@options.dry_run
@click.option("--local", is_flag=True, help="Train in this process, without Ray; one worker.")
@click.option("--smoke", is_flag=True, help="Two steps of everything, nothing kept; says what a run would take.")
@click.option(
    "--find-lr",
    default="",
    callback=options.writable,
    metavar="FILE.png",
    help="Range test of the learning rate; draws it into FILE.",
)
@options.as_json
def command(
    config: str,
    overrides: tuple[str, ...],
    dataset: str,
    out: str,
    resume: str,
    max_hours: float | None,
    dry_run: bool,
    local: bool,
    smoke: bool,
    find_lr: str,
    as_json: bool,
) -> None:
    """Train one network, e.g. `resnet train cifar-fast --dataset datasets/cifar model.depth=20`.

    CONFIG is a preset, a YAML file, a dataset, or images (a folder, .zip or .tar), taken in that order; images are
    ingested first and the split that was made is stated. A training that was stopped or killed goes on when the same
    command is given again, or by --resume.
    """
    from pipelines.train.config import TrainConfig

    if find_lr:
        _check_range(find_lr, smoke=smoke)
    overrides = (*overrides, "local=true") if local else overrides
    overrides = (*overrides, f"max_hours={max_hours}") if max_hours else overrides
    if resume:
        resolved = _resumed(resume, (config, *overrides) if config else overrides, dataset=dataset, out=out)
    elif config:
        resolved = options.resolve("train", TrainConfig, config, overrides, dataset=dataset, out=out, dry_run=dry_run)
    else:
        raise click.UsageError("Missing argument 'CONFIG', or --resume RUN.")
    if dry_run:
        _check_start(resolved)
        options.show_plan("train", resolved, as_json=as_json)
        return
    if smoke or find_lr:
        _probe(resolved, find_lr, as_json=as_json)
        return
    from pipelines.train import stage  # torch and Ray load here, so that --help stays instant

    render.result(stage.run(resolved), as_json=as_json)


def _resumed(run: str, overrides: tuple[str, ...], *, dataset: str, out: str) -> TrainConfig:
    """Return the config of a run that is gone on with; it has its dataset and its folder."""
    from pipelines.errors import ConfigError
    from pipelines.train.resume import resumed_config

    named = [text for text in overrides if "=" not in text] + [f"--dataset {dataset}"] * bool(dataset)
    named += [f"--out {out}"] * bool(out)
    if named:
        raise ConfigError(
            f"--resume goes on with {run} as it was begun, and {named[0]} is given as well",
            mend="give key=value of what may change and nothing else, for example:"
            f" {render.command('train', '--resume', run, 'num_workers=2')}",
        )
    config = resumed_config(run, overrides)
    render.note(f"train: going on with {config.out}, on the dataset {config.dataset}")
    return config


def _check_range(picture: str, *, smoke: bool) -> None:
    """Refuse a range test that cannot be drawn, or another look at the same time."""
    from pathlib import Path

    from pipelines.errors import ConfigError

    if smoke:
        raise ConfigError("--smoke and --find-lr are two looks at a training", mend="give one of them, then the other")
    if Path(picture).suffix.lower() != ".png":
        raise ConfigError(f"--find-lr draws a PNG, and {picture} is none", mend="--find-lr range.png")


def _probe(config: TrainConfig, picture: str, *, as_json: bool) -> None:
    """Look at the training before it is run: two steps of everything, or the range test."""
    from pipelines.train import probe

    if not picture:
        render.result(probe.smoke(config), as_json=as_json)
        return
    from pathlib import Path

    from pipelines.plots.rate_range import rate_range

    result, points = probe.find_rate(config)
    rates, losses = [point.lr for point in points], [point.smooth for point in points]
    Path(picture).write_bytes(rate_range(rates, losses, probe.suggested_rate(points)).data)
    render.result(result, as_json=as_json)
