"""The entry point of a job that carries hidden variables: set them, then become the `resnet` command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cluster.environment import read_hidden

COMMAND_MODULE = "pipelines.cli.main"


def main() -> None:
    """Replace this process by the command, so that signals and the exit code are the command's own."""
    environment = {**os.environ, **read_hidden(Path.cwd())}
    # The program is this very interpreter and the arguments are the job's own; no shell is involved.
    os.execve(sys.executable, [sys.executable, "-m", COMMAND_MODULE, *sys.argv[1:]], environment)  # noqa: S606


if __name__ == "__main__":
    main()
