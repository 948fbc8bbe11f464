"""By what a run was made: the commit in a checkout, the installed version elsewhere, and nothing of who or where."""

from __future__ import annotations

import getpass
import json
import logging
import platform
import subprocess
from pathlib import Path

import pytest

from pipelines.storage import Storage
from pipelines.train import environment


def commit_one(place: Path) -> str:
    """Make a checkout of one file; return its commit."""
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@e", "-C", str(place)]
    (place / "code.py").write_text("1\n")
    clean = {"GIT_CONFIG_GLOBAL": "/dev/null", "PATH": "/usr/bin:/bin:/usr/local/bin"}
    for words in (["init", "-q"], ["add", "code.py"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True, env=clean)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, env=clean, capture_output=True, text=True)
    return head.stdout.strip()


def test_a_checkout_says_its_commit_and_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another"))  # as in a hook
    head = commit_one(tmp_path)
    described = environment._describe_code(tmp_path)
    assert described == {"version": described["version"], "commit": head, "changed": False}
    (tmp_path / "notes.txt").write_text("not code\n")
    assert not environment._describe_code(tmp_path)["changed"]
    (tmp_path / "pipelines" / "train").mkdir(parents=True)
    (tmp_path / "pipelines" / "train" / "new.py").write_text("2\n")
    assert environment._describe_code(tmp_path)["changed"]
    (tmp_path / "pipelines" / "train" / "new.py").unlink()
    (tmp_path / "code.py").write_text("2\n")
    assert environment._describe_code(tmp_path)["changed"]


@pytest.mark.parametrize("fails", ["status", "ls-files"])
def test_a_checkout_that_git_does_not_look_through_is_not_called_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    head, git = commit_one(tmp_path), environment._git

    def ask(root: Path, *words: str) -> str | None:
        return None if words[0] == fails else git(root, *words)

    monkeypatch.setattr(environment, "_git", ask)
    described = environment._describe_code(tmp_path)
    assert described == {"version": described["version"], "commit": head}
    tags = environment.environment_tags({"code": described, "packages": {}, "python": "3", "platform": "p"})
    assert tags["mlflow.source.git.commit"] == head
    assert "resnet.code_changed" not in tags


@pytest.mark.parametrize("damaged", [b"", b"{}", b'{"format_version": 2}', b'{"format_version": 1, "code": 3}'])
def test_one_that_is_damaged_or_newer_is_said_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: bytes
) -> None:
    run = Storage.open(tmp_path)
    run.put(environment.PATH, damaged)
    with caplog.at_level(logging.WARNING):
        assert environment.read_environment(run) is None
    assert f"{run.address(environment.PATH)} is left out of what MLflow is told: " in caplog.text


def test_without_a_checkout_or_without_git_the_installed_version_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(environment._describe_code(tmp_path)) == ["version"]
    (tmp_path / ".git").mkdir()
    assert list(environment._describe_code(tmp_path)) == ["version"]  # git knows no such checkout
    monkeypatch.setenv("PATH", "")
    assert list(environment._describe_code(tmp_path)) == ["version"]


def test_what_is_kept_becomes_tags_and_names_nobody(tmp_path: Path) -> None:
    run = Storage.open(tmp_path)
    assert environment.read_environment(run) is None
    environment.write_environment(run)
    kept = environment.read_environment(run)
    assert kept is not None
    tags = environment.environment_tags(kept)
    assert tags["python"] == platform.python_version()
    assert tags["torch"] == kept["packages"]["torch"]
    assert tags["resnet.version"] != "unknown"
    text = json.dumps(kept) + json.dumps(tags)
    assert platform.node() not in text
    assert f"/{getpass.getuser()}/" not in text
    commit = kept["code"].get("commit")
    assert tags.get("mlflow.source.git.commit") == commit
