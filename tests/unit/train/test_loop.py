from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipelines.errors import ConfigError, DataError, InputError, StorageError
from pipelines.storage import Storage
from pipelines.train import keeper, loop, run_writer
from pipelines.train.checkpoint import committed_steps, load_checkpoint, load_latest
from pipelines.train.collectives import World
from pipelines.train.config import TrainConfig
from pipelines.train.divergence import Diverged
from pipelines.train.keeper import Keeper
from pipelines.train.loop import fit, fit_local
from pipelines.train.outcome import FitOutcome, read_outcome
from pipelines.train.records import EpochRecord, read_progress, read_record, read_records
from pipelines.train.state import AVERAGE, OPTIMIZER, WEIGHTS, read_cursor
from resnet_models.resnet import ResNet
from tests.unit.train.awaited import await_writes, die_after_checkpoint
from tests.unit.train.tiny import make_config, write_dataset
from tests.unit.train.worlds import in_threads


class Killed(BaseException):
    """Ends a run where it stands, past every handler."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "run")


def fit_on_cpu(config: TrainConfig, run: Storage, **options: Any) -> FitOutcome:
    return fit_local(config, run, device="cpu", **options)


def final_files(run: Storage) -> dict[str, bytes]:
    newest = load_latest(run)
    assert newest is not None
    return {name: newest.files[name] for name in (WEIGHTS, OPTIMIZER, AVERAGE) if name in newest.files}


def kill_after_checkpoint(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let every step be checkpointed and die right after the given one."""
    die_after_checkpoint(monkeypatch, number, Killed())


def test_it_learns_and_leaves_records_and_checkpoints(dataset: str, run: Storage) -> None:
    config = make_config(dataset, epochs=5)
    outcome = fit_on_cpu(config, run)
    assert outcome.epochs == 5
    assert not outcome.stopped
    assert outcome.best.val_score == 1.0
    assert outcome.records[-1].train_loss < 0.5 * outcome.records[0].train_loss
    assert [record.step for record in outcome.records] == [4, 8, 12, 16, 20]  # 72 rows in batches of 20
    assert outcome.records == read_records(run, 9)
    assert committed_steps(run)[-2:] == [16, 20]
    assert outcome.best.step in committed_steps(run)
    progress = read_progress(run)
    assert progress is not None
    assert (progress.images, progress.total, progress.epoch, progress.step) == (360, 360, 5, 20)


@pytest.mark.parametrize("changes", [
    {"augment": {"shift_px": 1, "mixup_alpha": 0.3}, "ema_decay": 0.8, "label_smoothing": 0.1},
    {"optimizer": {"name": "adamw", "lr": 0.01, "clip_norm": 0.5}},
])  # fmt: skip
def test_resumed_at_any_step_is_never_stopped_bit_for_bit(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(loop, "_SYNC_S", 0.0)
    config = make_config(dataset, checkpoint_every_s=0.0, **changes)
    whole = Storage.open(tmp_path / "whole")
    expected = fit_on_cpu(config, whole)
    for number in (1, 2, 4, 5, 7, 8):  # 4 and 8 are the ends of the epochs
        run = Storage.open(tmp_path / f"killed-{number}")
        with monkeypatch.context() as patch:
            kill_after_checkpoint(patch, number)
            with pytest.raises(Killed):
                fit_on_cpu(config, run)
        outcome = fit_on_cpu(config, run)
        assert final_files(run) == final_files(whole)
        assert [record.id_trace for record in outcome.records] == [record.id_trace for record in expected.records]
        for ours, theirs in zip(outcome.records, expected.records, strict=True):
            assert (ours.val_loss, ours.train_top1, ours.lr) == (theirs.val_loss, theirs.train_top1, theirs.lr)
            assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-12)


