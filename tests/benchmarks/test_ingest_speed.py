"""Ingest against loops and Ray Data on the same files, in turn, in one run; start-up and memory on their own.

    python -m pytest -m benchmark -s tests/benchmarks/test_ingest_speed.py

Set by environment: `RESNET_BENCH_SECONDS`, what one side of a pair takes (60; 3 is a smoke run), `RESNET_BENCH_PAIRS`
(3), `RESNET_BENCH_PHOTOS`, a tar of JPEG photographs, `RESNET_BENCH_SMALL`, a zip of small JPEGs in class folders (both
are made where they are not given, from noise, which compresses worse), and `RESNET_BENCH_PLOTS`, a folder for pictures.
"""

from __future__ import annotations

import os
import shutil
import statistics
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipelines.ingest.config import ImageConfig, IngestConfig
from pipelines.ray_runtime import RayConfig
from tests import factories
from tests.benchmarks import ingest_peers
from tests.benchmarks.bench_images import photographs, small_images
from tests.benchmarks.bench_plots import plot_cores, plot_memory, plot_rates
from tests.benchmarks.ingest_peers import Pool
from tests.benchmarks.library_peers import library_peers

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200)]

SIDE_S = float(os.environ.get("RESNET_BENCH_SECONDS", "60"))
PAIRS = int(os.environ.get("RESNET_BENCH_PAIRS", "3" if SIDE_S >= 30 else "1"))
MAX_WORKER_MB = 500
IS_SMOKE = SIDE_S < 30


@dataclass
class Row:
    """One line of the table: images per second of both sides in each pair, and the least ratio that is wanted."""

    name: str
    bar: float | None
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return statistics.median(one / other for one, other in zip(self.ours, self.peer, strict=True))


def with_comment(data: bytes, number: int) -> bytes:
    """Return a JPEG with a comment: other bytes, the same pixels, nothing behind its end."""
    return data[:2] + struct.pack(">HHQ", 0xFFFE, 10, number) + data[2:]


def write_folder(folder: Path, images: list[bytes], number: int) -> list[str]:
    """Write photographs in 100 class folders, each file another; return their names."""
    names = [f"{place % 100:02d}/{place:06d}.jpg" for place in range(number)]
    for place, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(with_comment(images[place % len(images)], place))
    return names


def write_zip(path: Path, images: list[tuple[str, bytes]], number: int) -> list[str]:
    """Write small images, repeated with other bytes, into one zip; return their names."""
    names = [f"{images[place % len(images)][0].partition('/')[0]}/{place:07d}.jpg" for place in range(number)]
    with zipfile.ZipFile(path, "w") as archive:
        for place, name in enumerate(names):
            archive.writestr(name, with_comment(images[place % len(images)][1], place))
    return names


class Memory:
    """The most that any Ray worker holds while the block runs, in MB; memory shared between processes is left out."""

    def __enter__(self) -> Memory:
        self.peak_mb, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.peak_mb = max([self.peak_mb, *(_held_mb(path) for path in Path("/proc").glob("[0-9]*"))])


def _held_mb(process: Path) -> float:
    try:
        if not (process / "cmdline").read_bytes().startswith(b"ray::"):
            return 0.0
        lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    except OSError:
        return 0.0
    return sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssFile") if name in lines) / 1024


def ingest_rate(source: Path, out: Path, number: int, image: ImageConfig | None = None) -> float:
    """Return images per second of a whole ingest, listing and publishing included, Ray's start not."""
    from pipelines.ingest.stage import run

    config = IngestConfig(source=str(source), out=str(out), image=image or ImageConfig(), ray=RayConfig(num_cpus=2))
    started_s = time.perf_counter()
    figures = run(config).figures
    elapsed_s = time.perf_counter() - started_s - float(figures.get("ray_start_s", 0))
    assert int(figures["images"]) + int(figures["leaks_dropped"]) == number, figures
    shutil.rmtree(out)
    return number / elapsed_s


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.close()


def lasting(pool: Pool, loop: ingest_peers.Loop, source: Path, names: list[str], folder: Path) -> int:
    """Return how many images a loop does in the time of one side."""
    return max(len(names), int(pool.rate(loop, source, names, folder) * SIDE_S))


