"""By what a run was made: the commit in a checkout, the installed version elsewhere, and nothing of who or where."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
from pathlib import Path

import pytest

from pipelines.storage import Storage
from pipelines.train import environment


def test_a_checkout_says_its_commit_and_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another"))  # as in a hook
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@e", "-C", str(tmp_path)]
    (tmp_path / "code.py").write_text("1\n")
    clean = {"GIT_CONFIG_GLOBAL": "/dev/null", "PATH": "/usr/bin:/bin:/usr/local/bin"}
    for words in (["init", "-q"], ["add", "code.py"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True, env=clean)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, env=clean, capture_output=True, text=True)
    described = environment._describe_code(tmp_path)
    assert described == {"version": described["version"], "commit": head.stdout.strip(), "changed": False}
    (tmp_path / "code.py").write_text("2\n")
    assert environment._describe_code(tmp_path)["changed"]


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
