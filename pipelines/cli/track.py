"""`resnet track`: send a finished training's records to MLflow, when it was away until the end."""

from __future__ import annotations

import click

from pipelines.cli import options, render
from pipelines.cli.models import tracking_of, tracking_uri

EXAMPLES = ("resnet track runs/train/1a2b3c4d5e6f --tracking http://HOST:5000",)


@click.command("track", epilog=options.examples(*EXAMPLES))
@click.argument("run")
@tracking_uri
@options.as_json
def command(run: str, tracking: str, as_json: bool) -> None:
    """Send what MLflow lacks of RUN, a folder that `resnet train` wrote; nothing is recorded twice.

    It goes to the store and experiment that the run was begun with, unless --tracking names another store.
    """
    from pipelines.train import stage

    render.result(stage.deliver(run, tracking_of(tracking)), as_json=as_json)
