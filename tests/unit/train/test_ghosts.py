"""Ghost norms in training: their statistics move once a step, by the same slices, whoever holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.storage import Storage
from pipelines.train.collectives import World
from pipelines.train.ghosts import GhostStatistics
from pipelines.train.loop import fit_local
from resnet_models.norm import GhostBatchNorm
from tests.unit.train.test_memory import narrow, weights
from tests.unit.train.tiny import make_config, write_dataset
from tests.unit.train.worlds import in_threads

IMAGES = torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1
MODEL = {"depths": [1, 1], "channels": [8, 16], "stem": "cifar", "norm": "ghost", "norm_size": 5}


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
