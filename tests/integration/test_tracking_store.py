"""The run log against real MLflow: a new database file opened by two processes, and a server that comes back."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import RegistryError
from pipelines.tracking import RUN_KEY_TAG, RunLog, TrackingConfig, open_client, resolve_uri

pytestmark = pytest.mark.integration

_ONE_RUN = """
import sys
from pipelines.tracking import RunLog, TrackingConfig
with RunLog.open(TrackingConfig(uri=sys.argv[1], experiment="both"), run_name=sys.argv[2]) as log:
    for step in range(20):
        log.log_metrics({"loss": 1.0 / (step + 1)}, step)
"""


def test_two_processes_may_start_on_a_new_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/m.db"
    processes = [
        subprocess.Popen([sys.executable, "-c", _ONE_RUN, uri, name], stderr=subprocess.PIPE, text=True)
        for name in ("first", "second")
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    client = open_client(uri)
    experiment = client.get_experiment_by_name("both")
    assert experiment.artifact_location == f"{tmp_path.as_uri()}/mlartifacts/both"
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["first", "second"]
    for run in runs:
        assert run.info.status == "FINISHED"
        assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == list(range(20))


def test_resume_files_and_datasets_on_a_real_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # nothing may be written relative to the working directory
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/with space/m.db")
    log = RunLog.open(tracking, run_name="r", tags={RUN_KEY_TAG: "out-1"})
    log.log_metrics({"loss": 1.0, "nothing": float("nan")}, 1)
    log.log_dataset("digits", "s3://bucket/digits@v1", "f" * 64, "training")
    log.log_file("config.yaml", b"seed: 1\nurl: http://me:hunter22@h/\n")
    again = RunLog.open(tracking, run_name="r", tags={RUN_KEY_TAG: "out-1"})  # the first was killed
    assert again.run_id == log.run_id
    assert again.logged_steps("loss") == {1}
    again.log_metrics({"loss": 0.5}, 2)
    again.end()
    client = open_client(resolve_uri(tracking))
    run = client.get_run(log.run_id)
    assert run.info.status == "FINISHED"
    assert [d.dataset.digest for d in run.inputs.dataset_inputs] == ["f" * 36]
    target = client.download_artifacts(log.run_id, "config.yaml", str(tmp_path))
    assert Path(target).read_text() == "seed: 1\nurl: http://[redacted]@h/\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "with space"]


def test_a_run_deleted_in_the_ui_is_followed_by_a_new_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/m.db")
    with RunLog.open(tracking, run_name="r") as log:
        log.log_metrics({"loss": 1.0}, 1)
    open_client(log.uri).delete_run(log.run_id)
    with caplog.at_level(logging.WARNING), RunLog.open(tracking, run_name="r", run_id=log.run_id) as again:
        assert again.logged_steps("loss") == set()
    assert again.run_id != log.run_id
    assert f"run {log.run_id} is no longer in" in caplog.text


@pytest.mark.timeout(600)
def test_server_down_at_the_start_and_back_before_the_end(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tracking = TrackingConfig(uri=f"http://127.0.0.1:{port}")
    started_s = time.monotonic()
    log = RunLog.open(tracking, run_name="early")
    log.log_params({"lr": 0.1})
    for step in range(100):
        log.log_metrics({"loss": 1.0}, step)
    log.log_file("figures/curve.png", b"not really a picture")
    assert log.run_id == ""
    assert time.monotonic() - started_s < 15  # MLflow's own retries would take minutes
    with _server(port, tmp_path):
        log.end()
        client = open_client(tracking.uri)
        run = client.get_run(log.run_id)
        assert (run.info.run_name, run.info.status) == ("early", "FINISHED")
        assert run.data.params == {"lr": "0.1"}
        assert [point.step for point in client.get_metric_history(log.run_id, "loss")] == list(range(100))
        assert [file.path for file in client.list_artifacts(log.run_id, "figures")] == ["figures/curve.png"]


@contextlib.contextmanager
def _server(port: int, folder: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", str(folder / "files")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # its workers double the start-up
    with (folder / "server.log").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, cwd=folder, env=environment
        )
    try:
        deadline_s = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline_s:
                    pytest.fail((folder / "server.log").read_text()[-2000:])
                time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(15)


def test_a_kill_while_the_database_is_made_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    # What a process killed in the middle of MLflow's migrations leaves: its draft, half made, and a free lock.
    with sqlite3.connect(tmp_path / ".m.db.draft") as half:
        half.execute("CREATE TABLE metrics (key TEXT)")
    (tmp_path / ".m.db.lock").touch()
    with RunLog.open(TrackingConfig(uri=f"sqlite:///{tmp_path}/m.db"), run_name="r") as log:
        log.log_metrics({"loss": 1.0}, 1)
    assert open_client(log.uri).get_run(log.run_id).data.metrics == {"loss": 1.0}
    assert not (tmp_path / ".m.db.draft").exists()


def test_a_database_of_another_mlflow_is_refused_with_the_way_to_upgrade(tmp_path: Path) -> None:
    open_client(f"sqlite:///{tmp_path}/m.db")
    shutil.copy(tmp_path / "m.db", tmp_path / "old.db")  # MLflow remembers the address that it has checked
    with sqlite3.connect(tmp_path / "old.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
    with pytest.raises(RegistryError) as caught:
        open_client(f"sqlite:///{tmp_path}/old.db")
    assert caught.value.what.startswith(
        "the MLflow store cannot be used: Detected out-of-date database schema (found version 0123456789ab, but "
    )
    assert f"mlflow db upgrade sqlite:///{tmp_path}/old.db" in caught.value.mend


def test_what_is_no_database_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "m.db").write_bytes(b"no database" * 1000)
    (tmp_path / "folder.db").mkdir()
    for name, reason in (("m.db", "file is not a database"), ("folder.db", "Is a directory")):
        started_s = time.monotonic()
        with pytest.raises(RegistryError, match=rf"the MLflow store cannot be used: .*{reason}"):
            RunLog.open(TrackingConfig(uri=f"sqlite:///{tmp_path}/{name}"), run_name="r")
        assert time.monotonic() - started_s < 30  # MLflow's own attempts take two minutes
