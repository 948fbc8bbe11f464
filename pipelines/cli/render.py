"""How results, configurations and errors look on a terminal, and as JSON for machines."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from pipelines.errors import PipelineError

if TYPE_CHECKING:  # pydantic stands behind it, and help must be instant
    from pipelines.stage_output import StageResult

# Bidirectional overrides and zero-width marks: a label that holds them could show another text than it is.
_DECEPTIVE = frozenset(
    "\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)
_CHAIN_LIMIT = 20
_LOOKS = frozenset({"--smoke", "--find-lr", "--dry-run"})
"""Flags with which nothing is kept of the work itself until all is done."""


def clean(text: str) -> str:
    """Return text with control and deceptive characters escaped, so that a label cannot drive the terminal."""
    return "".join(_escaped(character) if _is_unsafe(character) else character for character in text)


def clean_lines(text: str) -> str:
    """Return text cleaned line by line; line breaks stay."""
    return "\n".join(clean(line) for line in text.split("\n"))


def _is_unsafe(character: str) -> bool:
    code = ord(character)
    return (
        (code < 0x20 and character != "\t") or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or character in _DECEPTIVE
    )


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def number(value: object) -> str:
    """Return a figure as people read it: four places at most and one at least, counts with separators."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if abs(value) >= 1000:
            return f"{value:,.0f}"
        whole, _, places = f"{value:.4f}".partition(".")
        return f"{whole}.{places.rstrip('0') or '0'}"
    return clean(str(value))


def result(outcome: StageResult, *, as_json: bool = False) -> None:
    """Print what a stage made, its figures, and the next commands to paste."""
    if as_json:
        click.echo(json.dumps(outcome.to_json(), indent=2, sort_keys=True, default=str))
        return
    note = "  (already done, nothing was run)" if outcome.skipped else ""
    click.echo(f"{outcome.stage}: {clean(outcome.out)}{note}")
    pairs(outcome.figures)
    next_steps(outcome.next_commands)


def pairs(values: Mapping[str, object], *, indent: str = "  ") -> None:
    """Print names and values in two columns."""
    width = max((len(clean(name)) for name in values), default=0)
    for name, value in values.items():
        click.echo(f"{indent}{clean(name):<{width}}  {number(value)}")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under a header; columns as wide as their content."""
    texts = [list(header), *([number(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    for row in texts:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def command(*words: str) -> str:
    """Return a command of `resnet`, quoted for a shell."""
    return shlex.join(["resnet", *words])


def show_page(page: str) -> str:
    """Return the command that opens a page, quoted for a shell."""
    return shlex.join(["python", "-m", "webbrowser", page])


def network_step(reference: str, *, task: str, classes: Sequence[str]) -> str:
    """Return the command that goes on with a dataset: training, where its images have classes."""
    if not classes or task not in ("single", "multi"):
        return command("data", "sheet", reference)
    return command("train", reference) if task == "single" else command("train", reference, "loss.name=bce")


def next_steps(commands: Sequence[str]) -> None:
    """Print the commands that usually follow, each on a line of its own, ready to paste."""
    if not commands:
        return
    click.echo("next:")
    for command in commands:
        click.echo(f"  {clean(command)}")


def as_yaml(values: Any) -> None:
    """Print values as YAML, in the order of the schema."""
    import yaml

    click.echo(
        yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110), nl=False
    )


def as_json(values: Any) -> None:
    """Print values as indented JSON."""
    click.echo(json.dumps(values, indent=2, default=str))


def fail(error: PipelineError, *, as_json: bool = False) -> None:
    """Print a user's error to stderr in its three lines; with `as_json` also as an object on stdout."""
    if as_json:
        body = {"error": type(error).__name__, "what": error.what, "where": error.where, "mend": error.mend}
        click.echo(json.dumps(body, indent=2))
    click.echo(clean_lines(str(error)), err=True)


def find_user_error(error: BaseException) -> PipelineError | None:
    """Return the user's error that a foreign exception wraps (Ray hands a task's error on as its cause), if any."""
    seen: BaseException | None = error
    for _ in range(_CHAIN_LIMIT):
        if seen is None:
            return None
        if isinstance(seen, PipelineError):
            return seen
        inner = getattr(seen, "cause", None)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
    return None


def interrupted(word: str, args: Sequence[str]) -> None:
    """Say that a signal ended the work and how to go on."""
    command = next((arg for arg in args if not arg.startswith("-")), "")
    keeps_nothing = command == "replay" or any(arg.partition("=")[0] in _LOOKS for arg in args)
    again = "nothing is kept but what was ingested before; the same command starts it anew"
    onward = "finished units stay; the same command goes on from here"
    click.echo(f"\n{word}: {again if keeps_nothing else onward}", err=True)
    click.echo(f"next:\n  {clean(shlex.join(['resnet', *args]))}", err=True)


def bug(error: BaseException, args: Sequence[str]) -> None:
    """Say, below the traceback, that this is ours to mend."""
    command = shlex.join(["resnet", *args])
    click.echo(f"\nThis is a bug in resnet-pipelines: {type(error).__name__}: {clean_lines(str(error))}", err=True)
    click.echo(f"  where: {clean(command)}\n  mend:  report the lines above together with `resnet doctor`", err=True)


def note(text: str) -> None:
    """Print a remark to stderr, so that stdout holds results only."""
    click.echo(clean_lines(text), err=True)
    sys.stderr.flush()
