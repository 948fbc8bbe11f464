"""Samples of a process: what they say, that each is handed out once, and that storage that fails loses none."""

from __future__ import annotations

import json
import logging
import mmap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import StorageError
from pipelines.storage import Storage
from pipelines.train import machine_use
from pipelines.train.machine_use import MachineUse
from pipelines.train.nvml import Gpu
from pipelines.train.samples import SampleReader

CPU = torch.device("cpu")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"_EVERY_S": 0.05, "_WRITE_S": 0.0, "_LEAST_S": 0.0, "_FIRST_S": 0.0}.items():
        monkeypatch.setattr(machine_use, name, seconds)


@pytest.mark.usefixtures("often")
def test_each_sample_is_handed_out_once_whatever_files_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_use, "_PER_FILE", 3)
    run, began_s = Storage.open(tmp_path), time.time() - 100
    reader = SampleReader(run, began_s)
    points: list[Any] = []
    with MachineUse(run, 2, CPU):
        deadline_s = time.monotonic() + 20
        while len(points) < 5 and time.monotonic() < deadline_s:
            sum(range(10000))
            points += reader.read_new()
    points += reader.read_new()
    files = run.list("system")
    written = [sample for file in files for sample in json.loads(run.read(file.path))["samples"]]
    assert [point.at_s for point in points] == [sample["at_s"] for sample in written]
    assert len(files) > 1
    assert reader.read_new() == []
    figures = points[0].figures
    assert figures["system/worker_2/cpu_cores_used"] > 0
    assert 10 < figures["system/worker_2/memory_megabytes"] < 1e5
    assert points[0].step in (100, 101)


@pytest.mark.usefixtures("often")
def test_storage_that_fails_ends_nothing_and_loses_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Storage.open(tmp_path)
    put, failed = run.put, []

    def fail_first(path: str, data: bytes, **options: Any) -> None:
        if len(failed) < 2:
            failed.append(len(json.loads(data)["samples"]))
            raise StorageError("full")
        put(path, data, **options)

    monkeypatch.setattr(run, "put", fail_first)
    with MachineUse(run, 0, CPU):
        while len(failed) < 2:
            time.sleep(0.01)
    assert failed == [1, 2]
    assert len(SampleReader(run, 0.0).read_new()) >= 3


@pytest.mark.usefixtures("often")
def test_a_full_file_that_cannot_be_written_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_use, "_PER_FILE", 2)
    run = Storage.open(tmp_path)
    use = MachineUse(run, 0, CPU)
    use._mark = (0.0, 0.0)

    def fail(*_: Any, **__: Any) -> None:
        raise StorageError("full")

    with monkeypatch.context() as patch:
        patch.setattr(run, "put", fail)
        for _ in range(4):
            use._take()
    time.sleep(0.01)  # a file is named after the millisecond
    use._take()
    use._write()
    assert len(SampleReader(run, 0.0).read_new()) == 5


def test_pages_that_may_be_shared_count_in_no_worker() -> None:
    part = b"1" * 1_000_000  # written piece by piece: a whole copy, freed, could stay with the process
    size = 64 * len(part)
    for flags, is_own in ((mmap.MAP_SHARED, False), (mmap.MAP_PRIVATE, True)):
        before = machine_use._memory_bytes()
        with mmap.mmap(-1, size, flags=flags) as pages:
            for _ in range(64):
                pages.write(part)
            assert (machine_use._memory_bytes() - before > size / 2) == is_own


def put_samples(run: Storage, name: str, *at_s: float, **changes: Any) -> None:
    samples = [{"at_s": second, "machine_load": 1.0} for second in at_s]
    content = {"format_version": 1, "worker": 0, "samples": samples, **changes}
    run.put(f"system/{name}.json", json.dumps(content).encode())


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (b"", "Expecting value"),
        (b"[]", "no format version"),
        (b'{"worker": 0, "samples": []}', "no format version"),
        (b'{"format_version": 2}', "its format version is 2; this program reads up to 1"),
        (b'{"format_version": 1, "worker": 0}', "samples"),
        (b'{"format_version": 1, "worker": 0, "samples": [{"at_s": NaN}]}', "NaN"),
        (b'{"format_version": 1, "worker": 0, "samples": [3]}', "int"),
    ],
)
def test_a_damaged_file_is_left_out_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: bytes, why: str
) -> None:
    run = Storage.open(tmp_path)
    for name in ("a", "c"):
        run.put(f"system/{name}.json", damaged)
    put_samples(run, "b", 1.0, 2.0)
    reader = SampleReader(run, 0.0)
    with caplog.at_level(logging.WARNING):
        assert [point.step for point in reader.read_new()] == [1, 2]
        assert reader.read_new() == []
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{run.address('system/a.json')} is left out of what MLflow is told: ")
    assert why in said
    put_samples(run, "a", 1.0, 2.0, 3.0)  # whole again
    assert [point.step for point in reader.read_new()] == [1, 2, 3]


def test_what_was_read_before_storage_failed_is_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Storage.open(tmp_path)
    put_samples(run, "a", 1.0)
    put_samples(run, "b", 2.0)
    put_samples(run, "c", 3.0)
    read, reader = run.read, SampleReader(run, 0.0)

    def fail(path: str) -> bytes:
        if "b.json" in path:
            raise StorageError("away")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(run, "read", fail)
        assert [point.step for point in reader.read_new()] == [1, 3]
        with pytest.raises(StorageError, match="away"):
            reader.read_new()
    assert [point.step for point in reader.read_new()] == [2]


def test_a_run_shorter_than_an_interval_has_a_sample(tmp_path: Path) -> None:
    run = Storage.open(tmp_path)
    with MachineUse(run, 0, CPU):
        time.sleep(0.15)
    assert len(SampleReader(run, 0.0).read_new()) == 1


class FakeLibrary:
    """The functions of NVIDIA's library that are called, of a GPU that tells no power."""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:
        return 0 if name == b"GPU-1234" else 2

    def nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> int:
        rates._obj.gpu = 87
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj.used = 5_000_000_000
        return 0

    def nvmlDeviceGetPowerUsage(self, handle: Any, milliwatts: Any) -> int:
        return 3


def test_a_gpu_tells_what_it_knows() -> None:
    library: Any = FakeLibrary()
    assert Gpu("1234", library).figures() == {"gpu_utilization_percentage": 87.0, "gpu_memory_megabytes": 5000.0}
    with pytest.raises(OSError, match="refuses"):
        Gpu("5678", library)
