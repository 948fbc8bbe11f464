"""The `resnet` group: commands are loaded when called, errors become exit codes, signals end the work cleanly."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NamedTuple

import click

from pipelines.cli import render
from pipelines.errors import PipelineError

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class Entry(NamedTuple):
    """Where a command lives and its line in `resnet --help`, kept here so that help imports no command."""

    module: str
    short_help: str


COMMANDS: dict[str, Entry] = {
    "run": Entry("run", "Run every stage of a pipeline, skipping what is done."),
    "ingest": Entry("ingest", "Turn a folder or an archive of images into a Parquet dataset."),
    "train": Entry("train", "Train one network on a dataset."),
    "replay": Entry("replay", "Do a window of a training run once more and compare it."),
    "track": Entry("track", "Send a finished training's records to MLflow, if it was away."),
    "tune": Entry("tune", "Search depth, width and learning rate."),
    "evaluate": Entry("evaluate", "Measure a model on a split of a dataset."),
    "models": Entry("models", "List, show, register, promote, open or import models."),
    "describe": Entry("describe", "Show a network: layers, parameters, memory, a diagram."),
    "score": Entry("score", "Predict every image of an archive with a registered model."),
    "ui": Entry("ui", "Start the MLflow UI on the store that the stages write to."),
    "data": Entry("data", "Show, verify or list the files of a dataset."),
    "submit": Entry("submit", "Run any stage as a job on a Ray cluster."),
    "jobs": Entry("jobs", "List jobs of a Ray cluster, read their logs, stop one."),
    "config": Entry("config", "Show, describe or check a configuration without running it."),
    "doctor": Entry("doctor", "Check that this machine is fit, and say what to mend."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, so that help stays instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the road."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command; None when there is no such command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"pipelines.cli.{entry.module}")
        command = module.command
        if not isinstance(command, click.Command):
            raise TypeError(f"pipelines.cli.{entry.module}.command is {command!r}; it must be a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command table from `COMMANDS`, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.short_help) for name, entry in COMMANDS.items()])


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"resnet-pipelines {version('resnet-pipelines')}")
    except PackageNotFoundError:
        click.echo("resnet-pipelines (not installed; run from its source folder)")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `resnet run demo`; `resnet COMMAND --help` explains one command.",
)
@click.option("--version", is_flag=True, callback=_show_version, expose_value=False, is_eager=True, help="Show it.")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and the result.")
@click.option("-v", "--verbose", is_flag=True, help="Also what Ray, MLflow and torch have to say.")
def group(quiet: bool, verbose: bool) -> None:
    """Images in, a registered residual network and scored archives out."""
    from pipelines.cli import quiet as hush

    hush.configure("quiet" if quiet else "verbose" if verbose else "normal")


class UsageError(PipelineError):
    """A command line that names no command, or gives it the wrong arguments."""

    exit_code = EXIT_USAGE


class Terminated(BaseException):
    """SIGTERM arrived; not an Exception, so that no stage can swallow it."""


def _on_sigterm(_signum: int, _frame: FrameType | None) -> None:
    raise Terminated


def run_command(args: Sequence[str]) -> int:
    """Run one command line and return its exit code; every outcome is turned into a message here and nowhere else."""
    as_json = "--json" in args
    try:
        group.main(args=list(args), prog_name="resnet", standalone_mode=False)
    except PipelineError as error:
        render.fail(error, as_json=as_json)
        return error.exit_code
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return EXIT_USAGE
    except click.ClickException as error:
        render.fail(_usage_error(error), as_json=as_json)
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        render.interrupted("interrupted", args)
        return EXIT_INTERRUPTED
    except Terminated:
        render.interrupted("terminated", args)
        return EXIT_TERMINATED
    except SystemExit as ended:
        # Ray replaces the SIGTERM handler by one that exits with the signal's number.
        if ended.code == signal.SIGTERM:
            render.interrupted("terminated", args)
            return EXIT_TERMINATED
        return ended.code if isinstance(ended.code, int) else EXIT_BUG
    except BrokenPipeError:
        # The reader (`| head`) has gone; without this Python complains again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 the process boundary: a bug of ours always shows its traceback
        user_error = render.find_user_error(error)
        if user_error is not None:
            render.fail(user_error, as_json=as_json)
            return user_error.exit_code
        traceback.print_exc()
        render.bug(error, args)
        return EXIT_BUG
    return 0


def _usage_error(error: click.ClickException) -> PipelineError:
    """Return click's complaint in the project's own three lines."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context else "resnet"
    message = error.format_message().rstrip(".")
    return UsageError(message[:1].lower() + message[1:], where=path, mend=f"{path} --help")


def main() -> None:
    """Enter from the console script `resnet` and from `python -m pipelines.cli.main`."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    code = run_command(sys.argv[1:])
    if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
        # Leaving takes a moment (Ray's processes are stopped at exit); a second Ctrl-C must not cut that short.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
