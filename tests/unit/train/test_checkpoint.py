from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import DataError
from pipelines.stage_output import canonical_json
from pipelines.storage import Storage
from pipelines.train.checkpoint import (
    DamagedCheckpoint,
    amend_checkpoint,
    commit_path,
    committed_steps,
    load_checkpoint,
    load_latest,
    prune_checkpoints,
    save_checkpoint,
)


def files_of(step: int) -> dict[str, bytes]:
    return {"weights.safetensors": b"w" * 100 + str(step).encode(), "state.json": str(step).encode()}


@pytest.fixture(params=["local", "object store"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage.open(tmp_path if request.param == "local" else f"memory://{tmp_path.name}/run")


def test_the_newest_whole_one_is_loaded(run: Storage) -> None:
    assert load_latest(run) is None
    for step in (5, 10, 120):
        save_checkpoint(run, step, files_of(step))
    newest = load_latest(run)
    assert newest is not None
    assert (newest.step, newest.files) == (120, files_of(120))


def damage(run: Storage, how: str) -> str:
    folder = "checkpoints/step-00000020"
    weights = run.read(f"{folder}/weights.safetensors")
    if how == "flipped":
        run.put(f"{folder}/weights.safetensors", weights[:7] + b"x" + weights[8:])
        return "the SHA-256 of weights.safetensors differs"
    if how == "cut":
        run.put(f"{folder}/weights.safetensors", weights[:50])
        return "weights.safetensors has 50 bytes, not 102"
    if how == "missing":
        run.delete(f"{folder}/state.json")
        return "state.json is missing"
    run.put(f"{folder}/COMMIT", run.read(f"{folder}/COMMIT")[:30])
    return "COMMIT is unreadable"


@pytest.mark.parametrize("how", ["flipped", "cut", "missing", "torn marker"])
def test_a_damaged_one_is_passed_over_and_said(run: Storage, how: str, caplog: pytest.LogCaptureFixture) -> None:
    for step in (10, 20):
        save_checkpoint(run, step, files_of(step))
    message = damage(run, how)
    found = load_latest(run)
    assert found is not None
    assert found.step == 10
    assert message in caplog.text
    assert "going back to the one before it" in caplog.text


def test_one_that_was_never_finished_does_not_count(run: Storage) -> None:
    save_checkpoint(run, 10, files_of(10))
    run.put("checkpoints/step-00000020/weights.safetensors", b"half")
    assert committed_steps(run) == [10]
    found = load_latest(run)
    assert found is not None
    assert found.step == 10
    with pytest.raises(DamagedCheckpoint, match=r"step-00000020 was never finished: COMMIT is missing"):
        load_checkpoint(run, 20)


def resealed(marker: bytes, **changes: Any) -> bytes:
    """Return a marker with other fields, as a program that writes these would have written it."""
    values = {name: value for name, value in json.loads(marker).items() if name != "sha256"} | changes
    return json.dumps(values | {"sha256": hashlib.sha256(canonical_json(values)).hexdigest()}).encode()


def test_a_newer_format_is_refused_not_passed_over(run: Storage) -> None:
    save_checkpoint(run, 10, files_of(10))
    amend_checkpoint(run, 10, {"rate_scale": 0.5})
    for name, words in (("AMENDED", "was amended in format version 2"), ("COMMIT", "has format version 2")):
        path = f"checkpoints/step-00000010/{name}"
        run.put(path, resealed(run.read(path), format_version=2, files=None))
        with pytest.raises(DataError, match=f"{words}; this program reads up to 1"):
            load_latest(run)


def damages(data: bytes) -> Iterator[bytes]:
    """Return the bytes with each bit flipped, and cut at every place."""
    for index in range(len(data)):
        for bit in range(8):
            yield data[:index] + bytes([data[index] ^ 1 << bit]) + data[index + 1 :]
        yield data[:index]


def test_any_bit_of_the_marker_leads_to_the_one_before(tmp_path: Path) -> None:
    run = Storage.open(f"memory://{tmp_path.name}/run")
    for step in (10, 20):
        save_checkpoint(run, step, files_of(step))
    whole = run.read(commit_path(20))
    for damaged in damages(whole):
        run.put(commit_path(20), damaged)
        found = load_latest(run)
        assert found is not None
        assert found.step == 10, damaged


def test_any_bit_of_a_marker_of_an_earlier_release_leads_to_a_whole_one(tmp_path: Path) -> None:
    run = Storage.open(f"memory://{tmp_path.name}/run")
    for step in (10, 20):
        save_checkpoint(run, step, files_of(step))
    marker = json.loads(run.read(commit_path(20)))
    del marker["sha256"]
    unsealed = json.dumps(marker, indent=1).encode()
    run.put(commit_path(20), unsealed)
    assert load_checkpoint(run, 20).files == files_of(20)
    for damaged in damages(unsealed):
        run.put(commit_path(20), damaged)
        found = load_latest(run)
        assert found is not None
        assert found.step == 10, damaged


AMENDED = b"""{
 "format": "resnet-pipelines/checkpoint",
 "format_version": 1,
 "step": 20,
 "values": {
  "rollbacks": 1,
  "rate_scale": 0.5
 },
 "sha256": "SEAL"
}"""  # as the first release that amends writes it


def test_what_is_decided_later_stands_beside_a_checkpoint_and_goes_with_it(
    run: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(run, 20, files_of(20))
    before = {file.path: run.read(file.path) for file in run.list("checkpoints")}
    assert load_checkpoint(run, 20).amended == {}
    values = {"rollbacks": 1, "rate_scale": 0.5}
    amend_checkpoint(run, 20, values)
    assert load_checkpoint(run, 20).amended == values
    path = "checkpoints/step-00000020/AMENDED"
    written = run.read(path)
    assert written == AMENDED.replace(b"SEAL", json.loads(written)["sha256"].encode())
    assert before == {name: run.read(name) for name in before}
    for damaged in (written[:40], written.replace(b"0.5", b"4.5"), b"[]", b"\xff"):
        run.put(path, damaged)
        assert load_checkpoint(run, 20).amended == {}
        assert "AMENDED is damaged; the checkpoint is taken as it was" in caplog.text
        caplog.clear()
    amend_checkpoint(run, 20, values)
    save_checkpoint(run, 20, files_of(20))
    assert load_checkpoint(run, 20).amended == {}


def test_checkpoints_past_the_one_written_last_do_not_count_as_newest(run: Storage) -> None:
    for step in (10, 20, 30, 40):
        save_checkpoint(run, step, files_of(step))
    for step in (30, 40):  # damaged, so that the run went on from 20
        run.put(f"checkpoints/step-{step:08d}/state.json", b"")
    for step in (22, 24, 26):
        save_checkpoint(run, step, files_of(step))
        prune_checkpoints(run, step, keep=[10])
        found = load_latest(run)
        assert found is not None
        assert found.step == step
    assert committed_steps(run) == [10, 24, 26]


def test_pruning_keeps_the_last_two_and_the_best(run: Storage) -> None:
    for step in (10, 20, 30, 40, 50):
        save_checkpoint(run, step, files_of(step))
    run.put("checkpoints/step-00000035/weights.safetensors", b"left by a killed writer")
    prune_checkpoints(run, 50, keep=[20])
    assert committed_steps(run) == [20, 40, 50]
    assert {file.path.split("/")[1] for file in run.list("checkpoints")} == {
        "step-00000020", "step-00000040", "step-00000050",
    }  # fmt: skip


def test_a_writer_killed_at_any_write_leaves_the_one_before_it(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Dying:
        """A storage whose n-th write or deletion never happens."""

        def __init__(self, inner: Storage, calls: int) -> None:
            self.inner, self.calls = inner, calls

        def __getattr__(self, name: str) -> object:
            if name not in ("put", "delete"):
                return getattr(self.inner, name)
            if self.calls == 0:
                raise Killed
            self.calls -= 1
            return getattr(self.inner, name)

    for calls in range(20):
        run = Storage.open(tmp_path / str(calls))
        for step in (10, 20, 30):
            save_checkpoint(run, step, files_of(step))
        dying = Dying(run, calls)
        try:
            save_checkpoint(dying, 40, files_of(40))  # type: ignore[arg-type]
            prune_checkpoints(dying, 40, keep=[10])  # type: ignore[arg-type]
            done = True
        except Killed:
            done = False
        found = load_latest(run)
        assert found is not None
        assert found.files == files_of(found.step)
        assert found.step == (40 if calls >= 4 else 30)
        assert 10 in committed_steps(run)
        if done:
            assert committed_steps(run) == [10, 30, 40]
            break
    assert done
