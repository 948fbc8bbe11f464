"""What an ingest would do: its key from the listing and the config, and where its output goes."""

from __future__ import annotations

import json

from pipelines.config.strict import first_values
from pipelines.ingest.config import IngestConfig
from pipelines.sources.base import Source
from pipelines.sources.columns import Columns
from pipelines.sources.resolve import open_source
from pipelines.stage_output import Plan, default_out, stage_key

STAGE = "ingest"
OUTPUT_VERSION = 4
"""Raised where the same source and settings come to other rows or another order of them; 3: units of 8,192 rows;
4: large row groups of Parquet are cut, and units of IDX files and of tables' own rows hold 8,192 rows too."""


def plan(config: IngestConfig) -> Plan:
    """Return the plan; the source is listed, nothing of it is decoded.

    Raises:
        InputError: the source is missing, or nothing that images are read from.
    """
    from pipelines.ingest.standing import settled

    config = settled(config)
    return make_plan(config, open_images(config))


def open_images(config: IngestConfig) -> Source:
    """Open the source that a config names, with its table of labels where it names one.

    Raises:
        InputError: the source or the table is missing, or not what it is taken for.
    """
    told = ("", "") if config.labels else (config.label_column, config.label_separator)
    source = open_source(config.source, config.source_name, columns=Columns(config.image_column, *told))
    source.tells_keys = not config.privacy.applies
    if config.labels:
        from pipelines.sources.labelled import LabelledSource, read_labels

        table = read_labels(config.labels, column=config.label_column, separator=config.label_separator)
        source = LabelledSource(source, table)
        source.tells_keys = not config.privacy.applies
    source.task = config.task
    return source


def make_plan(config: IngestConfig, source: Source) -> Plan:
    """Return the plan for a source that is already open.

    The key holds the source's name and digest instead of its address, so that a source that moved is known again.
    """
    key = _key(config, source, OUTPUT_VERSION)
    return Plan(STAGE, key, _inputs(source), config.out or default_out(STAGE, key))


def earlier_keys(config: IngestConfig, source: Source) -> list[str]:
    """Return the keys under which the same content and settings stand in a dataset that an earlier release made.

    The last one is that of a dataset to which this release has appended, with the dataset's settings.
    """
    first = as_first(config)
    later = [_key(config, source, version) for version in range(2, OUTPUT_VERSION)]
    return [*later, *(_key(first, source, version) for version in range(1, OUTPUT_VERSION + 1))]


def as_first(config: IngestConfig) -> IngestConfig:
    """Return the config with what the first release did in place of defaults that came after it."""
    return IngestConfig.model_validate_json(json.dumps(first_values(config)))


def _key(config: IngestConfig, source: Source, output_version: int) -> str:
    # What a table says is in the listing's digest, wherever the table lies.
    settings = config.model_copy(update={"source": "", "source_name": "", "labels": ""})
    return stage_key(STAGE, settings, _inputs(source), output_version)


def _inputs(source: Source) -> dict[str, str]:
    return {"name": source.name, "listing": source.listing_digest()}
