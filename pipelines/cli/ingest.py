"""`resnet ingest`: images become a Parquet dataset."""

from __future__ import annotations

import click

from pipelines.cli import options, render

EXAMPLES = (
    "resnet ingest photos.zip --out datasets/photos",
    "resnet ingest photos/ --out s3://bucket/photos split.test=0.1 image.size_px=64",
    "resnet ingest 's3://bucket/2024-*/' --out datasets/photos-2024",
    "resnet ingest more.zip --out datasets/photos --append",
    "resnet ingest mended.zip --out datasets/photos --retry-failed",
)


@click.command("ingest", epilog=options.examples(*EXAMPLES))
@click.argument("source")
@options.overrides
@options.config_file("ingest")
@options.out
@click.option("--append", is_flag=True, help="Add what is new or changed to the dataset at --out, as its next version.")
@click.option("--retry-failed", is_flag=True, help="Read what --out refused of this source again, and nothing else.")
@options.dry_run
@options.as_json
def command(
    source: str,
    overrides: tuple[str, ...],
    config_source: str,
    out: str,
    append: bool,
    retry_failed: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Turn SOURCE (a folder, archive, Parquet, quoted pattern or torchvision:NAME) into a dataset of plain Parquet."""
    from pipelines.config.load import load_config
    from pipelines.ingest.config import IngestConfig

    inputs = options.given(source=source, out=out) | ({"append": True} if append else {})
    inputs |= {"retry_failed": True} if retry_failed else {}
    config = load_config(IngestConfig, options.config_path("ingest", config_source), overrides, inputs)
    if dry_run:
        options.show_plan("ingest", config, as_json=as_json)
        return
    from pipelines.ingest import stage

    render.result(stage.run(config), as_json=as_json)