def compare(rows: list[Row], ours: Callable[[], float], peers: list[Callable[[], float]]) -> None:
    """Measure all sides in turn, so that what the machine does meanwhile falls on each."""
    ours()  # Ray's workers stand, files are cached
    for _ in range(PAIRS):
        for row, peer in zip(rows, peers, strict=True):
            row.peer.append(peer())
        rate = ours()
        for row in rows:
            row.ours.append(rate)


def report(title: str, rows: list[Row]) -> None:
    print(f"\n{title}: {PAIRS} pairs of about {SIDE_S:.0f} s, images/s")
    print(f"{'against':44s} {'ingest':>9s} {'peer':>9s} {'ratio':>7s} {'wanted':>7s}")
    for row in rows:
        wanted = f"{row.bar:.2f}" if row.bar is not None else "-"
        ours, peer = statistics.median(row.ours), statistics.median(row.peer)
        print(f"{row.name:44s} {ours:9,.0f} {peer:9,.0f} {row.ratio:7.2f} {wanted:>7s}")


def hold(rows: list[Row]) -> None:
    """Refuse ratios below what is wanted, in a run long enough to say."""
    short = [f"{row.name}: {row.ratio:.2f} < {row.bar:.2f}" for row in rows if row.bar and row.ratio < row.bar]
    assert IS_SMOKE or not short, short


