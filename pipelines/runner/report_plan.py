"""The report's key and place: it depends on the outputs it shows and on nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.config.strict import StrictModel, runtime_field
from pipelines.runner.graph import Made
from pipelines.stage_output import Plan, default_out, stage_key
from pipelines.storage import Storage

OUTPUT_VERSION = 1
PAGE = "report.html"


class ReportConfig(StrictModel):
    """What a report shows."""

    name: str
    """Name of the pipeline, the page's title."""

    outputs: dict[str, str]
    """Key of every stage's output, by stage name."""

    out: str = runtime_field("")
    """Folder of the page."""


def report_config(name: str, made: Mapping[str, Made]) -> ReportConfig:
    """Return the report's config for the outputs that a run has made."""
    return ReportConfig(name=name, outputs={stage: one.key for stage, one in made.items()})


def plan(config: ReportConfig) -> Plan:
    """Return the report's plan."""
    key = stage_key("report", config, {}, OUTPUT_VERSION)
    return Plan("report", key, dict(config.outputs), config.out or default_out("report", key))


def place(root: str) -> str:
    """Return where a run's newest report stands, beside its stages."""
    return f"{root}/{PAGE}"


def show(root: str, out: str) -> None:
    """Put the report of the run's present outputs at ROOT/report.html, unless it stands there already."""
    page = Storage.open(out).read(PAGE)
    top = Storage.open(root)
    if not top.exists(PAGE) or top.read(PAGE) != page:
        top.put(PAGE, page)
