"""Stages as jobs on a Ray cluster: the same command line, run there, at most once for a key."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.client import is_loopback, job_client, normal_address
from cluster.code import list_code, stage_code
from cluster.environment import split_environment, write_hidden
from cluster.jobs import TERMINAL, Job, describe
from pipelines.errors import InputError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STAGES = ("run", "ingest", "train", "tune", "evaluate", "models", "score", "data", "doctor")
_NEED_OUT = ("ingest", "train", "tune", "evaluate", "score", "run")
_CONFIG_SUFFIXES = (".yaml", ".yml")
_CONTENT_METADATA = "resnet_content"
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Submission:
    """A job that stands on the cluster, started now or found there."""

    submission_id: str
    address: str
    status: str
    entrypoint: str
    is_new: bool
    """False where a job of the same key was found and none was started."""

    next_commands: tuple[str, ...]


@dataclass(frozen=True)
class Parcel:
    """A command line as it is sent: arguments with local config files renamed, and those files."""

    stage: str
    args: tuple[str, ...]
    files: dict[str, Path]
    """Name in the job's working folder -> file here."""


def make_parcel(stage: str, args: Sequence[str], *, address: str) -> Parcel:
    """Check a stage's command line for what a cluster cannot know, and collect the config files to send along.

    Raises:
        InputError: no such stage, a path of this machine, or no output place on shared storage.
    """
    if stage not in STAGES:
        raise InputError(f"{stage!r} is no stage that can be submitted", mend=f"one of: {', '.join(STAGES)}")
    sent: list[str] = []
    files: dict[str, Path] = {}
    for position, arg in enumerate(args):
        option, equals, value = arg.rpartition("=") if "=" in arg else ("", "", arg)
        path = Path(value)
        if path.suffix in _CONFIG_SUFFIXES and path.is_file():
            name = path.name if path.name not in files else f"{position}-{path.name}"
            files[name] = path
            sent.append(f"{option}{equals}{name}")
            continue
        if stage in ("train", "tune") and value.lower().endswith(_ARCHIVES):
            raise InputError(
                f"a submitted {stage} takes a dataset, and {value} is an archive of images",
                where=arg,
                mend=f"resnet submit ingest {value} --out s3://BUCKET/DATASET, then --dataset s3://BUCKET/DATASET",
            )
        if _is_local_data(value) and not is_loopback(address):
            raise InputError(
                f"{value} is a path on this machine, which the cluster cannot see",
                where=arg,
                mend="put it on storage that every node reaches and give its s3:// (gs://, az://) address",
            )
        sent.append(arg)
    if stage in _NEED_OUT and not _names_out(args) and "--dry-run" not in args:
        raise InputError(
            f"a submitted {stage} needs an output place that outlives the job's own folder",
            where="--out",
            mend="add --out s3://BUCKET/PATH",
        )
    return Parcel(stage, tuple(sent), files)


def submit(
    stage: str,
    args: Sequence[str],
    address: str,
    *,
    key: str = "",
    env: Sequence[str] = (),
    code_from: str = "here",
) -> Submission:
    """Run a stage as a job on a cluster, unless a job of the same key is there already.

    A job is started once: two submits at once, or a submit whose answer was lost, end with one job, because its id
    follows from the key. Without a key, the key is made of command, config files and code, and only a job that still
    waits or runs is taken for the same; with one, a job that succeeded is, too.

    Args:
        stage: as on the command line (`train`).
        args: the rest of that command line; local YAML files are sent along.
        address: the job server, `http://HOST:8265`.
        key: idempotency key.
        env: names of further variables to pass; secrets among them are hidden from the job's description.
        code_from: "here" sends this machine's packages; "cluster" uses those installed on the cluster.

    Raises:
        InputError: the command cannot run there.
        ClusterError: the cluster cannot be reached, or refuses.
    """
    address = normal_address(address)
    parcel = make_parcel(stage, args, address=address)
    seen, hidden = split_environment(env)
    entrypoint = make_entrypoint(parcel, is_hidden=bool(hidden))
    content = content_of(parcel, seen, hidden)
    digest = _digest(key or f"{content}\0{_code_of(code_from)}")
    with job_client(address) as client, _staged(parcel, hidden, code_from) as runtime_env:
        standing, attempt = _find(client, digest, content)
        if standing is not None and (standing.status not in TERMINAL or (key and standing.status == "SUCCEEDED")):
            return _submission(standing, address, is_new=False)
        submission_id = f"resnet-{stage}-{digest}-{attempt + 1}"
        try:
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=submission_id,
                runtime_env={**runtime_env, "env_vars": seen},
                metadata={
                    _CONTENT_METADATA: _digest(content),
                    "resnet_stage": stage,
                    "job_name": f"resnet {stage}",
                },
                entrypoint_num_cpus=0,  # a driver that held a CPU would starve the workers of a small cluster
            )
            is_new = True
        except RuntimeError:
            # Another submit of this key was first, or ours arrived and only its answer was lost.
            if _find(client, digest, content)[1] != attempt + 1:
                raise
            is_new = False
        return _submission(describe(client.get_job_info(submission_id)), address, is_new=is_new)


