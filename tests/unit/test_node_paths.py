"""Paths that the nodes of a cluster do not share: what is asked at all, and what counts as the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import node_paths
from pipelines.errors import ConfigError
from pipelines.node_paths import check_nodes_see


def test_one_node_and_addresses_need_no_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_paths, "_ask_nodes", lambda paths: pytest.fail(f"asked for {paths}"))
    check_nodes_see(1, {"--out": str(tmp_path)})
    check_nodes_see(2, {"--out": "s3://bucket/out"})


def test_every_node_is_asked_for_local_paths_and_answers_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(b"12345")
    places = {"SOURCE": str(archive), "--out": str(tmp_path), "--dataset": "gs://b/d"}
    answers: dict[str, list[int | None]] = {"head": [5, 1], "worker": [5, 1]}
    monkeypatch.setattr(node_paths, "_ask_nodes", lambda paths: answers)
    check_nodes_see(2, places)
    answers["worker"] = [None, 1]
    with pytest.raises(ConfigError, match=r"a\.zip is not on node worker of the cluster"):
        check_nodes_see(2, places)
    answers["worker"] = [5, 0]
    with pytest.raises(ConfigError, match="on node worker of the cluster is another one than here") as refused:
        check_nodes_see(2, places)
    assert "--out" in str(refused.value)
    assert "s3://BUCKET/PATH" in str(refused.value)


def test_a_node_looks_at_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"123")
    assert node_paths._look([str(tmp_path / "x"), str(tmp_path), str(tmp_path / "none")]) == [3, 1, None]
