"""Training through a Ray Train worker against the same loop in this process, interleaved, in steady images/s.

python -m pytest -m benchmark -s tests/benchmarks/test_train_speed.py
"""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from pipelines.ingest.config import IngestConfig, SplitConfig
from pipelines.storage import Storage
from pipelines.tracking import TrackingConfig
from pipelines.train.config import AugmentConfig, TrainConfig
from resnet_models.spec import ModelSpec
from tests import factories

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

PAIRS = 3
NUM_IMAGES = 5_000
EPOCHS = 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> str:
    from pipelines.ingest.stage import run

    root = tmp_path_factory.mktemp("bench")
    files = [(f"{number % 10}/{number:05d}.png", factories.make_png(number, 32, 32)) for number in range(NUM_IMAGES)]
    (root / "small.zip").write_bytes(factories.make_zip(files))
    split = SplitConfig(train=0.8, val=0.1, test=0.1)
    return run(IngestConfig(source=str(root / "small.zip"), out=str(root / "dataset"), split=split)).out


def test_a_ray_worker_against_the_bare_loop(dataset: str, tmp_path: Path, ray_local: None) -> None:
    import torch

    from pipelines.train import stage
    from pipelines.train.loop import fit_local

    torch.set_num_threads(2)
    pairs = []
    for number in range(PAIRS):
        config = TrainConfig(
            dataset=dataset,
            out=str(tmp_path / f"ray{number}"),
            model=ModelSpec(depth=20),
            augment=AugmentConfig(shift_px=4),
            ema_decay=0.99,
            epochs=EPOCHS,
            seed=number,
            cpus_per_worker=2,
            tracking=TrackingConfig(enabled=False),
        )
        bare = fit_local(config, Storage.open(tmp_path / f"bare{number}")).records[1:]
        stage.run(config)
        from pipelines.train.records import read_records

        ray = read_records(Storage.open(config.out), EPOCHS)[1:]
        pairs.append(tuple(statistics.median(record.images_per_s for record in side) for side in (ray, bare)))
    print("\nimages/s   Ray worker       bare loop    ratio")
    for ours, peer in pairs:
        print(f"        {ours:12,.0f} {peer:15,.0f} {ours / peer:8.2f}")
    print(f"median ratio {statistics.median(ours / peer for ours, peer in pairs):.2f}")
    assert all(ours > 0 and peer > 0 for ours, peer in pairs)
