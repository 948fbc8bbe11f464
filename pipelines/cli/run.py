"""`resnet run`: every stage of a pipeline, skipping what is done."""

from __future__ import annotations

import click

from pipelines.cli import options, render

EXAMPLES = (
    "resnet run demo",
    "resnet run cifar10 source=cifar10-train.zip --explain",
    "resnet run my-run.yaml train.epochs=30 --from train",
)


@click.command("run", epilog=options.examples(*EXAMPLES))
@click.argument("config", metavar="CONFIG")
@options.overrides
@click.option("--explain", is_flag=True, help="Say for each stage whether it would run and why; run nothing.")
@click.option("--from", "from_stage", default="", metavar="STAGE", help="Run STAGE and all after it again.")
@click.option("--only", "only_stage", default="", metavar="STAGE", help="Run STAGE alone, on what stands before it.")
@options.out
@options.dry_run
@options.as_json
def command(
    config: str,
    overrides: tuple[str, ...],
    explain: bool,
    from_stage: str,
    only_stage: str,
    out: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run a whole pipeline: ingest, train, tune, evaluate, register, score, report.

    CONFIG is a preset (`demo`, `cifar10`) or a YAML file. A stage whose output stands is skipped.
    """
    from pipelines.config.load import load_config
    from pipelines.runner import execute
    from pipelines.runner.config import RunConfig

    resolved = load_config(RunConfig, options.config_path("run", config), overrides, options.given(out=out))
    if dry_run:
        values = resolved.model_dump(mode="json")
        render.as_json(values) if as_json else render.as_yaml(values)
        return
    choice = execute.Choice(from_stage=from_stage, only_stage=only_stage)
    if explain:
        steps = execute.explain(resolved, choice)
        if as_json:
            render.as_json([step.to_json() for step in steps])
            return
        render.table(("stage", "verdict", "why"), [(step.stage, step.verdict, step.reason) for step in steps])
        render.next_steps([options.repeat("run", config, overrides, out=out)])
        return
    outcome = execute.run(resolved, choice, say=render.note, repeat=options.repeat("run", config, overrides, out=out))
    render.result(outcome, as_json=as_json)
