"""What an ingest would do: its key from the listing and the config, and where its output goes."""

from __future__ import annotations

from pipelines.ingest.config import IngestConfig
from pipelines.sources.base import Source
from pipelines.sources.resolve import open_source
from pipelines.stage_output import Plan, default_out, stage_key

STAGE = "ingest"
OUTPUT_VERSION = 1


def plan(config: IngestConfig) -> Plan:
    """Return the plan; the source is listed, nothing of it is decoded.

    Raises:
        InputError: the source is missing, or nothing that images are read from.
    """
    return make_plan(config, open_source(config.source, config.source_name))


def make_plan(config: IngestConfig, source: Source) -> Plan:
    """Return the plan for a source that is already open.

    The key holds the source's name and digest instead of its address, so that a source that moved is known again.
    """
    inputs = {"name": source.name, "listing": source.listing_digest()}
    settings = config.model_copy(update={"source": "", "source_name": ""})
    key = stage_key(STAGE, settings, inputs, OUTPUT_VERSION)
    return Plan(STAGE, key, inputs, config.out or default_out(STAGE, key))