def test_photographs(tmp_path: Path, pool: Pool, ray_local: None) -> None:
    images, scratch = photographs(), tmp_path / "scratch"
    names = write_folder(tmp_path / "few", images, min(len(images), 200))
    number = lasting(pool, ingest_peers.minimal, tmp_path / "few", names, scratch)
    source = tmp_path / "photos"
    names = write_folder(source, images, number)
    rows = [
        Row("same functions, 2 processes", 0.90),
        Row("minimal loop, 2 processes", 0.75),
        Row("ray.data.read_images + map + write_parquet", None),
    ]
    compare(
        rows,
        lambda: ingest_rate(source, tmp_path / "out", number),
        [
            lambda: pool.rate(ingest_peers.same_functions, source, names, scratch),
            lambda: pool.rate(ingest_peers.minimal, source, names, scratch),
            lambda: ingest_peers.ray_data_rate(tmp_path / "few", scratch / "ray"),
        ],
    )
    report(f"photographs, {number:,} to 256 px", rows)
    bars = {"ingest": statistics.median(rows[0].ours)} | {row.name: statistics.median(row.peer) for row in rows}
    print("one turn each, images/s, each with the minimal loop's functions")
    for name, peer in library_peers(pool).items():
        if peer is None:
            print(f"{name:54s} not installed")
            continue
        bars[name] = peer(source, names[: len(names) // 2], scratch / "library")
        print(f"{name:54s} {bars[name]:9,.0f}")
    plot_rates(bars)
    hold(rows)


def test_memory(tmp_path: Path, ray_local: None) -> None:
    images, peaks = photographs(), dict[int, float]()
    for number in [max(100, int(SIDE_S * each)) for each in (3, 30, 300)]:
        write_folder(tmp_path / str(number), images, number)
        with Memory() as memory:
            ingest_rate(tmp_path / str(number), tmp_path / "out", number)
        peaks[number] = memory.peak_mb
    print(f"\npeak memory of one worker, MB (at most {MAX_WORKER_MB})")
    for number, peak_mb in peaks.items():
        print(f"{number:8,d} photographs {peak_mb:6,.0f}")
    plot_memory(peaks, MAX_WORKER_MB)
    assert max(peaks.values()) <= MAX_WORKER_MB
    _, some, many = peaks.values()
    assert IS_SMOKE or many <= 1.2 * some, "memory grows with the dataset"


def test_photographs_kept(tmp_path: Path, pool: Pool, ray_local: None) -> None:
    images, scratch = photographs(), tmp_path / "scratch"
    number = max(200, int(SIDE_S * 600))
    source = tmp_path / "photos"
    names = write_folder(source, images, number)
    rows = [
        Row("read, hash, decode at 1/8, write", 0.85),
        Row("same functions, 2 processes", None),
    ]
    compare(
        rows,
        lambda: ingest_rate(source, tmp_path / "out", number, ImageConfig(size_px=0)),
        [
            lambda: pool.rate(ingest_peers.checked_copies, source, names, scratch),
            lambda: pool.rate(ingest_peers.same_functions_kept, source, names, scratch),
        ],
    )
    report(f"photographs, {number:,}, bytes kept", rows)
    hold(rows)


def test_small_images_kept(tmp_path: Path, pool: Pool, ray_local: None) -> None:
    images, scratch = small_images(), tmp_path / "scratch"
    names = write_zip(tmp_path / "few.zip", images, min(len(images), 4_000))
    number = lasting(pool, ingest_peers.same_functions, tmp_path / "few.zip", names, scratch)
    names = write_zip(tmp_path / "small.zip", images, number)
    rows = [Row("same functions, 2 processes", 0.85)]
    compare(
        rows,
        lambda: ingest_rate(tmp_path / "small.zip", tmp_path / "out", number),
        [lambda: pool.rate(ingest_peers.same_functions, tmp_path / "small.zip", names, scratch)],
    )
    report(f"small images, {number:,}, bytes kept", rows)
    hold(rows)


BARE_START = """
import time
begun_s = time.perf_counter()
import os
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
import ray.data
rows = ray.data.from_items([{"number": 0}], override_num_blocks=1).map(lambda row: {"number": row["number"] + 1})
assert rows.take_all() == [{"number": 1}]
print("SECONDS", time.perf_counter() - begun_s)
"""
OUR_START = """
import time
begun_s = time.perf_counter()
import sys
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ray_runtime import RayConfig
class First(Exception): pass
def stop(*args, **kwargs):
    for report in next(value for value in args if hasattr(value, "__next__")):
        print("SECONDS", time.perf_counter() - begun_s)
        raise First
stage._collect = stop
try:
    stage.run(IngestConfig(source=sys.argv[1], out=sys.argv[2], ray=RayConfig(num_cpus=2)))
except First:
    pass
"""


def start_s(program: str, *arguments: str) -> float:
    """Return the seconds that a program says it took, in a process of its own."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=root, capture_output=True, text=True, check=True
    )
    # a session of ours sends what is printed meanwhile to standard error
    return float((done.stdout + done.stderr).partition("SECONDS ")[2].split()[0])


CORES = """
import sys, time
from pipelines.ingest import stage
from pipelines.ingest.config import IngestConfig
from pipelines.ray_runtime import RayConfig, ray_session
ray = RayConfig(num_cpus=int(sys.argv[3]))
with ray_session(ray):
    stage.run(IngestConfig(source=sys.argv[1], out=sys.argv[2] + "-warm", ray=ray))
    begun_s = time.perf_counter()
    stage.run(IngestConfig(source=sys.argv[1], out=sys.argv[2], ray=ray))
    print("SECONDS", time.perf_counter() - begun_s)
"""


def test_cores(tmp_path: Path) -> None:
    images, number = photographs(), max(200, int(SIDE_S * 300))
    write_folder(tmp_path / "photos", images, number)
    print(f"\nimages/s against cores, {number:,} photographs")
    rates = {}
    for cores in range(1, (os.cpu_count() or 1) + 1):
        took_s = start_s(CORES, str(tmp_path / "photos"), str(tmp_path / f"out{cores}"), str(cores))
        rates[cores] = number / took_s
        print(f"{cores:3d} {rates[cores]:8,.0f}")
    plot_cores(rates)


def test_start(tmp_path: Path) -> None:
    source = factories.write_class_folder(tmp_path / "set", {"cat": 1, "dog": 1})
    start_s(BARE_START)  # its files are cached
    bare, ours = [], []
    for number in range(1 if IS_SMOKE else 5):
        bare.append(start_s(BARE_START))
        ours.append(start_s(OUR_START, str(source), str(tmp_path / f"out{number}")))
    ratio = statistics.median(ours) / statistics.median(bare)
    print("\nseconds to the first image, from the interpreter's start")
    print(
        f"ingest {statistics.median(ours):.1f}, bare Ray {statistics.median(bare):.1f}, ratio {ratio:.2f} (at most 1.2)"
    )
    assert IS_SMOKE or ratio <= 1.2
