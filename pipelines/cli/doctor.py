"""`resnet doctor`: is this machine fit, and what to mend."""

from __future__ import annotations

from dataclasses import asdict

import click

from pipelines.cli import options, render

EXIT_UNFIT = 4
_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}

EXAMPLES = (
    "resnet doctor",
    "resnet doctor --address http://HOST:8265 --storage s3://bucket/prefix",
)


@click.command("doctor", epilog=options.examples(*EXAMPLES))
@options.address
@click.option("--storage", default="", metavar="URI", help="Also try this storage: write, read, create twice, delete.")
@options.as_json
def command(address: str, storage: str, as_json: bool) -> None:
    """Check this machine (and a cluster, with --address) and say what to mend; exit code 4 when something fails."""
    from cluster.doctor import check_all, worst

    checks = check_all(address=address, storage=storage)
    verdict = worst(checks)
    if as_json:
        render.as_json({"verdict": verdict, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            click.echo(f"{_MARKS[check.status]}  {check.name}: {render.clean(check.found)}")
            if check.cure:
                click.echo(f"      mend: {render.clean(check.cure)}")
        failed = sum(check.status == "fail" for check in checks)
        warned = sum(check.status == "warn" for check in checks)
        click.echo(f"{len(checks)} checks, {failed} failed, {warned} to look at")
        render.next_steps(["resnet run demo"] if verdict != "fail" else ["resnet doctor"])
    if verdict == "fail":
        raise SystemExit(EXIT_UNFIT)
