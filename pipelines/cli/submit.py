"""`resnet submit`: any stage as a job on a Ray cluster."""

from __future__ import annotations

from dataclasses import asdict

import click

from pipelines.cli import options, render

EXAMPLES = (
    "resnet submit ingest s3://b/photos.zip --out s3://b/photos --address http://HOST:8265",
    "resnet submit train cifar-fast --dataset s3://b/photos --out s3://b/run epochs=30 -f",
)


@click.command("submit", context_settings={"ignore_unknown_options": True}, epilog=options.examples(*EXAMPLES))
@click.argument("stage")
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS OF THE STAGE ...]")
@options.address
@click.option("--key", default="", metavar="TEXT", help="Idempotency key: the same key twice is one job.")
@click.option(
    "--env", multiple=True, metavar="NAME", help="Pass this variable; a secret is hidden from the job's info."
)
@click.option(
    "--code",
    default="here",
    show_default=True,
    type=click.Choice(("here", "cluster")),
    help="Send this machine's packages, or use those installed on the cluster.",
)
@click.option("-f", "--follow", is_flag=True, help="Show the log until the job ends; its exit code becomes ours.")
@options.as_json
def command(
    stage: str,
    args: tuple[str, ...],
    address: str,
    key: str,
    env: tuple[str, ...],
    code: str,
    follow: bool,
    as_json: bool,
) -> None:
    """Run STAGE with its usual arguments on a cluster."""
    from cluster.submit import submit

    submission = submit(stage, args, address, key=key, env=env, code_from=code)
    if as_json:
        render.as_json(asdict(submission))
    else:
        found = "submitted" if submission.is_new else "already there, nothing was started"
        click.echo(f"job: {render.clean(submission.submission_id)}  ({found})")
        render.pairs({"status": submission.status, "runs": submission.entrypoint, "cluster": submission.address})
        if not follow:
            render.next_steps(submission.next_commands)
    if follow:
        from pipelines.cli.jobs import follow_to_end

        raise SystemExit(follow_to_end(submission.address, submission.submission_id))
