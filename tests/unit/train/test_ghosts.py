"""Ghost norms in training: their statistics move once a step, by the same slices, whoever holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from pipelines.dataset.reader import open_dataset
from pipelines.storage import Storage
from pipelines.train.batch import Batch
from pipelines.train.collectives import World
from pipelines.train.feed import SplitRows, TrainFeed
from pipelines.train.ghosts import GhostStatistics
from pipelines.train.loop import fit, fit_local
from pipelines.train.records import read_records
from pipelines.train.step import _pieces
from pipelines.train.step_log import read_steps
from resnet_models.norm import GhostBatchNorm
from tests.unit.train.test_memory import narrow, weights
from tests.unit.train.tiny import make_config, write_dataset
from tests.unit.train.worlds import in_threads

IMAGES = torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1
MODEL = {"depths": [1, 1], "channels": [8, 16], "stem": "cifar", "norm": "ghost", "norm_size": 5}


# 72 rows in batches of 20: the last batch has 12, which four ghosts of 5 share unevenly.
SHORT_LAST: dict[str, Any] = {"model": MODEL, "epochs": 3, "precision": "float64"}


def running_figures(run: Storage) -> dict[str, Tensor]:
    """Return the running statistics in a run's newest checkpoint."""
    return {name: value for name, value in load(weights(run)).items() if "running" in name}


def assert_same_training(one: Storage, other: Storage, epochs: int) -> None:
    """Hold two runs of four steps an epoch against each other: losses, ids, running statistics."""
    expected, found = (read_steps(run, 1, 4 * epochs) for run in (one, other))
    assert len(expected) == 4 * epochs
    for step, (loss, trace) in expected.items():
        assert found[step] == (pytest.approx(loss, rel=1e-12), trace), step
    for name, value in running_figures(one).items():
        torch.testing.assert_close(running_figures(other)[name], value, rtol=1e-12, atol=1e-12)


def two_norms() -> nn.Sequential:
    return nn.Sequential(GhostBatchNorm(3, size=2), nn.ReLU(), GhostBatchNorm(3, size=2)).train()


def statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.named_buffers()}


def immediate(rows: list[int]) -> dict[str, Tensor]:
    """Return the statistics after one forward pass of all rows, where nothing is deferred."""
    network = two_norms()
    network(IMAGES[rows])
    return statistics(network)


