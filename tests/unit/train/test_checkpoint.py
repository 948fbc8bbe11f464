from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import DataError
from pipelines.storage import Storage
from pipelines.train.checkpoint import (
    DamagedCheckpoint,
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


def test_a_newer_format_is_refused_not_passed_over(run: Storage) -> None:
    save_checkpoint(run, 10, files_of(10))
    commit = run.read("checkpoints/step-00000010/COMMIT")
    run.put("checkpoints/step-00000010/COMMIT", commit.replace(b'"format_version": 1', b'"format_version": 2'))
    with pytest.raises(DataError, match="has format version 2; this program reads up to 1"):
        load_latest(run)


def test_pruning_keeps_the_last_two_and_the_best(run: Storage) -> None:
    for step in (10, 20, 30, 40, 50):
        save_checkpoint(run, step, files_of(step))
    run.put("checkpoints/step-00000035/weights.safetensors", b"left by a killed writer")
    prune_checkpoints(run, keep=[20])
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
            prune_checkpoints(dying, keep=[10])  # type: ignore[arg-type]
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
