"""Replaying a window of a finished run, at any number of workers: the certificate that its figures can be had again.

The checkpoint before the window is read, its steps are done once more from the same rows, and each step's id trace
and loss are held against the run's own log. The run is left as it is; the certificate is added beside it.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError, DataError, InputError, RegistryError
from pipelines.node_paths import check_nodes_see
from pipelines.ray_runtime import ray_session
from pipelines.stage_output import RUN, StageResult, mlflow_run_of
from pipelines.storage import Storage
from pipelines.tracking import RunLog
from pipelines.train.config import ReplayConfig, TrainConfig
from pipelines.train.resume import finished_catalog, finished_config, kept_tracking
from pipelines.train.step_log import read_steps

if TYPE_CHECKING:
    from pipelines.train.checkpoint import Checkpoint

_LOGGER = logging.getLogger(__name__)

FORMAT_VERSION = 1
CERTIFICATES = "replay"
"""Folder of a run that holds what its replays found."""

TOLERANCES = {"float64": 1e-8, "float32": 1e-3, "fp16": 5e-2, "bf16": 5e-2}
"""Largest relative difference of a step's loss at another number of workers: sums are then taken in another order, and
training makes differences grow. With as many workers as before float32 on a CPU is equal to the bit."""


@dataclass(frozen=True)
class Certificate:
    """What a replay found."""

    run: str
    """Stage key of the run."""
    checkpoint_step: int
    first_step: int
    last_step: int
    """The window, both ends in it."""
    workers_then: int
    """The most that the run was given; fewer may have done the window where it had `min_workers`."""
    workers: int
    device: str
    precision: str
    ids_agree: bool
    """Whether every step consumed the same rows at the same places."""
    first_other_ids: int
    """The first step that did not; 0 for none."""
    largest_loss_difference: float
    """Relative, over the steps of the window."""
    tolerance: float

    @property
    def agrees(self) -> bool:
        """The verdict."""
        return self.ids_agree and self.largest_loss_difference <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"format_version": FORMAT_VERSION, **asdict(self), "agrees": self.agrees}


@dataclass(frozen=True)
class _Repeated:
    """Steps done once more, and by what, as those say who did them."""

    steps: dict[int, tuple[float, str]]
    workers: int
    device: str
    precision: str


def run(config: ReplayConfig) -> StageResult:
    """Replay a window of a run, write the certificate into the run's folder and add it to its MLflow run.

    Raises:
        InputError: there is no finished run, or it kept no checkpoint that steps follow.
        DataError: ids or losses do not agree, and the certificate is written all the same; or what was kept is damaged.
    """
    store = Storage.open(config.run)
    catalog = finished_catalog(store)
    trained = finished_config(store, catalog)
    checkpoint, recorded = _choose(store, catalog, config)
    first, last = checkpoint.step + 1, max(recorded)
    repeated = _repeat(config, trained, store, step=checkpoint.step, steps=last - first + 1)
    certificate = _compare(
        recorded,
        repeated,
        run=catalog["key"],
        checkpoint_step=checkpoint.step,
        workers_then=_most_workers(store, catalog),
        tolerance=config.tolerance or TOLERANCES[repeated.precision],
    )
    path = f"{CERTIFICATES}/steps-{first:08d}-{last:08d}-workers-{certificate.workers}.json"
    data = json.dumps(certificate.to_json(), indent=1).encode()
    store.put(path, data)
    try:
        _record(config, store, catalog, path, data)
    except (ConfigError, RegistryError) as error:
        _LOGGER.warning("the certificate was not added to the run in MLflow: %s", error.what)
    if not certificate.agrees:
        raise _disagreement(certificate, store.address(path))
    figures: dict[str, float | int | str] = {
        "steps": f"{first} to {last}, from the checkpoint of step {checkpoint.step}",
        "workers": f"{certificate.workers} (the run had up to {certificate.workers_then})",
        "ids": "agree",
        "largest_loss_difference": "0, equal to the bit"
        if certificate.largest_loss_difference == 0
        else f"{certificate.largest_loss_difference:.1e} relative, {certificate.tolerance:.0e} allowed",
        "certificate": store.address(path),
    }
    return StageResult("replay", store.uri, catalog["key"], skipped=False, figures=figures)


def _choose(
    store: Storage, catalog: dict[str, Any], config: ReplayConfig
) -> tuple[Checkpoint, dict[int, tuple[float, str]]]:
    """Return one of the kept checkpoints and what was recorded of the steps after it.

    What is damaged is said, and another one is taken.
    """
    from pipelines.dataset.keyed import keyed_order
    from pipelines.train.checkpoint import committed_steps, load_checkpoint
    from pipelines.train.state import read_cursor

    steps = [step for step in committed_steps(store) if step < catalog["records"][-1]["step"]]
    damage: DataError | None = None
    for index in keyed_order(len(steps), config.seed).tolist():
        try:
            checkpoint = load_checkpoint(store, steps[index])
            cursor, last = read_cursor(checkpoint), checkpoint.step + config.window
            recorded = read_steps(store, cursor.epoch + 1, last, rate_scale=cursor.rate_scale)
        except DataError as error:
            damage = error
            _LOGGER.warning("%s; another window is looked for", error.what)
            continue
        after: dict[int, tuple[float, str]] = {}
        while (step := checkpoint.step + len(after) + 1) in recorded and step <= last:
            after[step] = recorded[step]
        if after:
            return checkpoint, after
    if damage:
        raise damage
    raise InputError(
        f"{store.uri} kept no checkpoint that recorded steps follow",
        mend="runs of two epochs and more keep one; those trained before steps were recorded cannot be replayed",
    )


def _repeat(config: ReplayConfig, trained: TrainConfig, store: Storage, *, step: int, steps: int) -> _Repeated:
    """Do the steps once more."""
    # As many workers as asked for and no fewer, whatever the run could do with.
    changes = {"num_workers": config.workers, "min_workers": 0, "ray": config.ray, "tracking": config.tracking}
    again = trained.model_copy(update=changes)
    if config.workers == 1:
        from pipelines.train.collectives import World
        from pipelines.train.loop import replay
        from pipelines.train.precision import resolve_device, resolve_precision

        device = resolve_device("cpu" if again.use_gpu is False else "auto")
        figures = replay(again, store, step=step, steps=steps, world=World(), device=device)
        return _Repeated(figures, 1, device.type, resolve_precision(again.precision, device).name)
    from pipelines.train.group import train_in_workers

    with ray_session(config.ray) as session:
        check_nodes_see(session.num_nodes, {"RUN": f"{store.uri}/{RUN}"})
        return _Repeated(**train_in_workers(again, store, session, window={"step": step, "steps": steps}).returned)


def _compare(
    recorded: dict[int, tuple[float, str]],
    repeated: _Repeated,
    *,
    run: str,
    checkpoint_step: int,
    workers_then: int,
    tolerance: float,
) -> Certificate:
    """Hold each step's figures against the run's."""
    again = repeated.steps
    others = [step for step, (_, trace) in recorded.items() if again.get(step, (0.0, ""))[1] != trace]
    differences = [
        abs(again[step][0] - loss) / max(abs(loss), 1e-12) if step in again else math.inf
        for step, (loss, _) in recorded.items()
    ]
    return Certificate(
        run=run,
        checkpoint_step=checkpoint_step,
        first_step=min(recorded),
        last_step=max(recorded),
        workers_then=workers_then,
        workers=repeated.workers,
        device=repeated.device,
        precision=repeated.precision,
        ids_agree=not others,
        first_other_ids=min(others, default=0),
        largest_loss_difference=max(differences),
        tolerance=tolerance,
    )


def _most_workers(store: Storage, catalog: dict[str, Any]) -> int:
    """Return the most workers that the run was given, by the command that began it or by the one that ended it."""
    begun = json.loads(store.read(RUN)).get("config") or {}
    return max(int(config.get("num_workers", 1)) for config in (begun, catalog["config"]))


def _record(config: ReplayConfig, store: Storage, catalog: dict[str, Any], path: str, data: bytes) -> None:
    """Add the certificate to the MLflow run, where there is one."""
    run_id = mlflow_run_of(store, catalog)
    if not run_id or not config.tracking.enabled:
        return
    tracking = kept_tracking(json.loads(store.read(RUN)), config.tracking)
    with RunLog.open(tracking, run_name="", run_id=run_id, attach=True) as log:
        tell_certificate(log, path, data)


def tell_certificate(log: RunLog, path: str, data: bytes) -> None:
    """Add a certificate to an MLflow run, and its verdict as a tag."""
    try:
        certificate = json.loads(data)
        verdict, workers = "agrees" if certificate["agrees"] else "DISAGREES", int(certificate["workers"])
    except (ValueError, TypeError, KeyError):
        _LOGGER.warning("%s is no certificate of a replay: MLflow is not told of it", path)
        return
    log.log_file(path, data)
    log.log_tags({"replay": f"{verdict} with {workers} workers"})


def _disagreement(certificate: Certificate, address: str) -> DataError:
    if not certificate.ids_agree:
        return DataError(
            f"step {certificate.first_other_ids} of the replay consumed other rows than the run did",
            where=address,
            mend="the dataset version or the order of samples has changed; `resnet data verify` checks the first",
        )
    return DataError(
        f"the losses of steps {certificate.first_step} to {certificate.last_step} differ by"
        f" {certificate.largest_loss_difference:.1e} relative; {certificate.tolerance:.0e} are allowed",
        where=address,
        mend="another device, torch or precision computes other roundings; tolerance=... states what you accept",
    )
