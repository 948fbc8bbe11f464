"""Ghost norms in training through real processes: an epoch whose last batch is short is that of one worker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import distributed

from pipelines.storage import Storage
from pipelines.train.collectives import World
from pipelines.train.loop import fit
from tests.unit.train.test_ghosts import SHORT_LAST, assert_same_training
from tests.unit.train.tiny import make_config, write_dataset

pytestmark = pytest.mark.integration


def work(rank: int, dataset: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    run = Storage.open(f"{folder}/two")
    fit(make_config(dataset, **SHORT_LAST), run, world=World.current(), device=torch.device("cpu"))
    distributed.destroy_process_group()


def test_two_processes_train_ghost_norms_as_one_does(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    one, two = (Storage.open(tmp_path / name) for name in ("one", "two"))
    here = str(Path(__file__).parent)
    sys.path.insert(0, here)  # a spawned process imports this file by its name
    try:
        torch.multiprocessing.spawn(work, args=(dataset, str(tmp_path)), nprocs=2)
    finally:
        sys.path.remove(here)
    config = make_config(dataset, **SHORT_LAST)
    fit(config, one, world=World(), device=torch.device("cpu"))
    assert_same_training(one, two, config.epochs)
