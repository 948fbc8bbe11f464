"""The loop that training is measured against: plain torch over pixels in memory, alone or as gloo DDP.

python -m tests.benchmarks.bare_training PIXELS EPOCHS WORKERS RANK PORT

It augments with our functions, averages the weights and multiplies in bf16 where we do; it logs, checks and saves
nothing. Rank 0 prints the images/s of each epoch, of all processes together. A file that RESNET_BENCH_SAMPLES names
gets the Unix time after each step, and the images by then.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from pipelines.dataset.keyed import Hashes
from pipelines.train.config import AugmentConfig
from pipelines.train.ema import WeightAverage
from pipelines.train.precision import has_cpu_bf16
from pipelines.train.transforms import Normalise, augment
from resnet_models.resnet import build
from resnet_models.spec import ModelSpec

GLOBAL_BATCH, SIDE_PX = 128, 32
DEPTH, CLASSES, DECAY = 20, 10, 0.99
AUGMENT = AugmentConfig(shift_px=4)


def main(pixels_path: str, epochs: int, workers: int, rank: int, port: int) -> None:
    """Train on a file of pixels and targets."""
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=workers, rank=rank)
    with np.load(pixels_path) as kept:
        pixels, targets = kept["pixels"], kept["targets"]
    hashes: Hashes = np.arange(len(pixels), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    spec = ModelSpec(depth=DEPTH).for_images(image_size_px=SIDE_PX, num_classes=CLASSES)
    network: torch.nn.Module = build(spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = WeightAverage(network, DECAY)
    model = DistributedDataParallel(network) if workers > 1 else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    normalise = Normalise(mean, std, torch.device("cpu"))
    step = images_done = 0
    samples = open(os.environ.get("RESNET_BENCH_SAMPLES", os.devnull), "w", buffering=1)  # noqa: SIM115 - to the end
    for epoch in range(1, epochs + 1):
        order = np.random.default_rng(epoch).permutation(len(pixels))
        begun_s = time.perf_counter()
        model.train()
        for start in range(0, len(order), GLOBAL_BATCH):
            rows = order[start : start + GLOBAL_BATCH][rank::workers]
            images = augment(pixels[rows], hashes[rows], AUGMENT, seed=0, epoch=epoch, mean=mean)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_cpu_bf16()):
                logits = model(normalise(torch.from_numpy(images), channels_last=True))
                loss = F.cross_entropy(logits, torch.from_numpy(targets[rows]))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            average.update(network, step)
            images_done += len(rows)
            samples.write(f"{time.time()} {images_done}\n")
        loss.item()
        if rank == 0:
            print(len(order) / (time.perf_counter() - begun_s), flush=True)
    if workers > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    path, *numbers = sys.argv[1:]
    main(path, *(int(number) for number in numbers))