@pytest.mark.parametrize(
    "shares",
    [
        [[0, 1, 2, 3, 4, 5, 6, 7]],
        [[0, 1, 4, 5], [2, 3, 6, 7]],
        [[0, 1, 4, 5, 6, 7], [2, 3]],
        [[0, 1, 2, 3, 4, 5, 6, 7], []],
    ],
)
@pytest.mark.parametrize("pieces", [1, 2])
def test_slices_are_merged_to_the_same_bits_however_they_are_spread(shares: list[list[int]], pieces: int) -> None:
    def work(world: World) -> dict[str, Tensor]:
        network = two_norms()
        ghosts, share = GhostStatistics(network, world), torch.tensor(shares[world.rank], dtype=torch.long)
        before = statistics(network)
        # Pieces of whole slices, another number of them on each worker.
        for piece in share.split(8 // pieces if world.rank else 8 // pieces // 2) if len(share) else [share]:
            network(IMAGES[piece])
        assert all(torch.equal(value, before[name]) for name, value in before.items()), "nothing moves in between"
        ghosts.settle()
        return statistics(network)

    expected = immediate(list(range(8)))
    for found in in_threads(len(shares), work):
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


def test_what_is_forgotten_and_what_is_frozen_does_not_count() -> None:
    network = two_norms()
    ghosts = GhostStatistics(network, World())
    network(IMAGES[8:])
    ghosts.forget()
    network(IMAGES[:8])
    ghosts.settle()
    for name, value in immediate(list(range(8))).items():
        assert torch.equal(statistics(network)[name], value)
    network.eval()
    before = statistics(network)
    network(IMAGES)
    ghosts.settle()
    assert all(torch.equal(value, before[name]) for name, value in statistics(network).items())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def test_pieces_for_want_of_memory_are_those_that_were_asked_for(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def run(name: str, **changes: Any) -> bytes:
        folder = Storage.open(tmp_path / name)
        fit_local(make_config(dataset, model=MODEL, **changes), folder, device="cpu")
        return weights(folder)

    asked = run("asked", accumulate=4)
    narrow(monkeypatch, 7)
    assert run("short") == asked  # 20 rows, then 10, then 5 a piece


@pytest.fixture(scope="module")
def alone(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    run = Storage.open(tmp_path_factory.mktemp("alone"))
    fit_local(make_config(dataset, **SHORT_LAST), run, device="cpu")
    return run


@pytest.mark.parametrize(("size", "pieces"), [(2, 1), (3, 1), (1, 4), (1, 3), (2, 2), (2, 4), (3, 4), (3, 2)])
def test_workers_and_pieces_of_a_short_batch_do_not_matter(
    dataset: str, alone: Storage, tmp_path: Path, size: int, pieces: int
) -> None:
    config, run = make_config(dataset, **SHORT_LAST, accumulate=pieces), Storage.open(tmp_path)
    in_threads(size, lambda world: fit(config, run, world=world, device=torch.device("cpu")))
    assert_same_training(alone, run, config.epochs)


@pytest.mark.parametrize("ghost_size", [2, 5])
def test_a_share_says_which_ghost_its_rows_are_of(dataset: str, ghost_size: int) -> None:
    """Rows of ghosts of 2 in a batch of 12: lanes are more than rows, so that some ghosts have fewer or none."""
    rows, config = SplitRows(open_dataset(dataset), "train", limit_bytes=1 << 20, threads=1), make_config(dataset)

    def shares(size: int, rank: int) -> list[Batch]:
        feed = TrainFeed(rows, config, World(rank, size), (0.5,) * 3, ghost_size=ghost_size)
        return list(feed.batches(1))

    def ghosts(batch: Batch) -> list[tuple[int, ...]]:
        return [tuple(part.tolist()) for part in np.split(batch.hashes, np.cumsum(batch.ghost_rows)[:-1])]

    number = 20 // ghost_size
    for t, whole in enumerate(shares(1, 0)):
        assert sum(whole.ghost_rows) == len(whole.targets)
        assert len(whole.ghost_rows) == number
        assert t == 3 or whole.ghost_rows == (ghost_size,) * number
        for rank in range(3):
            assert ghosts(shares(3, rank)[t]) == ghosts(whole)[rank::3]


@pytest.mark.parametrize(("size", "pieces"), [(2, 2), (3, 2), (3, 5), (2, 40)])
@pytest.mark.parametrize("norm", ["batch", "ghost"])
def test_in_pieces_too_the_number_of_workers_does_not_matter(
    dataset: str, tmp_path: Path, size: int, pieces: int, norm: str
) -> None:
    """Batch norm sees a piece of the batch of all, and ghosts that are cut are cut alike."""
    model = MODEL | ({"norm": "batch", "norm_size": 0} if norm == "batch" else {})
    config = make_config(dataset, **SHORT_LAST | {"model": model, "epochs": 2}, accumulate=pieces)
    one, many = Storage.open(tmp_path / "one"), Storage.open(tmp_path / "many")
    fit_local(config, one, device="cpu")
    in_threads(size, lambda world: fit(config, many, world=world, device=torch.device("cpu")))
    assert_same_training(one, many, config.epochs)


@pytest.mark.parametrize("number", [2, 3, 5, 7, 20, 40])
def test_the_pieces_of_all_workers_hold_what_one_would(dataset: str, number: int) -> None:
    rows, config = SplitRows(open_dataset(dataset), "train", limit_bytes=1 << 20, threads=1), make_config(dataset)

    def pieces(rank: int, size: int) -> list[Batch]:
        return _pieces(next(TrainFeed(rows, config, World(rank, size), (0.5,) * 3).batches(1)), number)

    alone, shared = pieces(0, 1), [pieces(rank, 3) for rank in range(3)]
    assert max(len(piece.targets) for piece in alone) <= -(-20 // number)
    for share in shared:
        assert max(len(piece.targets) for piece in share) <= -(-20 // number // 3) + 1
    for whole, *parts in zip(alone, *shared, strict=True):
        assert sorted(whole.hashes) == sorted(np.concatenate([part.hashes for part in parts]))


def test_a_worker_of_few_ghosts_cuts_them_at_once_when_memory_is_short(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers of two ghosts of 5: in 2 pieces they are whole, in 4 no smaller, in 8 they are cut."""
    narrow(monkeypatch, 4)
    config, run = make_config(dataset, model=MODEL, epochs=1), Storage.open(tmp_path)
    in_threads(2, lambda world: fit(config, run, world=world, device=torch.device("cpu")))
    (record,) = read_records(run, 1)
    assert record.pieces == 8


def test_pieces_hold_whole_ghosts_or_parts_of_one(dataset: str) -> None:
    rows = SplitRows(open_dataset(dataset), "train", limit_bytes=1 << 20, threads=1)
    batch = next(TrainFeed(rows, make_config(dataset), World(), (0.5,) * 3, ghost_size=5).batches(1))
    assert [piece.ghost_rows for piece in _pieces(batch, 3)] == [(5, 5), (5,), (5,)]
    assert [piece.ghost_rows for piece in _pieces(batch, 6)] == [(2,), (3,)] * 4
    for number in (1, 3, 4, 6):
        assert np.array_equal(np.concatenate([piece.hashes for piece in _pieces(batch, number)]), batch.hashes)


def test_what_a_pass_is_cut_into_ends_with_it() -> None:
    network = two_norms()
    ghosts = GhostStatistics(network, World())
    with pytest.raises(ValueError, match="told to cut 9 images and was given 8"), ghosts.cut((4, 5)):
        network(IMAGES[:8])
    with ghosts.cut((3, 0, 5)):
        found = network(IMAGES[:8])
    assert not torch.equal(found, network(IMAGES[:8])), "four ghosts of two again"
