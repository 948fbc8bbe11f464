"""A run from end to end: decide each stage, run what is not done in one Ray session, hand its output to the next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pipelines.config.strict import StrictModel
from pipelines.errors import ConfigError, DataError
from pipelines.metrics.deciding import find_deciding
from pipelines.runner import cache, graph, report_plan
from pipelines.runner.cache import Decision
from pipelines.runner.config import RunConfig
from pipelines.runner.graph import Made, Node
from pipelines.stage_output import StageResult

_STAGES = {
    "demo-data": "pipelines.runner.demo",
    "ingest": "pipelines.ingest.stage",
    "train": "pipelines.train.stage",
    "tune": "pipelines.tune.stage",
    "evaluate": "pipelines.evaluate.stage",
    "register": "pipelines.registry.stage",
    "score": "pipelines.score.stage",
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """Which stages are meant: all, all from one on (again), or one alone. Empty names mean no restriction."""

    from_stage: str = ""
    only_stage: str = ""


def root_of(config: RunConfig) -> str:
    """Return the folder of a run."""
    return f"{config.out.rstrip('/')}/{config.name}"


def explain(config: RunConfig, choice: Choice) -> list[Decision]:
    """Return what would happen to each stage and why; nothing is run."""
    nodes = _chosen(config, choice)
    before = cache.read_summary(root_of(config))
    made: dict[str, Made] = {}
    waiting: list[str] = []
    steps: list[Decision] = []
    for node in nodes:
        blocked = [stage for stage in node.after if stage in waiting]
        if blocked:
            waiting.append(node.stage)
            steps.append(cache.waits(node.stage, blocked))
            continue
        decision, _, _ = _decide(config, node, made, choice, before, nodes)
        steps.append(decision)
        if decision.verdict == "run":
            waiting.append(node.stage)
        else:
            made[node.stage] = _made(decision)
    return steps if not choice.only_stage else [step for step in steps if step.stage == choice.only_stage]


def run(config: RunConfig, choice: Choice, *, say: Say, repeat: str) -> StageResult:
    """Run a pipeline and return its report's place and main figures.

    Args:
        config: the pipeline.
        choice: which stages are meant.
        say: takes one line of news at a time.
        repeat: the command line that does the same again, for the report and the closing lines.

    Raises:
        ConfigError: `choice` names a stage that the run does not have, or two that differ.
        InputError: `--only` names a stage whose inputs do not stand.
    """
    root, nodes = root_of(config), _chosen(config, choice)
    before = cache.read_summary(root)
    made: dict[str, Made] = {}
    entries: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    with ExitStack() as session:
        is_connected = False
        for node in nodes:
            decision, plan_inputs, section = _decide(config, node, made, choice, before, nodes)
            is_target = choice.only_stage in ("", node.stage)
            if decision.verdict == "run" and not is_target:
                raise cache.refuse_missing(choice.only_stage, [node.stage])
            say(f"{node.stage}: {'skipped' if decision.verdict == 'skip' else 'runs'}, {decision.reason}")
            if decision.verdict == "run":
                if node.needs_ray and not is_connected:
                    from pipelines.ray_runtime import ray_session

                    started_s = time.monotonic()
                    session.enter_context(ray_session(config.ray))
                    is_connected = True
                    seconds["ray"] = time.monotonic() - started_s
                started_s = time.monotonic()
                _run_stage(node.stage, config, section, decision, made, repeat)
                seconds[node.stage] = time.monotonic() - started_s
                say(f"{node.stage}: done in {seconds[node.stage]:.1f} s, {decision.out}")
            elif node.stage == graph.REPORT:
                report_plan.show(root, decision.out)  # another run of the same name may have put its own there
            made[node.stage] = _made(decision)
            if node.stage == "ingest":
                _check_data(config, made, nodes)
            entries.append(cache.summary_entry(decision, section, plan_inputs))
            if node.stage == choice.only_stage:
                break
    cache.write_summary(root, config.name, [*entries, *_untouched(before, entries)])
    return _result(config, made, seconds, repeat)


def _check_data(config: RunConfig, made: dict[str, Made], nodes: tuple[Node, ...]) -> None:
    """Refuse, as soon as there is a dataset, what a later stage would refuse in it after hours of training.

    Raises:
        ConfigError, InputError: as the stage's plan.
    """
    for node in nodes:
        if node.stage not in made and "ingest" in node.after and made.keys() >= set(node.after):
            cache.plan_of(node.stage, _section(config, node.stage, made))
        if node.stage == "evaluate":
            from pipelines.evaluate.plan import check_rows

            check_rows(config.evaluate.split, graph.dataset_of(made), made["ingest"].catalog)


def _chosen(config: RunConfig, choice: Choice) -> tuple[Node, ...]:
    nodes = graph.make_graph(config)
    graph.check_stage(nodes, choice.from_stage, "--from")
    graph.check_stage(nodes, choice.only_stage, "--only")
    if choice.from_stage and choice.only_stage not in ("", choice.from_stage):
        raise ConfigError(
            f"--from {choice.from_stage} and --only {choice.only_stage} name two stages",
            mend=f"give one of them, or both as {choice.only_stage} to run it alone again",
        )
    if not choice.only_stage:
        return nodes
    # Only what the stage reads, directly or not, has to stand.
    needed = {choice.only_stage}
    for node in reversed(nodes):
        if node.stage in needed:
            needed.update(node.after)
    return tuple(node for node in nodes if node.stage in needed)


def _decide(
    config: RunConfig,
    node: Node,
    made: dict[str, Made],
    choice: Choice,
    before: dict[str, dict[str, Any]],
    nodes: tuple[Node, ...],
) -> tuple[Decision, dict[str, str], StrictModel]:
    names = [each.stage for each in nodes]
    force = bool(choice.from_stage) and names.index(node.stage) >= names.index(choice.from_stage)
    section = _section(config, node.stage, made)
    decision, plan = cache.decide(node.stage, section, root_of(config), force=force, before=before.get(node.stage, {}))
    return decision, plan.inputs, section


def _section(config: RunConfig, stage: str, made: dict[str, Made]) -> StrictModel:
    if stage == graph.DEMO:
        from pipelines.runner.demo import demo_config

        return demo_config(config.ingest)
    if stage == graph.REPORT:
        return report_plan.report_config(config.name, made)
    return graph.stage_config(config, stage, made)


def _run_stage(
    stage: str, config: RunConfig, section: StrictModel, decision: Decision, made: dict[str, Made], repeat: str
) -> None:
    placed = section.model_copy(update={"out": decision.out})
    if isinstance(placed, report_plan.ReportConfig):
        from pipelines.runner import report

        report.run(placed, config, made, root=root_of(config), repeat=repeat)
        return
    import_module(_STAGES[stage]).run(placed)


def _made(decision: Decision) -> Made:
    catalog = cache.published(decision.stage, decision.out)
    if catalog is None or not cache.is_of(decision.stage, catalog, decision.key):
        raise DataError(
            f"{decision.stage} ended without publishing its catalog in {decision.out}",
            mend="run the same command again; if it stays, report it",
        )
    return Made(decision.out, decision.key, catalog)


def _untouched(before: dict[str, dict[str, Any]], entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    done = {entry["stage"] for entry in entries}
    return [entry for stage, entry in before.items() if stage not in done]


def _result(config: RunConfig, made: dict[str, Made], seconds: dict[str, float], repeat: str) -> StageResult:
    figures: dict[str, float | int | str] = {}
    last = made[list(made)[-1]]
    if "evaluate" in made:
        metrics = made["evaluate"].catalog["metrics"]
        figures[f"test_{find_deciding(metrics)}"] = float(metrics[find_deciding(metrics)])
    if "register" in made:
        standing = made["register"].catalog
        figures["model"] = f"models:/{standing['name']}/{standing['version']}"
    commands = [repeat]
    if graph.REPORT in made:
        figures["report"] = report_plan.place(root_of(config))
        commands = ["resnet ui"]
        if "://" not in root_of(config):
            commands.insert(0, f"python -m webbrowser {shlex.quote(str(figures['report']))}")
    if "register" in made:
        commands.append(f"resnet models show {shlex.quote(made['register'].catalog['name'])}")
    figures.update({f"{stage}_s": round(spent, 1) for stage, spent in seconds.items()})
    return StageResult(
        stage="run",
        out=root_of(config),
        key=last.key,
        skipped=not seconds,
        figures=figures,
        next_commands=tuple(commands),
    )
