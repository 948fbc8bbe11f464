"""Libraries that also write training sets from images, with the minimal loop's decoder, resize and encoder.

`pip install litdata webdataset mosaicml-streaming` adds all of them.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.benchmarks.ingest_peers import NUM_PROCESSES, Names, Pool, members, small_jpeg

CHUNK_BYTES = 64 << 20

Peer = Callable[[Path, Names, Path], float]
"""Takes a folder, its images and a folder to write; returns images per second."""


def webdataset_shard(source: Path, names: Names, out: Path) -> int:
    """Write one tar of samples."""
    import webdataset

    with webdataset.TarWriter(f"{out}.tar") as sink:
        for place, (name, data) in enumerate(members(source, names)):
            sink.write({"__key__": f"{place:08d}", "jpg": small_jpeg(data), "cls": name.partition("/")[0]})
    return len(names)


def streaming_shard(source: Path, names: Names, out: Path) -> int:
    """Write MosaicML's shards, with their hashes."""
    from streaming import MDSWriter

    columns = {"image": "bytes", "label": "str"}
    shutil.rmtree(f"{out}-mds", ignore_errors=True)
    with MDSWriter(out=f"{out}-mds", columns=columns, hashes=["sha1"], size_limit=CHUNK_BYTES) as sink:
        for name, data in members(source, names):
            sink.write({"image": small_jpeg(data), "label": name.partition("/")[0]})
    return len(names)


def minimal_shard(source: Path, names: Names, out: Path) -> int:
    """Do the minimal loop in a Ray task."""
    from tests.benchmarks.ingest_peers import minimal

    out.parent.mkdir(parents=True, exist_ok=True)
    return minimal(source, names, out)


def ray_tasks_rate(source: Path, names: Names, out: Path) -> float:
    """Return images per second of plain Ray tasks that each read, decode and write a part; Ray must be running."""
    import ray

    task = ray.remote(num_cpus=1)(minimal_shard)
    warm = [task.remote(source, names[:2], out / f"warm{rank}") for rank in range(NUM_PROCESSES)]
    ray.get(warm)
    started_s = time.perf_counter()
    done = sum(ray.get([task.remote(source, names[part::16], out / f"{part}") for part in range(16)]))
    return float(done / (time.perf_counter() - started_s))


def read_binary_files_rate(source: Path, names: Names, out: Path) -> float:
    """Return images per second of `read_binary_files`, `map`, `write_parquet` over an eighth of the images."""
    import ray.data

    paths = [str(source / name) for name in names[::8]]
    shutil.rmtree(out, ignore_errors=True)
    started_s = time.perf_counter()
    files = ray.data.read_binary_files(paths, include_paths=True)
    files.map(lambda row: {"bytes": small_jpeg(row["bytes"]), "path": row["path"]}).write_parquet(str(out))
    return len(paths) / (time.perf_counter() - started_s)


def paths_rate(source: Path, names: Names, out: Path) -> float:
    """Return images per second of a table of paths, `map`, `write_parquet` over a quarter of the images."""
    import ray.data

    paths = [{"path": str(source / name)} for name in names[::4]]
    shutil.rmtree(out, ignore_errors=True)
    started_s = time.perf_counter()
    rows = ray.data.from_items(paths, override_num_blocks=16)
    rows.map(lambda row: {"bytes": small_jpeg(Path(row["path"]).read_bytes()), **row}).write_parquet(str(out))
    return len(paths) / (time.perf_counter() - started_s)


def _litdata_item(name: str, source: Path) -> dict[str, bytes | str]:
    return {"image": small_jpeg((source / name).read_bytes()), "label": name.partition("/")[0]}


def litdata_rate(source: Path, names: Names, out: Path) -> float:
    """Return images per second of `litdata.optimize`, its workers' start included."""
    import litdata

    shutil.rmtree(out, ignore_errors=True)
    started_s = time.perf_counter()
    litdata.optimize(
        fn=partial(_litdata_item, source=source),
        inputs=list(names),
        output_dir=str(out),
        chunk_bytes=CHUNK_BYTES,
        num_workers=NUM_PROCESSES,
        start_method="spawn",
    )
    return len(names) / (time.perf_counter() - started_s)


def library_peers(pool: Pool) -> dict[str, Peer | None]:
    """Return the peers by the name that the table shows; None for those that are not installed."""
    found: dict[str, tuple[str, Peer]] = {
        "plain Ray tasks": ("ray", ray_tasks_rate),
        "WebDataset TarWriter": ("webdataset", partial(pool.rate, webdataset_shard)),
        "MosaicML MDSWriter": ("streaming", partial(pool.rate, streaming_shard)),
        "litdata.optimize, its workers' start included": ("litdata", litdata_rate),
        "Ray Data, read_binary_files": ("ray", read_binary_files_rate),
        "Ray Data over paths": ("ray", paths_rate),
    }
    return {name: peer if importlib.util.find_spec(module) else None for name, (module, peer) in found.items()}
