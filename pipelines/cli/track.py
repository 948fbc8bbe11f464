"""`resnet track`: send the records of a finished training or sweep to MLflow, when it was away until the end."""

from __future__ import annotations

import click

from pipelines.cli import options, render
from pipelines.cli.models import tracking_of, tracking_uri

EXAMPLES = (
    "resnet track runs/train/1a2b3c4d5e6f --tracking http://HOST:5000",
    "resnet track runs/tune/6f5e4d3c2b1a",
)


@click.command("track", epilog=options.examples(*EXAMPLES))
@click.argument("run")
@tracking_uri
@options.as_json
def command(run: str, tracking: str, as_json: bool) -> None:
    """Send what MLflow lacks of RUN, a folder that `resnet train` or `resnet tune` wrote; nothing is recorded twice.

    It goes to the store and experiment that the run was begun with, unless --tracking names another store.
    """
    from pipelines.stage_output import read_catalog
    from pipelines.storage import Storage

    if (read_catalog(Storage.open(run)) or {}).get("stage") == "tune":
        from pipelines.tune.deliver import deliver
    else:
        from pipelines.train.deliver import deliver
    render.result(deliver(run, tracking_of(tracking)), as_json=as_json)
