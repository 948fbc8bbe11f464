"""Norms over several processes of torch.distributed: the numbers of one process with the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, distributed, nn

from resnet_models.norm import GhostBatchNorm, SyncedBatchNorm

pytestmark = pytest.mark.integration

IMAGES = torch.randn(9, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1
SIGNS = torch.randn(9, 3, 4, 4, generator=torch.Generator().manual_seed(1))
# Ghost slices of 2 in the order in which ranks take turns: slice 0 is rank 0's first, slice 1 rank 1's first, ...
GHOST_SHARES = ([0, 1, 4, 5], [2, 3, 6, 7])
SYNC_SHARES = ([0, 1, 2, 3, 4, 5, 6], [7, 8])


def run_norm(norm: nn.BatchNorm2d, rows: list[int]) -> dict[str, Tensor]:
    x = IMAGES[rows].clone().requires_grad_()
    (norm.train()(x) * SIGNS[rows]).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is not None
    return {**norm.state_dict(), "x": x.grad, "weight_gradient": norm.weight.grad}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {
        "sync": run_norm(SyncedBatchNorm(3), SYNC_SHARES[rank]),
        "ghost": run_norm(GhostBatchNorm(3, size=2), GHOST_SHARES[rank]),
        "uneven": run_norm(GhostBatchNorm(3, size=2), [[0, 1, 4, 5], [2, 3]][rank]),
    }
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    here = str(Path(__file__).parent)
    sys.path.insert(0, here)  # a spawned process imports this file by its name
    try:
        torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    finally:
        sys.path.remove(here)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_a_synced_norm_sees_the_whole_batch(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    whole = run_norm(nn.BatchNorm2d(3), list(range(9)))
    synced = [rank["sync"] for rank in ranks]
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(synced[0][name], synced[1][name]), "every process keeps the same bits"
        torch.testing.assert_close(synced[0][name], whole[name])
    torch.testing.assert_close(torch.cat([rank["x"] for rank in synced]), whole["x"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sum(rank["weight_gradient"] for rank in synced), whole["weight_gradient"])


def test_ghost_slices_give_the_same_bits_however_they_are_spread(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    for case, rows in (("ghost", list(range(8))), ("uneven", list(range(6)))):
        alone = run_norm(GhostBatchNorm(3, size=2), rows)
        for rank in ranks:
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                assert torch.equal(rank[case][name], alone[name]), (case, name)
    alone = run_norm(GhostBatchNorm(3, size=2), list(range(8)))
    for rank, share in zip(ranks, GHOST_SHARES, strict=True):
        assert torch.equal(rank["ghost"]["x"], alone["x"][share])
