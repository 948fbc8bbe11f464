"""What a step frees is there for the next one, without the kernel."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
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

run()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_maps_of_the_next_step_cost_no_page_faults() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    given_back = faults("given back")
    assert given_back > 10_000
    assert faults("kept") < given_back / 10
