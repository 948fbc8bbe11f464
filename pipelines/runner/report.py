"""The report of a run: one self-contained page that shows every stage, and the commands that repeat each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pipelines.plots.page import Page
from pipelines.runner import graph, report_data, report_model
from pipelines.runner.config import RunConfig
from pipelines.runner.graph import Made
from pipelines.runner.report_plan import PAGE, ReportConfig, plan, show
from pipelines.stage_output import StageResult, open_run, publish_catalog
from pipelines.storage import Storage


def run(config: ReportConfig, pipeline: RunConfig, made: Mapping[str, Made], *, root: str, repeat: str) -> StageResult:
    """Write the report of the outputs that a run has made, and put a copy of it beside the stages."""
    planned = plan(config)
    storage = Storage.open(planned.out)
    open_run(storage, graph.REPORT, planned.key, {})
    page = make_page(pipeline, made, repeat).render()
    storage.put(PAGE, page)
    publish_catalog(
        storage,
        {
            "stage": graph.REPORT,
            "key": planned.key,
            "page": PAGE,
            "sha256": hashlib.sha256(page).hexdigest(),
            "bytes": len(page),
            "outputs": dict(config.outputs),
        },
    )
    show(root, planned.out)
    return StageResult(graph.REPORT, planned.out, planned.key, False, {"bytes": len(page)}, ())


def make_page(pipeline: RunConfig, made: Mapping[str, Made], repeat: str) -> Page:
    """Return the page of a run."""
    evaluation, registered = made["evaluate"].catalog, made["register"].catalog
    splits = made["ingest"].catalog["splits"]
    worth = report_model.describe_result(evaluation)
    images = sum(int(split["rows"]) for split in splits.values())
    classes = made["ingest"].catalog["classes"]
    page = Page(
        f"{pipeline.name}: run report",
        kicker="resnet-pipelines",
        lead=(
            f"{images:,} images of {len(classes)} classes became {registered['name']} version {registered['version']},"
            f" a residual network {worth} {int(splits['test']['rows']):,} test images."
        ),
        footer=f"Made by {repeat}. Everything on this page is read from the catalogs named under Lineage.",
    )
    report_model.add_summary(page, made)
    report_data.add_data(page, pipeline, made)
    if graph.DEMO in made:
        report_data.add_planted(page, made)
    report_model.add_training(page, made)
    if "tune" in made:
        report_model.add_sweep(page, made)
    report_model.add_test(page, made)
    report_model.add_mistakes(page, made)
    if "score" in made:
        report_data.add_scored(page, pipeline, made)
    report_data.add_lineage(page, made)
    report_data.add_commands(page, pipeline, made, repeat)
    return page
