"""`resnet jobs`: the jobs of a Ray cluster, their logs, and stopping one."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict

import click

from pipelines.cli import options, render

EXIT_JOB_FAILED = 4

EXAMPLES = (
    "resnet jobs list --address http://HOST:8265",
    "resnet jobs logs -f JOB --address http://HOST:8265",
)


@click.group("jobs", epilog=options.examples(*EXAMPLES))
def command() -> None:
    """List the jobs of a Ray cluster, read their logs, stop one."""


@command.command("list")
@options.address
@options.as_json
def list_command(address: str, as_json: bool) -> None:
    """List the jobs of the cluster, newest first."""
    from cluster.jobs import list_jobs

    jobs = list_jobs(address)
    if as_json:
        render.as_json([asdict(job) for job in jobs])
        return
    rows = [(job.submission_id, job.stage, job.status, _age(job.started_s), job.message[:60]) for job in jobs]
    render.table(("job", "stage", "status", "started", "message"), rows)
    if jobs:
        render.next_steps([f"resnet jobs logs {jobs[0].submission_id} --address {address}"])


@command.command("logs")
@click.argument("job")
@options.address
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends; its exit code becomes ours.")
def logs(job: str, address: str, follow: bool) -> None:
    """Print what a job has said, complete as long as its cluster lives."""
    from cluster.jobs import read_logs

    if follow:
        raise SystemExit(follow_to_end(address, job))
    text = read_logs(address, job)
    click.echo(render.clean_lines(text), nl=not text.endswith("\n"))


@command.command("stop")
@click.argument("job")
@options.address
@options.as_json
def stop(job: str, address: str, as_json: bool) -> None:
    """Stop a job; what it finished stays, and the same command goes on from there."""
    from cluster.jobs import stop as stop_job

    ended = stop_job(address, job)
    if as_json:
        render.as_json(asdict(ended))
        return
    click.echo(f"job: {render.clean(ended.submission_id)}  {ended.status}")
    render.next_steps([f"resnet jobs list --address {address}"])


def follow_to_end(address: str, job: str) -> int:
    """Print a job's log until it ends and return its exit code (4 where the cluster gives none for a failure)."""
    from cluster.jobs import find_job, follow_logs

    for chunk in follow_logs(address, job):
        click.echo(render.clean_lines(chunk), nl=False)
        sys.stdout.flush()
    ended = find_job(address, job)
    render.note(f"job {job}: {ended.status}{f', {ended.message}' if ended.message else ''}")
    if ended.status == "SUCCEEDED":
        return 0
    return ended.exit_code if ended.exit_code else EXIT_JOB_FAILED


def _age(started_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started_s)) if started_s else "-"
