"""`resnet ui`: the MLflow UI on the store that the stages write to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import click

from pipelines.cli import options, render
from pipelines.errors import InputError

DEFAULT_PORT = 5000
_PORTS_TRIED = 20
_GRACE_S = 10


@click.command("ui")
@options.overrides
@click.option(
    "--port", default=DEFAULT_PORT, show_default=True, help="Port on the loopback; the next free one is taken."
)
@click.option("--dry-run", is_flag=True, help="Print the store and the address, start nothing.")
def command(overrides: tuple[str, ...], port: int, dry_run: bool) -> None:
    """Start the MLflow UI on the loopback and print its address; Ctrl-C ends it.

    The store is the one of the stages: `uri=...`, else MLFLOW_TRACKING_URI, else runs/mlflow.db here.
    """
    from pipelines.config.load import load_config
    from pipelines.redact import redact
    from pipelines.tracking import TrackingConfig, browser_address, is_server, resolve_uri

    uri = resolve_uri(load_config(TrackingConfig, None, overrides))
    if is_server(uri):
        click.echo(f"the store is a server; its UI is at {render.clean(browser_address(uri))}")
        return
    address = f"http://127.0.0.1:{free_port(port)}"
    click.echo(f"store: {render.clean(redact(uri))}\nui:    {address}")
    if dry_run:
        return
    click.echo("Ctrl-C ends it", err=True)
    sys.stdout.flush()
    raise SystemExit(serve(uri, address))


def free_port(wanted: int) -> int:
    """Return the first free port of the loopback from `wanted` on.

    Raises:
        InputError: none of the next 20 is free.
    """
    import socket

    for port in range(wanted, wanted + _PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise InputError(
        f"no port from {wanted} to {wanted + _PORTS_TRIED - 1} is free on 127.0.0.1", mend="resnet ui --port 5500"
    )


def serve(uri: str, address: str) -> int:
    """Run MLflow's server as a child until it ends or a signal ends us; return its exit code."""
    from pipelines.tracking import open_client

    open_client(uri)  # a new store is made whole here; the server would do so in place
    port = address.rsplit(":", 1)[1]
    arguments = ["server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,  # all users of a machine see arguments, and an address may hold a password
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its workers serve nothing that is shown here
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    # A group of its own: MLflow's server has children, and one that is killed would leave them behind with the port.
    arguments = [sys.executable, "-m", "mlflow", *arguments]
    child = subprocess.Popen(arguments, env=environment, start_new_session=True)  # noqa: S603 our own words
    try:
        return child.wait()
    finally:
        _end_group(child)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End a child and all its children, politely first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return
        try:
            child.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            continue
