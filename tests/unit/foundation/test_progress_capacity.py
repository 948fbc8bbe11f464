"""Progress lines, and the arithmetic of resource requests."""

from __future__ import annotations

import io

import pytest

from pipelines.capacity import (
    check_device,
    check_fits,
    check_places,
    cpus_per_worker,
    tune_concurrency,
    worker_resources,
)
from pipelines.errors import ClusterError, ConfigError
from pipelines.progress import Progress, format_duration


def test_progress_counts_and_ends_with_a_line() -> None:
    stream = io.StringIO()
    with Progress(1000, label="ingest", stream=stream) as progress:
        progress.start_at(400)
        progress.advance(600, quarantined=2)
    assert stream.getvalue().startswith("ingest: 1,000/1,000 images, ")
    assert stream.getvalue().endswith("in 0 s  quarantined 2\n")


def test_progress_says_time_left_and_ignores_earlier_work_in_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 10.0, 10.0])
    monkeypatch.setattr("pipelines.progress.time.monotonic", lambda: next(clock))
    progress = Progress(1000, label="score", stream=io.StringIO())
    progress.start_at(500)
    progress.advance(100)
    assert progress.line() == "score: 600/1,000 images, 10/s, 40 s left"


@pytest.mark.parametrize(("seconds", "text"), [(8.2, "8 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_two_worker_trials_fit_two_cpus_with_their_driver() -> None:
    assert tune_concurrency(2, 2, 1) == 1
    assert tune_concurrency(8, 1, 2) == 4
    assert tune_concurrency(8, 1, 1, limit=3) == 3
    with pytest.raises(ClusterError, match=r"needs 3\.97 CPUs; the cluster has 2"):
        tune_concurrency(2, 4, 1)


def test_worker_requests() -> None:
    assert worker_resources(2) == {"CPU": 2.0}
    assert worker_resources(2, use_gpu=True, inside_tune=True) == {"CPU": 1.98, "GPU": 1.0}
    assert cpus_per_worker(2, 5) == 2
    assert cpus_per_worker(3, 2) == 1
    assert cpus_per_worker(1, 2, node_cpus=(1, 1)) == 1  # two nodes of one CPU have no room for a worker of two
    assert cpus_per_worker(3, 12, node_cpus=(8, 4)) == 4
    assert cpus_per_worker(3, 12, node_cpus=(7, 5)) == 3
    with pytest.raises(ClusterError, match="train needs 4 CPU, and the cluster has 2"):
        check_fits(what="train", need={"CPU": 4.0}, have={"CPU": 2.0})


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("os.path.exists", lambda path: False)
    check_device("auto")
    check_device("cpu")
    with pytest.raises(ConfigError) as refused:
        check_device("cuda:1")
    assert refused.value.what == "device is cuda:1 and torch can use no GPU here"
    assert refused.value.mend == "set device=cpu, or run `resnet doctor` to see what is missing"
    monkeypatch.setattr("os.path.exists", lambda path: path == "/proc/driver/nvidia/version")
    with pytest.raises(ConfigError, match="although an NVIDIA driver is loaded"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_device("cuda")
    check_device("cuda:0")
    with pytest.raises(ConfigError, match="device is cuda:1 and torch can use 1 GPUs here, numbered from 0"):
        check_device("cuda:1")


def test_workers_must_fit_on_nodes_not_only_on_the_cluster() -> None:
    check_places(what="training", workers=2, cpus=2, node_cpus=(2, 2))
    with pytest.raises(
        ClusterError, match=r"needs 1 places of 4 CPUs, and the nodes have 0 \(the largest has 2 CPUs\)"
    ):
        check_places(what="training", workers=1, cpus=4, node_cpus=(2, 2))
