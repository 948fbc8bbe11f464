"""The batch size found by itself: doubled while memory holds it and larger batches make training faster.

Steps of the real training are timed, in a process of its own: the memory that it takes is given back at its end, and
where the system kills it for the memory that it asked for, that too is an answer. No other end of it is one.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipelines import capacity
from pipelines.errors import AlreadyExists, ConfigError, DataError, NotFound, PipelineError
from pipelines.storage import Storage
from pipelines.train.config import TrainConfig
from pipelines.train.process_memory import peak_bytes, resident_and_shared_bytes
from pipelines.train.worker import describe_failure, rebuild_failure

_LOGGER = logging.getLogger(__name__)

FOUND = "batch_size.json"
LARGEST = 65_536
"""Images of the largest batch that is tried."""
_ENOUGH_GAIN = 1.05
"""A batch twice as large must be so many times as fast to be worth it."""
_TIMED_S = 0.6
_TIMED_STEPS = 2
_MARGIN = 1.25
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Tried:
    """One size."""

    size: int
    """Images of the global batch."""
    images_per_s: float
    """Of one worker's steps, data loading included."""


@dataclass(frozen=True)
class Found:
    """What was chosen, and why no larger."""

    size: int
    tried: tuple[Tried, ...]
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"size": self.size, "reason": self.reason, "tried": [asdict(each) for each in self.tried]}


def settle_batch_size(config: TrainConfig, run: Storage, standing: dict[str, Any]) -> TrainConfig:
    """Return the config with the batch size that was found and the rate that belongs to it; looked for once a run.

    Args:
        config: the run, its dataset pinned.
        run: its storage; a file keeps what was found, so that a resumed run goes on with the same. Of two commands that
            start the run at once, the first to create it decides for both.
        standing: contents of `run.json`; what was found is added for the catalog.

    Raises:
        ConfigError: the workers are on other machines than this one.
        PipelineError: not even the first size works.
    """
    if not config.find_batch_size:
        return config
    if "batch_size" not in standing:  # of a run that an earlier release began, else
        standing["batch_size"] = _read_found(run) or _look_for_size(config, run)
    return with_batch_size(config, int(standing["batch_size"]["size"]))


def _look_for_size(config: TrainConfig, run: Storage) -> dict[str, Any]:
    """Return what was found, or what another command has found and kept in the meantime."""
    if config.ray.address or os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            "find_batch_size is true and the workers run on a cluster; it is this machine that would be measured",
            mend="find_batch_size=false, and global_batch_size as large as a worker's memory holds",
        )
    found = find_batch_size(config).to_json()
    try:
        run.create(FOUND, json.dumps(found, indent=1).encode())
    except AlreadyExists:
        return _read_found(run) or found
    return found


def _read_found(run: Storage) -> dict[str, Any] | None:
    """Return what was found before, or None.

    Raises:
        DataError: the file is damaged.
    """
    try:
        found = json.loads(run.read(FOUND))
    except NotFound:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict) or type(found.get("size")) is not int or found["size"] < 1:
        raise DataError(
            "the batch size that was found for this run cannot be read",
            where=run.address(FOUND),
            mend="delete the file to have it looked for again; where checkpoints were left and another size is found,"
            " train anew with another --out",
        )
    return found


def with_batch_size(config: TrainConfig, size: int) -> TrainConfig:
    """Return the config with another batch size and the rate that belongs to it.

    The rate grows with the size for SGD (arXiv:1706.02677, sec. 2.1) and with its root for AdamW (arXiv:2205.10287).
    """
    factor = size / config.global_batch_size
    rate = config.optimizer.lr * (factor if config.optimizer.name == "sgd" else factor**0.5)
    optimizer = config.optimizer.model_copy(update={"lr": rate})
    return config.model_copy(update={"global_batch_size": size, "optimizer": optimizer, "find_batch_size": False})


