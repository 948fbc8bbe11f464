"""What would make a training wait less for its data: what the feed knows of itself, said as settings."""

from __future__ import annotations

import math

import torch

from pipelines import capacity
from pipelines.train.feed import TrainFeed
from pipelines.train.memory import free_bytes

_ROOM = 0.5
"""Share of the free memory that decoded images may take; workers of one node share them within as much."""


def wait_mend(feed: TrainFeed) -> str:
    """Return what would make steps wait less for data, the most effective first, as words for the user."""
    config, rows = feed.config, feed.rows
    (stored_height, stored_width), (height, width) = rows.decoded_shape, rows.image_shape
    mends = []
    if not rows.is_cached and not rows.differs_in_size:
        needed_mb = math.ceil(rows.num_rows * stored_height * stored_width * 3 / 2**20)
        free = free_bytes(torch.device("cpu"))
        if config.cache_limit_mb < needed_mb and (free is None or needed_mb << 20 <= _ROOM * free):
            mends.append(f"cache_limit_mb={needed_mb} keeps the decoded images in memory (now {config.cache_limit_mb})")
    if not rows.is_cached or config.augment.crop_min_area:
        own = torch.get_num_threads()  # a worker's equal share, where there are others
        used, there = config.loader_threads or own, own if feed.world.size > 1 else capacity.available_cpus()
        if used < there:
            mends.append(f"loader_threads={there} makes images ready with every CPU that is there (now {used})")
    if config.augment.crop_min_area and stored_height * stored_width >= 2 * height * width:
        mends.append(
            f"smaller stored images: they have {stored_width} x {stored_height} pixels for {width} x {height} that"
            " the network sees"
        )
    if not rows.is_cached and not mends:
        mends.append("smaller stored images, more workers or machines with more CPUs: decoding takes all there are")
    if rows.is_cached and not mends:
        mends.append("fewer operations in augment, or more workers: images are in memory, changing them takes the time")
    return "; ".join(mends)
