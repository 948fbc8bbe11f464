"""Jobs of a cluster: list them, read or follow their logs, wait for one, stop one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.client import job_client
from pipelines.errors import ClusterError

TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
_POLL_S = 1.0
_STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Job:
    """One job: its id, what it runs, PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED, times in seconds (0: not yet)."""

    submission_id: str
    stage: str
    status: str
    entrypoint: str
    started_s: float
    ended_s: float
    message: str
    exit_code: int | None


def describe(details: Any) -> Job:
    """Return our view of Ray's `JobDetails`."""
    status = details.status
    return Job(
        submission_id=details.submission_id or details.job_id or "",
        stage=(details.metadata or {}).get("resnet_stage", ""),
        status=str(getattr(status, "value", status)),
        entrypoint=details.entrypoint or "",
        started_s=(details.start_time or 0) / 1000,
        ended_s=(details.end_time or 0) / 1000,
        message=details.message or "",
        exit_code=details.driver_exit_code,
    )


def list_jobs(address: str) -> list[Job]:
    """Return the submitted jobs of a cluster, newest first."""
    with job_client(address) as client:
        jobs = [describe(details) for details in client.list_jobs() if details.submission_id]
    return sorted(jobs, key=lambda job: job.started_s, reverse=True)


def find_job(address: str, submission_id: str) -> Job:
    """Return one job.

    Raises:
        ClusterError: there is none of this id.
    """
    with job_client(address) as client:
        return _find(client, address, submission_id)


def read_logs(address: str, submission_id: str) -> str:
    """Return all that a job has printed so far; a cluster keeps it for as long as its head node lives."""
    with job_client(address) as client:
        _find(client, address, submission_id)
        return str(client.get_job_logs(submission_id))


def follow_logs(address: str, submission_id: str) -> Iterator[str]:
    """Yield what a job prints, from its beginning until it ends; a dropped connection is taken up where it broke."""
    with job_client(address) as client:
        _find(client, address, submission_id)
        yield from _follow(client, address, submission_id)


def _follow(client: Any, address: str, submission_id: str) -> Iterator[str]:
    shown = 0
    loop = asyncio.new_event_loop()
    try:
        while True:
            told = 0  # characters of this connection: each one begins with the log's first
            try:
                for chunk in _chunks(loop, client.tail_job_logs(submission_id)):
                    fresh = chunk[max(0, shown - told) :]
                    told += len(chunk)
                    if fresh:
                        shown += len(fresh)
                        yield fresh
            except (RuntimeError, OSError):
                time.sleep(_POLL_S)
            # The stream can end before its last lines; the whole log is asked for once the job is over.
            job = _find(client, address, submission_id)
            rest = str(client.get_job_logs(submission_id))[shown:]
            if rest:
                shown += len(rest)
                yield rest
            if job.status in TERMINAL:
                return
    finally:
        loop.close()


def wait(address: str, submission_id: str, *, timeout_s: float) -> Job:
    """Wait until a job has ended and return it.

    Raises:
        ClusterError: it has not ended in time.
    """
    deadline = time.monotonic() + timeout_s
    with job_client(address) as client:
        while True:
            job = _find(client, address, submission_id)
            if job.status in TERMINAL:
                return job
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"job {submission_id} is still {job.status} after {timeout_s:.0f} s",
                    where=address,
                    mend=f"resnet jobs logs {submission_id} --address {address}",
                )
            time.sleep(_POLL_S)


def stop(address: str, submission_id: str) -> Job:
    """Stop a job and return it as it ended; one that has ended is left as it is. What it finished can be resumed."""
    with job_client(address) as client:
        job = _find(client, address, submission_id)
        if job.status in TERMINAL:
            return job
        client.stop_job(submission_id)
    return wait(address, submission_id, timeout_s=_STOP_TIMEOUT_S)


def _find(client: Any, address: str, submission_id: str) -> Job:
    try:
        return describe(client.get_job_info(submission_id))
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            raise ClusterError(
                f"there is no job {submission_id} on {address}", mend=f"resnet jobs list --address {address}"
            ) from error
        raise


def _chunks(loop: asyncio.AbstractEventLoop, stream: AsyncIterator[str]) -> Iterator[str]:
    """Yield an asynchronous stream's items in this thread."""
    while True:
        try:
            yield loop.run_until_complete(anext(stream))
        except StopAsyncIteration:
            return