def find_batch_size(config: TrainConfig, *, measure: Callable[..., None] | None = None) -> Found:
    """Return the largest batch that is worth it, beginning with `global_batch_size`.

    Args:
        config: the run, its dataset pinned.
        measure: what the process runs, as `measure_sizes`, given its arguments.

    Raises:
        PipelineError: not even the first size works, or what was tried failed for another reason than memory.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads and CUDA would hang
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure or measure_sizes, args=(config.model_dump_json(), sender), daemon=True)
    process.start()
    sender.close()
    tried: list[Tried] = []
    reason, has_ended = "", False
    try:
        for message in _messages(receiver):
            if failure := message.get("failure"):
                raise rebuild_failure(failure)
            if words := message.get("error"):
                raise _failed(str(words))
            if "reason" in message:
                reason = str(message["reason"])
                break
            tried.append(Tried(int(message["size"]), float(message["images_per_s"])))
            _LOGGER.info("a batch of %d images: %.1f images/s a worker", tried[-1].size, tried[-1].images_per_s)
        has_ended = True
    finally:
        code = _stop(process, _PATIENCE_S if has_ended else 0.0)
        receiver.close()
    if not reason:
        if code != -signal.SIGKILL:
            raise _failed(f"the process {_death(code)}")
        reason = "the process that tried the next size was killed, as it is where memory runs out"
    if not tried:
        raise ConfigError(
            f"global_batch_size is {config.global_batch_size}, and not even a batch of that size can be trained:"
            f" {reason}",
            mend="begin with a smaller global_batch_size",
        )
    best = max(tried, key=lambda each: each.images_per_s)
    # The smallest that is as good: what is larger makes fewer steps of an epoch for nothing.
    size = next(each.size for each in tried if each.images_per_s * _ENOUGH_GAIN >= best.images_per_s)
    found = Found(size, tuple(tried), reason)
    _LOGGER.info("global_batch_size=%d: %s", found.size, found.reason)
    return found


def measure_sizes(text: str, answers: Connection) -> None:
    """Time batches of rising size and send each figure, then why there is no more; the body of a process.

    Args:
        text: the config as JSON.
        answers: takes `size` with `images_per_s`, at last a `reason`, or the parts of an error as `failure`, or the
            words of one that is none of ours as `error`.
    """
    try:
        reason = _measure(TrainConfig.model_validate_json(text), answers)
        answers.send({"reason": reason})
    except PipelineError as error:
        answers.send({"failure": describe_failure(error)})
    except Exception as error:  # the boundary of the process
        answers.send({"error": f"{type(error).__name__}: {error}"})
        raise  # the traceback too
    finally:
        answers.close()


def _measure(config: TrainConfig, answers: Connection) -> str:
    """Send what each size does; return why the next one is not tried."""
    import torch

    from pipelines.train.feed import SplitRows, opened_once
    from pipelines.train.memory import MemoryShortage, free_bytes, is_out_of_memory
    from pipelines.train.precision import resolve_device

    device = resolve_device("cpu" if config.use_gpu is False else "auto")
    cpus = config.ray.num_cpus or capacity.available_cpus()
    torch.set_num_threads(capacity.cpus_per_worker(config.num_workers, cpus, requested=config.cpus_per_worker))
    open_once = opened_once(SplitRows)
    size, last = config.global_batch_size, 0.0
    while True:
        try:
            timed = _time_steps(config, size, device, open_once)
        except (RuntimeError, MemoryError, MemoryShortage) as error:
            if not isinstance(error, MemoryShortage) and not is_out_of_memory(error):
                raise
            return f"{size} images a batch do not fit into memory"
        free = free_bytes(device) if device.type == "cpu" else None  # each worker has a GPU to itself
        room = None if free is None else free + _resident_bytes()  # what this process has will be the workers'
        if room is not None and (reason := timed.shortage(size, size, config.num_workers, room)):
            return reason
        answers.send({"size": size, "images_per_s": timed.images_per_s})
        if timed.images_per_s < _ENOUGH_GAIN * last:
            return f"{size} images a batch are hardly faster than {size // 2}"
        if 2 * size > min(LARGEST, timed.num_rows):
            rows = timed.num_rows
            return f"train has {rows} rows" if rows <= LARGEST else f"no more than {LARGEST} are tried"
        if room is not None and (reason := timed.shortage(2 * size, size, config.num_workers, room)):
            return reason
        size, last = 2 * size, timed.images_per_s


@dataclass(frozen=True)
class Timed:
    """What one worker's steps at a size took."""

    images_per_s: float
    num_rows: int
    """Of train."""
    fixed_bytes: int
    """The process with the data and the network, before the first step."""
    step_bytes: int
    """What the steps took beside that, at their peak."""

    def shortage(self, size: int, measured: int, num_workers: int, room_bytes: int) -> str:
        """Return in words why a size does not fit, all workers being on this machine; empty where it does.

        What a step takes grows with the size; a size that was not `measured` itself is given a margin.
        """
        step = self.step_bytes * size / measured * (1.0 if size == measured else _MARGIN)
        needed = int(num_workers * (self.fixed_bytes + step))
        if needed <= room_bytes:
            return ""
        workers = "a worker takes" if num_workers == 1 else f"{num_workers} workers take"
        return f"{workers} {needed >> 20:,} MB for {size} images a batch, and {room_bytes >> 20:,} MB are there"


