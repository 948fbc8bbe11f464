"""The group: lazy, exit codes, signals, and errors in the project's three lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pipelines.cli import main
from pipelines.errors import ClusterError, DataError, InputError

HEAVY = ("torch", "ray", "mlflow", "pandas", "pyarrow", "pydantic", "numpy")


def run(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", *args], capture_output=True, text=True, env=environment, cwd=cwd
    )


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Put a command `fail`, also called `replay`, into the group that raises what stands in the returned list."""
    raised: list[BaseException] = []

    @click.command("fail", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    @click.option("--json", "as_json", is_flag=True)
    def fail(as_json: bool) -> None:
        raise raised[0]

    monkeypatch.setattr(
        main.LazyGroup, "get_command", lambda self, ctx, name: fail if name in ("fail", "replay") else None
    )
    return raised


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from pipelines.cli import main; main.run_command(['--help']);"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
    assert "  doctor    Check that this machine is fit, and say what to mend." in shown.stdout


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_every_command_loads_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_command([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: resnet {name}")


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_command(["trian"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("UsageError: no such command 'trian'")
    assert error.endswith("  where: resnet\n  mend:  resnet --help\n")


def test_a_missing_argument_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_command(["ingest"]) == 2
    assert capsys.readouterr().err == (
        "UsageError: missing argument 'SOURCE'\n  where: resnet ingest\n  mend:  resnet ingest --help\n"
    )


@pytest.mark.parametrize(("error", "code"), [(InputError("i"), 2), (DataError("d"), 3), (ClusterError("c"), 4)])
def test_a_users_error_has_three_lines_and_its_code(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    failing.append(type(error)("photos.zip is empty", where="photos.zip", mend="give another"))
    assert main.run_command(["fail"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (f"{type(error).__name__}: photos.zip is empty\n  where: photos.zip\n  mend:  give another\n")


def test_an_error_as_json_goes_to_stdout_too(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing.append(InputError("gone", where="here", mend="look"))
    assert main.run_command(["fail", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {
        "error": "InputError",
        "what": "gone",
        "where": "here",
        "mend": "look",
    }


def test_control_characters_of_an_error_are_escaped(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(InputError("label \x1b[31mred\x07 \u202egnp.exe"))
    main.run_command(["fail"])
    assert capsys.readouterr().err == "InputError: label \\x1b[31mred\\x07 \\u202egnp.exe\n"


def test_a_bug_shows_its_traceback_and_code_1(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing.append(ZeroDivisionError("oops"))
    assert main.run_command(["fail"]) == 1
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert "This is a bug in resnet-pipelines: ZeroDivisionError: oops" in error
    assert "  where: resnet fail\n" in error


def test_a_users_error_inside_a_foreign_one_is_still_the_users(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    wrapper = RuntimeError("a task failed")
    wrapper.__cause__ = DataError("too many bad images")
    failing.append(wrapper)
    assert main.run_command(["fail"]) == 3
    assert capsys.readouterr().err == "DataError: too many bad images\n"


@pytest.mark.parametrize(
    ("raised", "code", "word"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (main.Terminated(), 143, "terminated"),
        (SystemExit(int(signal.SIGTERM)), 143, "terminated"),
    ],
)
def test_a_signal_ends_with_its_code_and_says_how_to_go_on(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], raised: BaseException, code: int, word: str
) -> None:
    failing.append(raised)
    assert main.run_command(["fail"]) == code
    error = capsys.readouterr().err
    assert f"{word}: finished units stay; the same command goes on from here" in error
    assert error.endswith("next:\n  resnet fail\n")


@pytest.mark.parametrize(
    "words", [["fail", "--find-lr", "range.png"], ["fail", "--find-lr=range.png"], ["fail", "--smoke"], ["replay"]]
)
def test_a_signal_in_a_look_that_keeps_nothing_promises_nothing(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    failing.append(KeyboardInterrupt())
    assert main.run_command(words) == 130
    said = [
        "interrupted: nothing is kept but what was ingested before; the same command starts it anew",
        "next:",
        f"  resnet {' '.join(words)}",
    ]
    assert capsys.readouterr().err.strip().splitlines() == said


def test_a_folder_called_as_a_look_is_none(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing.append(KeyboardInterrupt())
    assert main.run_command(["fail", "replay"]) == 130
    assert "interrupted: finished units stay" in capsys.readouterr().err


def test_sigterm_ends_a_real_process_with_143(tmp_path: Path) -> None:
    # `ui` with a server that never ends stands for any long command.
    code = (
        "import time, pipelines.cli.ui as ui, pipelines.cli.main as main, sys\n"
        "def serve(uri, address):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "ui.serve = serve\n"
        "sys.argv = ['resnet', 'ui', f'uri=sqlite:///{sys.argv[1]}/m.db']\n"
        "main.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert child.stdout is not None
    while child.stdout.readline().strip() != "ready":
        assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    _, error = child.communicate(timeout=20)
    assert child.returncode == 143
    assert "terminated: finished units stay" in error
    assert "Traceback" not in error