def test_killed_again_and_again_it_still_ends_the_same(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_SYNC_S", 0.0)
    config = make_config(dataset, checkpoint_every_s=0.0)
    whole, run = Storage.open(tmp_path / "whole"), Storage.open(tmp_path / "run")
    fit_on_cpu(config, whole)
    for _ in range(8):
        with monkeypatch.context() as patch:
            kill_after_checkpoint(patch, 1)
            with pytest.raises(Killed):
                fit_on_cpu(config, run)
    assert fit_on_cpu(config, run).epochs == 2
    assert final_files(run) == final_files(whole)


def test_a_damaged_checkpoint_costs_one_and_changes_nothing(
    dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(dataset, epochs=3)
    whole, run = Storage.open(tmp_path / "whole"), Storage.open(tmp_path / "run")
    fit_on_cpu(config, whole)
    fit_on_cpu(config, run, on_epoch=lambda record: record.epoch < 2)
    weights = bytearray(run.read("checkpoints/step-00000008/weights.safetensors"))
    weights[-5] ^= 1
    run.put("checkpoints/step-00000008/weights.safetensors", bytes(weights))
    assert fit_on_cpu(config, run).epochs == 3
    assert "step-00000008 is damaged: the SHA-256 of weights.safetensors differs; going back" in caplog.text
    assert final_files(run) == final_files(whole)


def test_two_and_three_workers_walk_the_same_way(dataset: str, tmp_path: Path) -> None:
    config = make_config(dataset, ema_decay=0.5, augment={"shift_px": 1, "mixup_alpha": 0.3})

    def train(size: int) -> list[EpochRecord]:
        run = Storage.open(tmp_path / str(size))
        return in_threads(size, lambda world: fit(config, run, world=world, device=torch.device("cpu")))[0].records

    alone = train(1)
    for size in (2, 3):
        for ours, theirs in zip(train(size), alone, strict=True):
            assert ours.id_trace == theirs.id_trace
            assert ours.train_top1 == theirs.train_top1
            assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
            assert ours.val_loss == pytest.approx(theirs.val_loss, rel=1e-3)


def test_another_number_of_workers_takes_over_at_a_checkpoint(dataset: str, tmp_path: Path) -> None:
    config = make_config(dataset)
    run = Storage.open(tmp_path / "run")

    def train(size: int, on_epoch: Callable[[EpochRecord], bool] | None = None) -> FitOutcome:
        return in_threads(
            size, lambda world: fit(config, run, world=world, device=torch.device("cpu"), on_epoch=on_epoch)
        )[0]

    assert train(3, on_epoch=lambda _: False).stopped
    outcome = train(2)
    alone = fit_on_cpu(config, Storage.open(tmp_path / "alone"))
    assert [record.id_trace for record in outcome.records] == [record.id_trace for record in alone.records]
    assert outcome.records[-1].val_loss == pytest.approx(alone.records[-1].val_loss, rel=1e-3)


def test_on_epoch_stops_the_run_and_it_can_go_on(dataset: str, run: Storage) -> None:
    config = make_config(dataset, epochs=3)
    seen: list[int] = []

    def stop_after_first(record: EpochRecord) -> bool:
        seen.append(record.epoch)
        return False

    outcome = fit_on_cpu(config, run, on_epoch=stop_after_first)
    assert (outcome.epochs, outcome.stopped, seen) == (1, True, [1])
    standing = read_outcome(config, run)
    assert standing is not None
    assert standing.stopped
    outcome = fit_on_cpu(config, run, on_epoch=lambda record: seen.append(record.epoch) is None)
    assert (outcome.epochs, outcome.stopped, seen) == (3, False, [1, 2, 3])


def test_a_finished_run_is_not_trained_again(dataset: str, run: Storage) -> None:
    config = make_config(dataset)
    first = fit_on_cpu(config, run)
    assert fit_on_cpu(config, run, on_epoch=lambda _: pytest.fail("an epoch was trained")) == first


def test_a_loss_that_is_no_number_stops_the_run(dataset: str, run: Storage) -> None:
    config = make_config(dataset, optimizer={"lr": 1e30}, schedule={"name": "constant", "warmup_epochs": 0})
    with pytest.raises(DataError, match=r"the loss became (nan|inf) before step \d+, in epoch 1") as caught:
        fit_on_cpu(config, run)
    assert "lower optimizer.lr (1e+30)" in caught.value.mend
    assert committed_steps(run) == []


def test_checkpoints_of_other_data_are_refused(dataset: str, tmp_path: Path, run: Storage) -> None:
    fit_on_cpu(make_config(dataset), run, on_epoch=lambda _: False)
    other = write_dataset(tmp_path / "other", counts={"train": {"a": 20, "b": 20, "c": 20}, "val": {"a": 3, "b": 3}})
    with pytest.raises(DataError, match=r"the checkpoint of step 4 is of dataset '[0-9a-f]{64}', and this run's is"):
        fit_on_cpu(make_config(other), run)
    with pytest.raises(DataError, match=r"the checkpoint of step 4 is of network\.width 1\.0, and this run's is 2\.0"):
        fit_on_cpu(
            make_config(dataset, model={"depths": [1, 1], "channels": [8, 16], "width": 2.0, "stem": "cifar"}), run
        )


def test_a_failing_checkpoint_store_is_survived_until_the_end(
    dataset: str, run: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save = run_writer.save_checkpoint

    def save_unless(steps: set[int]) -> Callable[..., None]:
        def guarded(storage: Storage, step: int, files: dict[str, bytes]) -> None:
            if step in steps:
                raise StorageError("the disk is full")
            save(storage, step, files)

        return guarded

    monkeypatch.setattr(run_writer, "save_checkpoint", save_unless({4}))
    assert fit_on_cpu(make_config(dataset), run).epochs == 2
    assert "the checkpoint of step 4 could not be written; training goes on" in caplog.text
    rest = {"val_top1": 0.5, "val_map": None, "val_macro_f1": None, "val_micro_f1": None}
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {"val_loss": float(next(worse)), **rest})
    worse = iter(range(9))  # the first epoch is the best, and its checkpoint is the one that fails
    outcome = fit_on_cpu(make_config(dataset), run.child("best"))
    assert outcome.best.epoch == 2
    assert load_checkpoint(run.child("best"), outcome.best.step).step == 8
    monkeypatch.setattr(run_writer, "save_checkpoint", save_unless({8}))
    monkeypatch.setattr(run_writer, "_LAST_PAUSES_S", (0.01, 0.01))
    with pytest.raises(StorageError, match="the disk is full"):
        fit_on_cpu(make_config(dataset), run.child("again"))


def test_a_batch_larger_than_the_dataset_is_one_short_batch(dataset: str, run: Storage) -> None:
    outcome = fit_on_cpu(make_config(dataset, global_batch_size=500), run)
    assert [record.step for record in outcome.records] == [1, 2]


def test_one_class_is_refused(tmp_path: Path, run: Storage) -> None:
    address = write_dataset(tmp_path / "one", counts={"train": {"a": 9}, "val": {"a": 3}})
    with pytest.raises(InputError, match=r"the dataset has 1 class \(a\); telling classes apart takes at least two"):
        fit_on_cpu(make_config(address), run)


def test_a_class_missing_in_train_is_said(tmp_path: Path, run: Storage, caplog: pytest.LogCaptureFixture) -> None:
    address = write_dataset(tmp_path / "gap", counts={"train": {"a": 9, "c": 9}, "val": {"a": 3, "b": 3}})
    assert fit_on_cpu(make_config(address), run).epochs == 2
    assert "1 classes have no row in train and cannot be learnt: b" in caplog.text


def test_a_dataset_without_val_is_refused(tmp_path: Path, run: Storage) -> None:
    address = write_dataset(tmp_path / "no-val", counts={"train": {"a": 9, "b": 9}})
    with pytest.raises(InputError, match="has no split 'val'"):
        fit_on_cpu(make_config(address), run)


def test_unlabelled_rows_are_refused(tmp_path: Path, run: Storage) -> None:
    address = write_dataset(tmp_path / "unlabelled", labelled=False)
    with pytest.raises(InputError, match=r"72 of 72 rows in split 'train' of .* have no label"):
        fit_on_cpu(make_config(address), run)


def test_more_workers_than_a_batch_has_rows_are_refused(dataset: str, run: Storage) -> None:
    config = make_config(dataset, global_batch_size=2)
    with pytest.raises(ConfigError, match="3 workers cannot share 2 lanes"):
        in_threads(3, lambda world: fit(config, run, world=world, device=torch.device("cpu")))


def test_a_network_that_does_not_fit_is_refused(dataset: str, run: Storage) -> None:
    with pytest.raises(ConfigError, match=r"model\.num_classes is 7: the data has 3 classes"):
        fit_on_cpu(make_config(dataset, model={"depths": [1], "num_classes": 7}), run)
    with pytest.raises(ConfigError, match=r"model\.in_channels is 1; datasets hold RGB images"):
        fit_on_cpu(make_config(dataset, model={"depths": [1], "in_channels": 1}), run)


def test_the_world_is_one_without_a_process_group() -> None:
    assert World.current() == World(0, 1)


@pytest.mark.parametrize("pieces", [2, 7, 50])
def test_a_share_in_pieces_gives_the_same_steps_where_no_norm_sees_a_batch(
    dataset: str, tmp_path: Path, pieces: int
) -> None:
    changes: dict[str, Any] = {
        "model": {"depths": [1, 1], "channels": [8, 16], "stem": "cifar", "norm": "group", "norm_size": 4},
        "augment": {"shift_px": 1, "mixup_alpha": 0.4},
        "precision": "float64",
    }
    whole, cut = Storage.open(tmp_path / "whole"), Storage.open(tmp_path / "cut")
    records = fit_on_cpu(make_config(dataset, **changes), whole).records
    for one, other in zip(
        records, fit_on_cpu(make_config(dataset, accumulate=pieces, **changes), cut).records, strict=True
    ):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-6)
        assert other.id_trace == one.id_trace


def test_a_run_that_no_longer_gets_better_ends(dataset: str, tmp_path: Path) -> None:
    config = make_config(dataset, epochs=9, patience_epochs=2, optimizer={"lr": 1e-9})
    run = Storage.open(tmp_path / "run")
    outcome = fit_on_cpu(config, run)
    assert outcome.epochs == outcome.best.epoch + 2 < 9
    assert not outcome.stopped
    assert fit_on_cpu(config, run) == outcome  # nothing is done twice
    assert len(read_records(run, 9)) == outcome.epochs


def test_a_run_whose_time_is_up_goes_on_to_the_same_bits(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_SYNC_S", 0.0)
    config = make_config(dataset, epochs=2)
    whole, cut = Storage.open(tmp_path / "whole"), Storage.open(tmp_path / "cut")
    expected = fit_on_cpu(config, whole)
    steps = []
    for _ in range(3):
        stopped = fit(config, cut, world=World(), device=torch.device("cpu"), ends_at_s=0.0)
        assert stopped.stopped
        steps.append(committed_steps(cut)[-1])
    assert steps == [1, 2, 3]
    assert fit_on_cpu(config, cut).best == expected.best
    assert final_files(cut) == final_files(whole)


def poison(monkeypatch: pytest.MonkeyPatch, at_step: int, times: int) -> None:
    """Let the weights become infinite after a step, the first times that it is taken at the full rate or any."""
    from pipelines.train.step import Step

    take = Step.__call__
    done = 0

    def poisoned(self: Step, batch: Any, rate: float) -> torch.Tensor:
        nonlocal done
        figures = take(self, batch, rate)
        if self._state.cursor.step + 1 == at_step and done < times:
            done += 1
            with torch.no_grad():
                next(self._state.network.parameters()).fill_(float("inf"))
        return figures

    monkeypatch.setattr(Step, "__call__", poisoned)


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_that_diverges_goes_back_past_poisoned_checkpoints_with_a_lower_rate(
    dataset: str, run: Storage, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(loop, "_SYNC_S", 0.0)
    poison(monkeypatch, at_step=6, times=size)
    config = make_config(
        dataset,
        epochs=3,
        checkpoint_every_s=0,
        divergence={"rollbacks": 1},
        schedule={"name": "constant", "warmup_epochs": 0.0},
    )
    outcomes = in_threads(size, lambda world: fit(config, run, world=world, device=torch.device("cpu")))
    assert outcomes[0].epochs == 3
    assert [record.step for record in outcomes[0].records] == [4, 8, 12]
    assert [record.lr for record in outcomes[0].records] == pytest.approx([0.1, 0.05, 0.05])
    cursor = read_cursor(load_checkpoint(run, 12))
    assert (cursor.rollbacks, cursor.rate_scale) == (1, 0.5)


def test_two_divergences_far_apart_cost_what_lies_between_checkpoint_and_fault(
    dataset: str, run: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, at_step=6, times=1)
    config = make_config(dataset, epochs=12, divergence={"rollbacks": 5})
    back: list[int] = []
    discard = keeper.discard_checkpoints
    monkeypatch.setattr(
        keeper, "discard_checkpoints", lambda run, *, above: (back.append(above), discard(run, above=above))
    )

    def again(record: EpochRecord) -> bool:
        if record.epoch == 9 and len(back) == 1:
            poison(monkeypatch, at_step=42, times=1)
        return True

    assert fit_on_cpu(config, run, on_epoch=again).epochs == 12
    assert back == [4, 40]


def test_records_done_again_are_handed_on_again(dataset: str, run: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.train.follow import Follower

    monkeypatch.setattr(loop, "_SYNC_S", 0.0)
    await_writes(monkeypatch)
    seen: list[tuple[int, float]] = []
    follower = Follower(run, lambda record: seen.append((record.epoch, record.train_loss)))
    config = make_config(dataset, epochs=5, divergence={"rollbacks": 1, "spike_factor": 1.5})
    spiked = False
    epoch_of = loop._Loop._refuse_spike

    def spike_once(self: Any) -> None:
        nonlocal spiked
        epoch_of(self)
        if self.state.cursor.epoch == 3 and not spiked:
            spiked = True
            self.state.cursor.returned_to = 12  # checkpoints of epoch 3 and before are good, later ones not taken
            raise Diverged.at(self.state.cursor, self.config, 9.0)

    monkeypatch.setattr(loop._Loop, "_refuse_spike", spike_once)
    outcome = fit_on_cpu(config, run, on_epoch=lambda _: (follower.poll(), True)[1])
    follower.poll()
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 3, 4, 5]
    assert dict(seen) == {record.epoch: record.train_loss for record in outcome.records}


def test_a_run_that_diverges_once_too_often_ends_with_the_reason(
    dataset: str, run: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, at_step=6, times=3)
    with pytest.raises(DataError, match="the loss became nan"):
        fit_on_cpu(make_config(dataset, epochs=3, divergence={"rollbacks": 2}), run)


def test_a_jump_of_the_loss_goes_back_too(dataset: str, run: Storage) -> None:
    wild = {
        "optimizer": {"lr": 30.0},
        "schedule": {"name": "constant", "warmup_epochs": 1.0, "start_fraction": 0.001},
        "divergence": {"rollbacks": 20, "rate_factor": 0.1, "spike_factor": 1.5},
    }
    outcome = fit_on_cpu(make_config(dataset, epochs=4, **wild), run)
    losses = [record.train_loss for record in outcome.records]
    assert len(losses) == 4
    assert all(after <= 1.5 * before for before, after in pairwise(losses))
    assert read_cursor(load_checkpoint(run, 16)).rollbacks > 0


def test_behind_a_jump_the_epoch_is_begun_anew_whatever_was_saved_within(
    dataset: str, run: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that was taken between the jump and the end of the epoch holds what jumped."""
    await_writes(monkeypatch)
    monkeypatch.setattr(loop, "_SYNC_S", 0.0)
    refuse, came_to = loop._Loop._refuse_spike, list[int]()
    go_back = Keeper.go_back

    def spike_once(self: Any) -> None:
        if self.state.cursor.epoch == 2 and not came_to:
            self.state.cursor.last_loss = self.state.cursor.sums.loss / self.state.cursor.sums.rows / 10
        refuse(self)

    def note(self: Any, state: Any, identity: Any) -> None:
        came_to.append(state.cursor.step)
        go_back(self, state, identity)

    monkeypatch.setattr(loop._Loop, "_refuse_spike", spike_once)
    monkeypatch.setattr(Keeper, "go_back", note)
    config = make_config(dataset, epochs=4, checkpoint_every_s=0.0, divergence={"rollbacks": 1, "spike_factor": 3.0})
    outcome = fit_on_cpu(config, run)
    assert came_to == [8]  # the end of the second epoch; 11 stood as well
    assert outcome.epochs == 4


def test_weights_that_break_in_the_last_step_are_not_kept(dataset: str, run: Storage) -> None:
    """No loss of training shows it: the only step's was computed before."""
    broken = {
        "optimizer": {"lr": 1e30},
        "schedule": {"name": "constant", "warmup_epochs": 0.0},
        "global_batch_size": 72,
    }
    with pytest.raises(DataError, match=r"the loss on val became (nan|inf) before step 1, in epoch 1"):
        fit_on_cpu(make_config(dataset, epochs=1, **broken), run)
    assert read_record(run, 1) is None


@pytest.mark.parametrize(
    ("values", "words"),
    [({"spike_factor": 0.5, "rollbacks": 1}, "above 1"), ({"spike_factor": 2.0}, "rollbacks is 0")],
    ids=["below-one", "never"],
)
def test_impossible_guards_are_refused(dataset: str, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        make_config(dataset, divergence=values)


def test_small_images_first_are_seen_by_training_alone(dataset: str, run: Storage) -> None:
    sides: list[tuple[bool, int]] = []
    config = make_config(dataset, epochs=4, progressive={"start_fraction": 0.5, "full_at": 0.75, "multiple_px": 2})

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sides.append((module.training, inputs[0].shape[-1]))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: look(module, inputs) if isinstance(module, ResNet) else None
    )
    try:
        fit_on_cpu(config, run)
    finally:
        handle.remove()
    assert [side for is_training, side in sides if is_training] == [4] * 4 + [6] * 4 + [8] * 8
    assert {side for is_training, side in sides if not is_training} == {8}


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(dataset: str, tmp_path: Path) -> None:
    config = make_config(dataset, epochs=2)
    plain = fit_on_cpu(config, Storage.open(tmp_path / "plain"))
    compiled = fit_on_cpu(config.model_copy(update={"compile": True}), Storage.open(tmp_path / "compiled"))
    for one, other in zip(plain.records, compiled.records, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-3)
        assert other.id_trace == one.id_trace