def as_one_worker(config: TrainConfig, size: int) -> TrainConfig:
    """Return the config of a process alone that does as much a step as one of the run's workers, recorded nowhere.

    Args:
        config: the run.
        size: its global batch size.
    """
    from pipelines.train.initial import find_initial, ghost_size_of, starting_spec

    share = -(-size // config.num_workers)
    if ghost := ghost_size_of(starting_spec(config, find_initial(config))):
        share = -(-share // ghost) * ghost  # whole ghosts
    return unrecorded(config).model_copy(update={"global_batch_size": share, "num_workers": 1, "min_workers": 0})


def unrecorded(config: TrainConfig) -> TrainConfig:
    """Return the config of a look at a training, its batch size as given: MLflow is told nothing of it."""
    untold = config.tracking.model_copy(update={"enabled": False})  # its store is still where init.from is looked up
    return config.model_copy(update={"tracking": untold, "find_batch_size": False})


def _time_steps(config: TrainConfig, size: int, device: Any, open_rows: Any) -> Timed:
    """Return what one worker's steps at a global batch size take."""
    import torch

    from pipelines.train.assemble import assemble
    from pipelines.train.batch import Batch
    from pipelines.train.collectives import World
    from pipelines.train.transfer import set_training

    config = as_one_worker(config, size)
    share = config.global_batch_size
    parts = assemble(config, World(), device, None, open_rows)
    parts.step.may_halve = False
    parts.state.cursor.epoch = config.epochs - 1  # progressive images are largest in the last epoch
    set_training(parts.state.network, parts.frozen)
    # Only now: what reading the data took, at its peak or for good, does not grow with the batch.
    _forget_peak()
    fixed = _resident_bytes()

    def full_batches() -> Iterator[Batch]:
        epoch = 0
        while True:
            epoch += 1
            for batch in parts.feed.batches(epoch):
                if len(batch.targets) == min(share, parts.feed.num_rows):
                    yield batch

    batches = full_batches()
    parts.step(next(batches), 0.0).tolist()  # a rate of 0: what is timed is the same whatever the rate
    steps, started_s = 0, time.perf_counter()
    while steps < _TIMED_STEPS or time.perf_counter() - started_s < _TIMED_S:
        parts.step(next(batches), 0.0).tolist()  # waits for the device
        steps += 1
    num_rows, elapsed_s = parts.feed.num_rows, time.perf_counter() - started_s
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Timed(steps * min(share, num_rows) / elapsed_s, num_rows, fixed, max(0, _peak_bytes() - fixed))


def _messages(receiver: Connection) -> Iterator[Mapping[str, Any]]:
    """Yield what a process says until it ends."""
    while True:
        try:
            yield receiver.recv()
        except EOFError:
            return


def _stop(process: Any, patience_s: float) -> int | None:
    """End a process; return its exit code, None where it did not end by itself."""
    process.join(timeout=patience_s)
    if not process.is_alive():
        code: int | None = process.exitcode
        return code
    process.kill()
    process.join()
    return None


def _death(code: int | None) -> str:
    if code is None:
        return "did not end"
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code} and no word"


def _failed(words: str) -> PipelineError:
    return DataError(
        f"find_batch_size is true, and trying batch sizes failed: {words}",
        mend="find_batch_size=false shows whether training fails alike; set global_batch_size yourself",
    )


def _forget_peak() -> None:
    """Let the peak begin anew where Linux allows it; elsewhere it stays, and steps seem to take more."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_bytes() -> int:
    # Not ru_maxrss alone: on Linux it begins at what the process that started this one had.
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return peak_bytes()


def _resident_bytes() -> int:
    """Return the memory that this process has now; where nothing says so, the most that it had."""
    try:
        return resident_and_shared_bytes()[0]
    except OSError:
        return _peak_bytes()
