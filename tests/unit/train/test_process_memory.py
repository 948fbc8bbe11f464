"""What a step frees is there for the next one, without the kernel."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from pipelines.ray_runtime import worker_environment

_FAULTS = """
import resource, sys, threading
import torch
from torch import nn
from pipelines.train.process_memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
layers = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1)]
network = nn.Sequential(*layers, nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 32, 3, padding=1))
images = torch.randn(64, 3, 32, 32)

def step():
    network(images).square().mean().backward()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def run():
    for _ in range(5):  # until freed pieces of the heap fit what is wanted
        step()
    before = faults()
    for _ in range(5):
        step()
    print(faults() - before)

if sys.argv[2] == "thread":
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
else:
    run()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_maps_of_the_next_step_cost_no_page_faults(where: str) -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", _FAULTS, how, where]
        environment = os.environ | (worker_environment() if how == "kept" else {})  # a worker of Ray has them
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    given_back = faults("given back")
    assert given_back > 10_000
    assert faults("kept") < given_back / 10