def make_entrypoint(parcel: Parcel, *, is_hidden: bool) -> str:
    """Return the shell line that the job runs; arguments are quoted, secrets are not in it."""
    module = "cluster.job" if is_hidden else "pipelines.cli.main"
    return shlex.join(["python", "-m", module, parcel.stage, *parcel.args])


@contextlib.contextmanager
def _staged(parcel: Parcel, hidden: dict[str, str], code_from: str) -> Iterator[dict[str, Any]]:
    """Yield the runtime environment with a small working folder, and the code where it is to be sent."""
    with tempfile.TemporaryDirectory(prefix="resnet-submit-") as scratch:
        folder = Path(scratch, "job")
        folder.mkdir(mode=0o700)
        (folder / "command.json").write_text(json.dumps({"stage": parcel.stage, "args": parcel.args}, indent=1))
        for name, path in parcel.files.items():
            shutil.copyfile(path, folder / name)
        if hidden:
            write_hidden(folder, hidden)
        environment: dict[str, Any] = {"working_dir": str(folder)}
        if code_from == "here":
            environment["py_modules"] = stage_code(Path(scratch, "code"))
        yield environment


def _find(client: JobSubmissionClient, digest: str, content: str) -> tuple[Job | None, int]:
    """Return the newest job of a key and its number; (None, 0) where there is none.

    Raises:
        InputError: it was another command.
    """
    newest: Any = None
    attempt = 0
    for details in client.list_jobs():
        match = re.fullmatch(rf"resnet-\w+-{digest}-(\d+)", details.submission_id or "")
        if match and int(match.group(1)) > attempt:
            newest, attempt = details, int(match.group(1))
    if newest is None:
        return None, 0
    if (newest.metadata or {}).get(_CONTENT_METADATA) != _digest(content):
        raise InputError(
            f"the key stands for another command on this cluster: {newest.entrypoint}",
            where="--key",
            mend="give this command another key; config files and variables count as part of it",
        )
    return describe(newest), attempt


def _submission(job: Job, address: str, *, is_new: bool) -> Submission:
    flag = f"--address {address}"
    commands = (f"resnet jobs logs -f {job.submission_id} {flag}", f"resnet jobs stop {job.submission_id} {flag}")
    return Submission(job.submission_id, address, job.status, job.entrypoint, is_new, commands)


def content_of(parcel: Parcel, seen: Mapping[str, str], hidden: Iterable[str]) -> str:
    """Return what makes two submits the same: command, config files, variables; of hidden ones their names."""
    parts = [parcel.stage, *parcel.args]
    parts += [f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in sorted(parcel.files.items())]
    parts += [f"{name}={value}" for name, value in sorted(seen.items())] + sorted(hidden)
    return "\0".join(parts)


def _code_of(code_from: str) -> str:
    if code_from != "here":
        return code_from
    return "\0".join(f"{file.path}:{hashlib.sha256(file.source.read_bytes()).hexdigest()}" for file in list_code())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_local_data(value: str) -> bool:
    return "://" not in value and ("/" in value or "." in value) and Path(value).exists()


def _names_out(args: Sequence[str]) -> bool:
    for position, arg in enumerate(args):
        if arg == "--out" and position + 1 < len(args):
            return True
        if arg.startswith(("--out=", "out=")):
            return True
    return False
