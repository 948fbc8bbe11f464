"""`resnet replay`: do a window of a finished training run once more and say whether it agrees."""

from __future__ import annotations

import click

from pipelines.cli import options, render

EXAMPLES = (
    "resnet replay runs/train/1a2b3c4d5e6f",
    "resnet replay runs/train/1a2b3c4d5e6f --window 50 --workers 2",
)


@click.command("replay", epilog=options.examples(*EXAMPLES))
@click.argument("run")
@options.overrides
@click.option("--window", type=int, default=None, metavar="STEPS", help="Steps to do once more (default: 50).")
@click.option("--workers", type=int, default=None, metavar="N", help="Training processes to do them with (default: 1).")
@options.as_json
def command(run: str, overrides: tuple[str, ...], window: int | None, workers: int | None, as_json: bool) -> None:
    """Do a window of RUN once more, from a checkpoint that it kept, and compare ids and losses step by step.

    The certificate is written into the run's folder and added to its MLflow run. Exit code 3: they do not agree.
    """
    from pipelines.config.load import load_config
    from pipelines.train.config import ReplayConfig

    given = {name: value for name, value in (("window", window), ("workers", workers)) if value is not None}
    config = load_config(ReplayConfig, None, overrides, {"run": run, **given})
    from pipelines.train import replay  # torch loads here, so that --help stays instant

    render.result(replay.run(config), as_json=as_json)
