"""Jobs on a real one-node cluster with a token: one job per key, logs, stop, hidden variables, refusals."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster import jobs
from cluster.client import job_client
from cluster.doctor import check_cluster
from cluster.submit import Submission, submit
from pipelines.errors import ClusterError
from tests.e2e.two_node_cluster import family

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Head:
    """A head node and where its files are."""

    address: str
    folder: Path
    dataset: str


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with family(tmp_path_factory.mktemp("logs")) as processes, pytest.MonkeyPatch.context() as patch:
        address, _, folder = processes.start_head({})
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(processes.token_path))
        patch.delenv("RAY_AUTH_MODE", raising=False)
        (processes.root / "nothing").mkdir()
        yield Head(address, folder, str(processes.root / "nothing"))


def ended(head: Head, submission: Submission) -> jobs.Job:
    return jobs.wait(head.address, submission.submission_id, timeout_s=120)


def test_a_failed_job_tells_why_and_its_key_is_run_again_under_the_next_number(head: Head) -> None:
    submission = submit("data", ["show", head.dataset], head.address, key="again")
    assert submission.is_new
    followed = "".join(jobs.follow_logs(head.address, submission.submission_id))
    job = ended(head, submission)
    assert job.status == "FAILED"
    assert job.exit_code == 2  # the command's own: there is no dataset
    assert job.stage == "data"
    log = jobs.read_logs(head.address, submission.submission_id)
    assert "InputError: there is no dataset at" in log
    assert set(log.splitlines()) <= set(followed.splitlines())

    second = submit("data", ["show", head.dataset], head.address, key="again")
    assert second.is_new
    assert second.submission_id == submission.submission_id[:-1] + "2"
    assert jobs.stop(head.address, second.submission_id).status in ("STOPPED", "FAILED")


def test_two_submits_of_a_key_at_once_are_one_job(head: Head) -> None:
    found: list[Submission] = []

    def one() -> None:
        found.append(submit("doctor", ["--json"], head.address, key="once"))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({submission.submission_id for submission in found}) == 1
    assert sorted(submission.is_new for submission in found) == [False, True]
    ended(head, found[0])
    assert sum(job.submission_id == found[0].submission_id for job in jobs.list_jobs(head.address)) == 1


def test_hidden_variables_arrive_and_are_in_no_description(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """`doctor` names the unsafe switches that it finds set: a way to see from outside what arrived."""
    monkeypatch.setenv("RAY_DATA_AUTOLOAD_PLANTED", "http://joe:sesame-0815@example")  # hidden for its password
    monkeypatch.setenv("MY_TOKEN", "sesame-4711")
    submission = submit("doctor", [], head.address, env=["MY_TOKEN", "RAY_DATA_AUTOLOAD_PLANTED"])
    assert submission.entrypoint == "python -m cluster.job doctor"
    started_s = time.monotonic()
    with pytest.raises(ClusterError, match=rf"job {submission.submission_id} is still \w+ after 0 s"):
        jobs.wait(head.address, submission.submission_id, timeout_s=0)
    assert time.monotonic() - started_s < 30
    ended(head, submission)
    assert "unsafe switches are on: RAY_DATA_AUTOLOAD_PLANTED" in jobs.read_logs(head.address, submission.submission_id)
    with job_client(head.address) as client:
        details = client.get_job_info(submission.submission_id)
    assert "MLFLOW_DISABLE_TELEMETRY" in details.runtime_env["env_vars"]
    assert not {"MY_TOKEN", "RAY_DATA_AUTOLOAD_PLANTED"} & details.runtime_env["env_vars"].keys()
    assert "sesame" not in str(details)
    for path in head.folder.glob("session_*/logs/**/*"):
        assert not path.is_file() or "sesame" not in path.read_text(errors="replace")


def test_a_job_can_be_stopped(head: Head) -> None:
    submission = submit("doctor", [], head.address, key="to stop")
    stopped = jobs.stop(head.address, submission.submission_id)
    assert stopped.status == "STOPPED"
    assert jobs.stop(head.address, submission.submission_id) == stopped


def test_an_unknown_job_is_named(head: Head) -> None:
    for call in (jobs.read_logs, jobs.stop, jobs.find_job):
        with pytest.raises(ClusterError, match="there is no job nope on"):
            call(head.address, "nope")


def test_a_wrong_token_is_refused(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ClusterError, match="refuses the token"):
        jobs.list_jobs(head.address)


def test_doctor_finds_the_cluster_fit(head: Head) -> None:
    assert {check.name: check.status for check in check_cluster(head.address)} == {
        "cluster": "ok",
        "cluster token": "ok",
        "cluster ray": "ok",
    }
