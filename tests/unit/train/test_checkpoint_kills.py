"""A run killed at every write that it does, before and after it: what is left is gone on with, nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.storage import LocalStorage, Storage
from pipelines.train import loop
from pipelines.train.checkpoint import load_latest
from pipelines.train.loop import fit_local
from pipelines.train.outcome import FitOutcome
from pipelines.train.records import read_records
from pipelines.train.state import AVERAGE, OPTIMIZER, STATE, WEIGHTS
from pipelines.train.step import Step
from pipelines.train.step_log import read_steps
from tests.unit.train.awaited import await_writes
from tests.unit.train.test_loop import Killed
from tests.unit.train.tiny import make_config, write_dataset

WRITES = ("put", "create", "delete")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@contextmanager
def dying_at(call: int, *, after: bool, counts: list[int], steps: list[int]) -> Iterator[None]:
    """Count writes and steps; die at a write (0: never), with it undone or done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_SYNC_S", 0.0)  # a checkpoint after every step
        await_writes(patch)
        for name in WRITES:
            write = getattr(LocalStorage, name)

            def dying(self: LocalStorage, *arguments: object, _write: object = write) -> None:
                counts[0] += 1
                if counts[0] == call and not after:
                    raise Killed
                _write(self, *arguments)  # type: ignore[operator]
                if counts[0] == call:
                    raise Killed

            patch.setattr(LocalStorage, name, dying)
        take = Step.__call__

        def counted(self: Step, *arguments: object) -> object:
            steps[0] += 1
            return take(self, *arguments)  # type: ignore[arg-type]

        patch.setattr(Step, "__call__", counted)
        yield


def final(run: Storage, outcome: FitOutcome) -> tuple[object, ...]:
    newest = load_latest(run)
    assert newest is not None
    weights = [newest.files[name] for name in (WEIGHTS, AVERAGE, OPTIMIZER)]
    timeless = [
        {name: value for name, value in record.to_json().items() if not name.endswith(("_s", "fraction"))}
        for record in read_records(run, 99)
    ]
    return weights, timeless, read_steps(run, 1, 99), outcome.best


@contextmanager
def cut_off_at(checkpoint: int, write: int) -> Iterator[list[str]]:
    """Cut off a run's writes, done by their own thread while training goes on; yield where, once it has happened.

    None is done from the given write of the given checkpoint on, both counted from 1.
    """
    begun: list[str] = []
    counts, cuts = [0], list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_SYNC_S", 0.0)  # a checkpoint after every step
        for name in WRITES:
            real = getattr(LocalStorage, name)

            def dying(self: LocalStorage, path: str, *rest: object, _name: str = name, _real: object = real) -> None:
                if path.startswith("checkpoints/"):
                    _, step, file = path.split("/")
                    if step > max(begun, default=""):
                        begun.append(step)
                        counts[0] = 0
                    counts[0] += 1
                    if (len(begun), counts[0]) == (checkpoint, write):
                        cuts.append(f"{_name} {file}" if step == begun[-1] else f"{_name} an older {file}")
                if cuts:
                    raise Killed
                _real(self, path, *rest)  # type: ignore[operator]

            patch.setattr(LocalStorage, name, dying)
        yield cuts


def test_a_kill_while_a_thread_writes_leaves_what_can_be_gone_on_with(dataset: str, tmp_path: Path) -> None:
    config = make_config(dataset, checkpoint_every_s=0, ema_decay=0.8)
    whole = Storage.open(tmp_path / "whole")
    expected = final(whole, fit_local(config, whole, device="cpu"))
    cuts: list[str] = []
    for number in range(1, 8):  # of the first checkpoint the first write, of the second the second...
        run = Storage.open(tmp_path / str(number))
        with cut_off_at(number, number) as cut, pytest.raises(Killed):
            fit_local(config, run, device="cpu")
        cuts += cut
        before = load_latest(run)
        assert (before is None) == (number == 1)
        assert final(run, fit_local(config, run, device="cpu")) == expected, number
    assert cuts == [
        *("delete COMMIT", f"put {WEIGHTS}", f"put {OPTIMIZER}", f"put {AVERAGE}", f"put {STATE}", "put COMMIT"),
        "delete an older COMMIT",
    ]


def campaign(dataset: str, root: Path, every: int, epochs: int) -> tuple[int, int]:
    """Kill a run at every n-th write, both ways; return the number of kills and the most steps done twice."""
    config = make_config(dataset, epochs=epochs, checkpoint_every_s=0, ema_decay=0.8, augment={"mixup_alpha": 0.3})
    counts, steps = [0], [0]
    with dying_at(0, after=False, counts=counts, steps=steps):
        run = Storage.open(root / "whole")
        whole = final(run, fit_local(config, run, device="cpu"))
    kills, redone = 0, 0
    for call in range(1, counts[0] + 1, every):
        for after in (False, True):
            run, done = Storage.open(root / f"{call}-{after}"), [0]
            with dying_at(call, after=after, counts=[0], steps=done), pytest.raises(Killed):
                fit_local(config, run, device="cpu")
            with dying_at(0, after=False, counts=[0], steps=done):
                outcome = fit_local(config, run, device="cpu")
            assert final(run, outcome) == whole, (call, after)
            kills, redone = kills + 1, max(redone, done[0] - steps[0])
    return kills, redone


def test_some_kills(dataset: str, tmp_path: Path) -> None:
    _, redone = campaign(dataset, tmp_path, every=41, epochs=3)
    assert redone <= 1  # a checkpoint interval is one step here


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_kill_at_every_write(dataset: str, tmp_path: Path) -> None:
    kills, redone = campaign(dataset, tmp_path, every=1, epochs=4)
    print(f"\n{json.dumps({'kills': kills, 'resumed': kills, 'most steps done twice': redone})}")
    assert kills >= 270
    assert redone <= 1
