"""Memory that is short: pieces are halved under the same global batch, and a batch size is found by itself."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines.errors import ConfigError, DataError
from pipelines.storage import Storage
from pipelines.train import batch_size, stage, transfer
from pipelines.train.batch_size import (
    Found,
    Timed,
    _forget_peak,
    _peak_bytes,
    _resident_bytes,
    find_batch_size,
    measure_sizes,
    settle_batch_size,
    with_batch_size,
)
from pipelines.train.checkpoint import load_latest
from pipelines.train.collectives import World
from pipelines.train.config import TrainConfig
from pipelines.train.loop import fit, fit_local
from pipelines.train.memory import MemoryShortage, free_bytes, is_out_of_memory, reason_of
from pipelines.train.outcome import FitOutcome
from pipelines.train.plan import plan
from pipelines.train.records import read_records
from pipelines.train.state import WEIGHTS, read_cursor
from tests.unit.train.measures import measure_crashed, measure_killed, measure_mute, say
from tests.unit.train.seen import training_inputs
from tests.unit.train.tiny import MODEL, make_config, write_dataset
from tests.unit.train.worlds import in_threads

GROUPED = MODEL | {"norm": "group", "norm_size": 8}
WORDS = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


class Narrow(nn.Module):
    """Passes images on and runs out of memory where training gives it more than a few, in the middle of the network."""

    def __init__(self, limit: int, first_at: int = 0) -> None:
        super().__init__()
        self.limit, self.left = limit, first_at

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.left -= 1
            if len(x) > self.limit and self.left < 0:
                raise torch.OutOfMemoryError(WORDS)
        return x


def narrow(monkeypatch: pytest.MonkeyPatch, limit: int, first_at: int = 0) -> None:
    """Put such a layer before the head, where norms before it have seen the images already."""
    make = transfer.make_network

    def make_narrow(*arguments: Any, **named: Any) -> Any:
        network = make(*arguments, **named)
        layer = Narrow(limit, first_at)
        network.head.register_forward_pre_hook(lambda _, inputs: (layer(inputs[0]),))
        return network

    monkeypatch.setattr(transfer, "make_network", make_narrow)


def weights(run: Storage) -> bytes:
    newest = load_latest(run)
    assert newest is not None
    return newest.files[WEIGHTS]


@pytest.mark.parametrize("model", [MODEL, GROUPED])
def test_pieces_are_halved_and_the_steps_are_those_of_accumulate(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    model: dict[str, Any],
) -> None:  # fmt: skip
    usual = fit_local(make_config(dataset, model=model, accumulate=4), Storage.open(tmp_path / "a"), device="cpu")
    assert usual.records[0].pieces is None
    narrow(monkeypatch, 7)
    run = Storage.open(tmp_path / "b")
    short = fit_local(make_config(dataset, model=model), run, device="cpu")  # 20 rows, then 10, then 5 a piece
    assert weights(run) == weights(Storage.open(tmp_path / "a"))
    assert [record.id_trace for record in short.records] == [record.id_trace for record in usual.records]
    assert [record.train_loss for record in short.records] == [record.train_loss for record in usual.records]
    assert [record.pieces for record in short.records] == [4, 4]
    assert json.loads(run.read("records/epoch-000001.json"))["pieces"] == 4
    assert "pieces" not in json.loads(Storage.open(tmp_path / "a").read("records/epoch-000001.json"))
    words = "worker 0 computes its share of a batch in 4 pieces from step 1 on, the batch of 20 images as before"
    assert words in caplog.text
    assert ("batch norm sees a piece at a time" in caplog.text) is (model is MODEL)
    assert WORDS in caplog.text


def test_a_run_that_goes_on_keeps_its_pieces(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(dataset, epochs=3)
    narrow(monkeypatch, 10, first_at=6)  # from the third of four steps of the second epoch on
    whole = Storage.open(tmp_path / "whole")
    fit_local(config, whole, device="cpu")
    assert [record.pieces for record in read_records(whole, 3)] == [None, 2, 2]
    monkeypatch.undo()
    narrow(monkeypatch, 10, first_at=6)
    cut = Storage.open(tmp_path / "cut")
    fit_local(config, cut, device="cpu", on_epoch=lambda record: record.epoch < 2)
    newest = load_latest(cut)
    assert newest is not None
    assert read_cursor(newest).pieces == 2
    monkeypatch.undo()  # there is memory enough now, and the steps are the same all the same
    fit_local(config, cut, device="cpu")
    assert weights(cut) == weights(whole)


def test_one_image_that_does_not_fit_ends_the_run(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow(monkeypatch, 0)
    with pytest.raises(MemoryShortage) as caught:
        fit_local(make_config(dataset), Storage.open(tmp_path), device="cpu")
    assert caught.value.what == f"a step of 1 images does not fit into memory: {WORDS}"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("place", "what"), [
    ("pipelines.train.collectives.World.sum_gradients", "the update of the weights"),
    ("torch.optim.SGD.step", "the update of the weights"),
    ("pipelines.train.ema.WeightAverage.update", "the update of the weights"),
    ("torch.func.functional_call", "the evaluation on val"),
])  # fmt: skip
def test_what_cannot_be_halved_ends_the_run_with_a_mend(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, what: str
) -> None:
    def short(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError(WORDS)

    monkeypatch.setattr(place, short)
    with pytest.raises(MemoryShortage) as caught:
        fit_local(make_config(dataset, ema_decay=0.9), Storage.open(tmp_path), device="cpu")
    assert caught.value.what == f"{what} does not fit into memory: {WORDS}"
    assert "a machine with more memory" in caught.value.mend
    assert reason_of(MemoryError()) == "MemoryError"


def test_workers_whose_norms_meet_do_not_part(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch, 4)

    def train(world: World) -> str:
        try:
            fit(make_config(dataset), Storage.open(tmp_path), world=world, device=torch.device("cpu"))
        except MemoryShortage as error:
            return error.mend
        return ""

    assert in_threads(2, train) == ["accumulate=2, or more workers"] * 2


def test_workers_whose_norms_see_no_batch_halve_each_for_itself(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(dataset, model=GROUPED, precision="float64")
    alone = fit_local(config, Storage.open(tmp_path / "one"), device="cpu")
    narrow(monkeypatch, 6)

    def train(world: World) -> FitOutcome:
        return fit(config, Storage.open(tmp_path / "two"), world=world, device=torch.device("cpu"))

    several = in_threads(2, train)[0]
    assert several.records[-1].train_loss == pytest.approx(alone.records[-1].train_loss, rel=1e-8)
    assert several.records[-1].pieces == 2


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("pipelines.train.step.rows_right", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        fit_local(make_config(dataset), Storage.open(tmp_path), device="cpu")


def test_what_the_allocator_of_cpus_really_says_is_known() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 1 << 20


def measure_narrow(text: str, answers: Connection) -> None:
    """Measure where more than 8 images do not fit."""
    narrow(pytest.MonkeyPatch(), 8)
    measure_sizes(text, answers)


def found(dataset: str, measure: Callable[..., None] | None = None, **changes: Any) -> Found:
    return find_batch_size(make_config(dataset, find_batch_size=True, **changes), measure=measure)


@pytest.mark.parametrize(("measure", "reason"), [
    (measure_narrow, "16 images a batch do not fit into memory"),
    (measure_killed, "the process that tried the next size was killed, as it is where memory runs out"),
])  # fmt: skip
def test_memory_says_no(dataset: str, measure: Callable[..., None], reason: str) -> None:
    answer = found(dataset, measure, global_batch_size=8)
    assert (answer.size, [each.size for each in answer.tried], answer.reason) == (8, [8], reason)


def test_all_workers_of_the_machine_count(
    dataset: str, monkeypatch: pytest.MonkeyPatch, one_torch_thread: None
) -> None:
    said: list[dict[str, Any]] = []
    # A machine with 900 MB, where a worker takes 100 MB and its steps as much again.
    monkeypatch.setattr(batch_size, "_resident_bytes", lambda: 100 << 20)
    monkeypatch.setattr(batch_size, "_peak_bytes", lambda: 200 << 20)
    monkeypatch.setattr("pipelines.train.memory.free_bytes", lambda _: 800 << 20)
    config = make_config(dataset, global_batch_size=8, num_workers=3, cpus_per_worker=1)
    measure_sizes(config.model_dump_json(), SimpleNamespace(send=said.append, close=lambda: None))  # type: ignore[arg-type]
    assert [message.get("size") for message in said] == [8, None]
    assert said[-1]["reason"] == "3 workers take 1,050 MB for 16 images a batch, and 900 MB are there"
    timed = Timed(1.0, 72, fixed_bytes=100 << 20, step_bytes=100 << 20)
    assert timed.shortage(16, 8, 1, 900 << 20) == ""
    assert timed.shortage(16, 8, 1, 300 << 20) == "a worker takes 350 MB for 16 images a batch, and 300 MB are there"
    assert timed.shortage(8, 8, 4, 800 << 20) == ""
    assert "5 workers take 1,000 MB for 8 images" in timed.shortage(8, 8, 5, 900 << 20)


def test_sizes_are_tried_with_the_largest_images_of_a_progressive_run(dataset: str, one_torch_thread: None) -> None:
    progressive = {"start_fraction": 0.5, "full_at": 1.0}
    config = make_config(dataset, epochs=10, global_batch_size=72, cpus_per_worker=1, progressive=progressive)
    ignored = SimpleNamespace(send=lambda _: None, close=lambda: None)
    with training_inputs() as inputs:
        measure_sizes(config.model_dump_json(), ignored)  # type: ignore[arg-type]
    assert {images.shape[-1] for images in inputs} == {8}


def test_what_reading_the_data_took_is_not_put_down_to_the_batch(dataset: str) -> None:
    block = np.ones(64 << 20, np.uint8)
    del block
    _forget_peak()
    assert _peak_bytes() - _resident_bytes() < 32 << 20


FITS = Timed(1.0, 72, fixed_bytes=0, step_bytes=0)


def said_where(
    dataset: str, monkeypatch: pytest.MonkeyPatch, *steps: Timed | Exception, **changes: Any
) -> list[dict[str, Any]]:
    """Return what is said where the steps of one size after the other come to this."""
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(batch_size, "_time_steps", mock.Mock(side_effect=steps))
    config = make_config(dataset, cpus_per_worker=1, **changes)
    with suppress(RuntimeError):  # of the process, which has told of it by then
        measure_sizes(config.model_dump_json(), SimpleNamespace(send=said.append, close=lambda: None))  # type: ignore[arg-type]
    return said


@pytest.mark.parametrize(("error", "end"), [
    (torch.OutOfMemoryError(WORDS), {"reason": "16 images a batch do not fit into memory"}),
    (RuntimeError("can't allocate memory: 9 bytes"), {"reason": "16 images a batch do not fit into memory"}),
    (MemoryError(), {"reason": "16 images a batch do not fit into memory"}),
    (MemoryShortage("the update of the weights"), {"reason": "16 images a batch do not fit into memory"}),
    (RuntimeError("shapes do not match"), {"error": "RuntimeError: shapes do not match"}),
])  # fmt: skip
def test_no_other_error_is_taken_for_a_lack_of_memory(
    dataset: str, monkeypatch: pytest.MonkeyPatch, one_torch_thread: None, error: Exception, end: dict[str, str]
) -> None:
    said = said_where(dataset, monkeypatch, FITS, error, global_batch_size=8)
    assert said == [{"size": 8, "images_per_s": 1.0}, end]


def test_an_error_is_told_in_its_words(dataset: str) -> None:
    with pytest.raises(DataError) as caught:
        found(dataset, partial(say, [{"error": "RuntimeError: shapes do not match"}]))
    assert caught.value.what == (
        "find_batch_size is true, and trying batch sizes failed: RuntimeError: shapes do not match"
    )


def test_a_crash_is_not_taken_for_a_lack_of_memory(dataset: str) -> None:
    with pytest.raises(DataError) as caught:
        found(dataset, measure_crashed, global_batch_size=8)
    assert caught.value.what == (
        "find_batch_size is true, and trying batch sizes failed: the process was ended by signal 11"
    )


def test_the_process_never_stays_behind(dataset: str) -> None:
    with pytest.raises(ValueError, match="many"):
        found(dataset, measure_mute)
    assert not multiprocessing.active_children()


def test_not_even_the_first_size_fits(dataset: str, monkeypatch: pytest.MonkeyPatch, one_torch_thread: None) -> None:
    said = said_where(dataset, monkeypatch, torch.OutOfMemoryError(WORDS), global_batch_size=20)
    with pytest.raises(ConfigError) as caught:
        found(dataset, partial(say, said), global_batch_size=20)
    assert caught.value.what == (
        "global_batch_size is 20, and not even a batch of that size can be trained: 20 images a batch do not fit into"
        " memory"
    )


def test_what_is_wrong_with_the_run_is_told_as_it_is(tmp_path: Path) -> None:
    bare = write_dataset(tmp_path, labelled=False)
    with pytest.raises(Exception, match="have no label"):
        found(bare)


def test_it_is_looked_for_once_and_the_rate_grows_with_it(dataset: str, tmp_path: Path) -> None:
    config = make_config(dataset, find_batch_size=True, global_batch_size=8, optimizer={"lr": 0.1})
    run, standing = Storage.open(tmp_path), {"batch_size": {"size": 32}}
    settled = settle_batch_size(config, run, standing)
    assert (settled.global_batch_size, settled.find_batch_size) == (32, False)
    assert settled.optimizer.lr == pytest.approx(0.4)
    slower = with_batch_size(make_config(dataset, global_batch_size=8, optimizer={"name": "adamw", "lr": 0.1}), 32)
    assert slower.optimizer.lr == pytest.approx(0.2)
    assert settle_batch_size(make_config(dataset), run, {}) == make_config(dataset)


def test_of_two_starts_at_once_the_first_decides(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = make_config(dataset, find_batch_size=True, global_batch_size=8), Storage.open(tmp_path)
    settled = []

    def find(_: TrainConfig) -> Found:
        if not settled:  # while this one measures, another command starts and ends its own measurement
            settled.append(0)
            settled.append(settle_batch_size(config, run, {}).global_batch_size)
            return Found(64, (), "slower")
        return Found(32, (), "faster")

    monkeypatch.setattr(batch_size, "find_batch_size", find)
    standing: dict[str, Any] = {}
    assert settle_batch_size(config, run, standing).global_batch_size == 32
    assert settled == [0, 32]
    assert standing["batch_size"]["reason"] == "faster"
    assert settle_batch_size(config, run, {}).global_batch_size == 32


def test_a_run_trains_with_what_was_found_and_goes_on_with_it(dataset: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    config = make_config(dataset, find_batch_size=True, global_batch_size=8, epochs=1, local=True, out=out)
    result = stage.run(config)
    catalog = json.loads((tmp_path / "run" / "_catalog.json").read_text())
    size, tried, reason = (catalog["batch_size"][name] for name in ("size", "tried", "reason"))
    sizes = [each["size"] for each in tried]
    assert size in sizes
    assert sizes == [8 * 2**number for number in range(len(sizes))]
    assert all(each["images_per_s"] > 0 for each in tried)
    assert reason == "train has 72 rows" or "are hardly faster than" in reason
    assert json.loads((tmp_path / "run" / "batch_size.json").read_text()) == catalog["batch_size"]
    assert catalog["config"]["global_batch_size"] == size
    assert catalog["config"]["optimizer"]["lr"] == pytest.approx(0.1 * size / 8)
    assert catalog["records"][0]["step"] == -(-72 // size)
    assert not result.skipped
    assert stage.run(config).skipped


def test_where_it_cannot_be_found_it_is_refused(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(dataset, find_batch_size=True)
    with pytest.raises(ConfigError, match="find_batch_size is true, and only `resnet train` finds one"):
        fit_local(config, Storage.open(tmp_path), device="cpu")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match="it is this machine that would be measured"):
        settle_batch_size(config, Storage.open(tmp_path), {})


def test_it_changes_no_key_where_it_is_off(dataset: str) -> None:
    given = TrainConfig.model_validate_json(make_config(dataset).model_dump_json())
    assert plan(given).key == plan(make_config(dataset)).key
    assert plan(make_config(dataset, find_batch_size=True)).key != plan(make_config(dataset)).key
