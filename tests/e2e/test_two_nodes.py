"""The road as jobs on two nodes that share no path: storage on an S3-compatible server, MLflow on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage import Storage
from tests.e2e.two_node_cluster import BUCKET, SECRET, TwoNodes, two_nodes

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parents[2]
STORE = f"s3://{BUCKET}"
TRAIN = """\
# shipped with the job: a local file that the cluster has never seen
model: {depth: 8, width: 0.5}
epochs: 2
global_batch_size: 64
augment: {flip: false}
precision: float32
num_workers: 2
"""
SWEEP = """\
# each trial is a Ray Train run over both nodes
train: {model: {depth: 8}, epochs: 2, global_batch_size: 64, augment: {flip: false}, precision: float32, num_workers: 2}
space:
  model.width: {choice: [0.25, 0.5]}
  optimizer.lr: {loguniform: [0.05, 0.2]}
num_trials: 2
scheduler: none
"""
SHORTER = ("train.epochs=2", "train.num_workers=2", "tune.num_trials=1", "tune.train.epochs=2", "tune.grace_epochs=1")


@dataclass(frozen=True)
class Road:
    """A cluster, a user's shell, and what the jobs said."""

    nodes: TwoNodes
    folder: Path
    logs: dict[str, str]

    def resnet(self, *words: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        """Run the command in the user's shell, in a folder of its own."""
        return subprocess.run(
            [sys.executable, "-m", "pipelines.cli.main", *words],
            cwd=self.folder,
            env={**self.nodes.environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def submit(self, *words: str, timeout_s: float = 600.0) -> str:
        """Run a stage as a job to its end and return its id."""
        started_s = time.monotonic()
        ended = self.resnet("submit", *words, "--address", self.nodes.address, "--json", "-f", timeout_s=timeout_s)
        assert ended.returncode == 0, f"{words}\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
        submission, _ = json.JSONDecoder().raw_decode(ended.stdout)
        self.logs[submission["submission_id"]] = ended.stdout
        print(f"{words[0]}: {time.monotonic() - started_s:.0f} s")
        return str(submission["submission_id"])


@pytest.fixture(scope="module")
def environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, environment: pytest.MonkeyPatch) -> Iterator[Road]:
    """Run the demo's stages as jobs, one after the other."""
    from pipelines.ingest.config import IngestConfig
    from pipelines.runner import demo

    folder = tmp_path_factory.mktemp("user")
    (folder / "small.yaml").write_text(TRAIN)
    (folder / "sweep.yaml").write_text(SWEEP)
    with two_nodes(tmp_path_factory.mktemp("logs")) as nodes:
        for name, value in nodes.environment.items():
            if name.startswith("AWS_"):
                environment.setenv(name, value)
        config = demo.demo_config(IngestConfig(source="demo:digits"))
        demo.run(config.model_copy(update={"out": f"{STORE}/demo"}))
        road = Road(nodes, folder, {})
        archive = f"{STORE}/demo/{demo.ARCHIVE}"
        road.submit("ingest", archive, "--out", f"{STORE}/dataset")
        road.submit("train", "small.yaml", "--dataset", f"{STORE}/dataset", "--out", f"{STORE}/train")
        road.submit("tune", "sweep.yaml", "--dataset", f"{STORE}/dataset", "--out", f"{STORE}/tune")
        road.submit("evaluate", f"{STORE}/train", f"{STORE}/dataset", "--out", f"{STORE}/evaluate")
        road.submit(
            "models", "register", f"{STORE}/train", "--name", "digits", "--evaluation", f"{STORE}/evaluate",
            "--out", f"{STORE}/register",
        )  # fmt: skip
        road.submit("score", archive, "--model", "models:/digits@champion", "--out", f"{STORE}/predictions")
        road.submit("run", "demo", "--out", f"{STORE}/whole", *SHORTER, "register.name=whole", timeout_s=1200.0)
        yield road


def catalog(path: str) -> dict[str, Any]:
    return dict(json.loads(Storage.open(STORE).read(path)))


def test_the_dataset_is_the_one_that_a_laptop_makes(road: Road) -> None:
    from pipelines.runner import demo

    (road.folder / demo.ARCHIVE).write_bytes(Storage.open(STORE).read(f"demo/{demo.ARCHIVE}"))
    ended = road.resnet("ingest", demo.ARCHIVE, "--out", "dataset", "--json")
    assert ended.returncode == 0, ended.stderr
    local = json.loads((road.folder / "dataset" / "_versions" / "v000001.json").read_text())
    remote = catalog("dataset/_versions/v000001.json")
    assert remote["fingerprint"] == local["fingerprint"]
    assert remote["counts"] == local["counts"]
    assert {name: part["rows"] for name, part in remote["splits"].items()} == {
        name: part["rows"] for name, part in local["splits"].items()
    }


def test_training_ran_on_both_nodes_and_left_its_records(road: Road) -> None:
    train = catalog("train/_catalog.json")
    assert train["epochs"] == 2
    assert train["config"]["num_workers"] == 2
    assert train["dataset"]["fingerprint"] == catalog("dataset/_versions/v000001.json")["fingerprint"]


def test_a_sweep_of_two_worker_trials_ran_to_its_end(road: Road) -> None:
    tune = catalog("tune/_catalog.json")
    assert [trial["status"] for trial in tune["trials"]] == ["finished", "finished"]
    assert tune["config"]["train"]["num_workers"] == 2
    assert tune["best"]["val_top1"] == max(trial["val_top1"] for trial in tune["trials"])
    assert Storage.open(f"{STORE}/tune").exists(f"{tune['model']['path']}/weights.safetensors")


def test_the_whole_road_as_one_job_ends_in_a_report(road: Road) -> None:
    summary = catalog("whole/demo/run.json")
    outs = {entry["stage"]: entry["out"].removeprefix(f"{STORE}/") for entry in summary["stages"]}
    assert list(outs) == ["demo-data", "ingest", "train", "tune", "evaluate", "register", "score", "report"]
    stages = {stage: catalog(f"{out}/_catalog.json") for stage, out in outs.items() if stage not in ("ingest", "score")}
    assert stages["train"]["config"]["num_workers"] == 2
    assert (stages["register"]["name"], stages["register"]["promoted"]) == ("whole", True)
    # The same images and split; only the source's name differs from the dataset of the single jobs.
    counts = catalog(f"{outs['ingest']}/_versions/v000001.json")["counts"]
    assert counts == catalog("dataset/_versions/v000001.json")["counts"]
    page = Storage.open(STORE).read("whole/demo/report.html").decode()
    assert "NOT CAUGHT" not in page
    for section in ("Data", "Training", "Sweep", "Test", "Scored archive"):
        assert f">{section}</h2>" in page


def test_predictions_stand_for_every_member_of_the_archive_once(road: Road) -> None:
    import pyarrow.parquet as pq

    from pipelines.dataset.shards import read_shard_list
    from pipelines.runner import demo
    from pipelines.score.catalog import read_predictions
    from pipelines.sources.resolve import open_source

    store = Storage.open(f"{STORE}/predictions")
    published = read_predictions(store)
    assert published is not None
    shards, _ = read_shard_list(store, published["shard_lists"][0])
    rows = [row for shard in shards for row in pq.read_table(store.open_file(shard.path)).to_pylist()]
    listed = open_source(f"{STORE}/demo/{demo.ARCHIVE}").listing().entries
    assert sorted(row["image_id"] for row in rows) == sorted(entry.image_id for entry in listed)
    assert published["model"]["name"] == "digits"
    assert published["model"]["version"] == "1"
    assert published["counts"]["unscored"] == 1  # the truncated file that the demo plants


def test_jobs_are_listed_and_their_logs_complete(road: Road) -> None:
    ended = road.resnet("jobs", "list", "--address", road.nodes.address, "--json")
    jobs = json.loads(ended.stdout)
    assert {job["submission_id"]: job["status"] for job in jobs} == dict.fromkeys(road.logs, "SUCCEEDED")
    for job, followed in road.logs.items():
        log = road.resnet("jobs", "logs", job, "--address", road.nodes.address).stdout
        for line in log.splitlines():
            assert line in followed
        stage = job.split("-")[1]
        assert f"pipelines.cli.main {stage}" in log
        assert "next:" in log  # the last thing a command says


def test_the_same_submit_with_a_key_is_one_job(road: Road) -> None:
    words = ["data", "show", f"{STORE}/dataset", "--json", "--address", road.nodes.address]
    first, second = (json.loads(road.resnet("submit", "--key", "k1", *words).stdout) for _ in range(2))
    assert first["is_new"]
    assert not second["is_new"]
    assert first["submission_id"] == second["submission_id"]


def test_no_secret_is_in_a_jobs_description_or_in_rays_logs(road: Road) -> None:
    from cluster.client import job_client

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(road.nodes.token_path))
        with job_client(road.nodes.address) as client:
            described = "\n".join(str(details) for details in client.list_jobs())
    assert "AWS_ENDPOINT_URL" in described
    token = road.nodes.token_path.read_text().strip()
    assert SECRET not in described
    assert token not in described
    leaks = []
    for folder in road.nodes.folders:
        for path in folder.glob("session_*/logs/**/*"):
            if path.is_file() and path.suffix in (".log", ".out", ".err", ".txt"):
                text = path.read_text(errors="replace")
                leaks += [str(path) for secret in (SECRET, token) if secret in text]
    assert not leaks


def test_without_the_token_nothing_can_be_submitted(road: Road, tmp_path: Path) -> None:
    stranger = {**road.nodes.environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none"), "PYTHONPATH": str(ROOT)}
    words = ["submit", "doctor", "--address", road.nodes.address]
    ended = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", *words],
        cwd=tmp_path, env=stranger, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 4
    assert "asks for a token and there is none here" in ended.stderr


def test_nothing_listens_beyond_loopback_but_what_was_asked_for(road: Road) -> None:
    import psutil

    services = {int(address.rsplit(":", 1)[1]) for address in (road.nodes.address, road.nodes.s3, road.nodes.mlflow)}
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in services:
            assert connection.laddr.ip in ("127.0.0.1", "::1")
