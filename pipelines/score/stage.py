"""The scoring stage: units over a pool of actors, receipts, the proof that nothing is lost or doubled, the catalog."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.capacity import check_gpu
from pipelines.errors import DataError, InputError
from pipelines.score.catalog import FORMAT, SPLIT, find_published, make_catalog, refuse_other_run
from pipelines.score.config import ScoreConfig
from pipelines.score.plan import STAGE, check_pin, make_plan, pin_model
from pipelines.stage_output import RUN, Plan, StageResult, open_run
from pipelines.storage import Storage

if TYPE_CHECKING:
    from pipelines.package.resolve import ResolvedPackage
    from pipelines.ray_runtime import RaySession
    from pipelines.score.unit import ScoreJob
    from pipelines.sources.base import Source, Unit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreResult(StageResult):
    """The published predictions: address, version, counts, and how fast they were made."""

    version: int = 1


RunUnits = Callable[["ScoreJob", Sequence["Unit"]], Iterator[dict[str, Any]]]
"""Scores units and yields their receipts in any order; Ray Data in the product, a plain loop in fast tests."""


def run(config: ScoreConfig, run_units: RunUnits | None = None) -> ScoreResult:
    """Score every member of the archive exactly once and publish the predictions.

    Killed at any moment and started again, it goes on with the units that have no receipt. The model is pinned before
    the first unit: an alias that moves meanwhile changes nothing.

    Raises:
        InputError: archive or model is missing, the archive holds nothing, or `out` holds something else.
        DataError: the members read are not the rows written, or too many have no prediction.
    """
    from pipelines.sources.resolve import open_source

    source = open_source(config.archive, config.source_name)
    model = pin_model(config)
    plan = make_plan(config, source, model)
    store = Storage.open(plan.out)
    _check_apart(source, store)
    if (standing := find_published(store, plan)) is not None:
        return _result(plan, standing, skipped=True)
    refuse_other_run(store, plan)
    if config.use_gpu and not (config.ray.address or os.environ.get("RAY_ADDRESS")):
        check_gpu(use_gpu=True)  # the work would be done here; a cluster's GPUs are asked of the cluster

    from pipelines.dataset.catalog import next_run_id, publish_version, read_version
    from pipelines.dataset.receipt import read_receipts
    from pipelines.score.model import stage_package

    units = source.units()
    run_id = next_run_id(store, plan.key)
    open_run(store, plan.stage, plan.key, {"run_id": run_id, "inputs": plan.inputs})
    receipts = read_receipts(store, run_id)
    rate: dict[str, float] = {}
    if missing := [unit for unit in units if unit.index not in receipts]:
        if receipts:
            logger.info("score: %d of %d units stand from an earlier run", len(receipts), len(units))
        from pipelines.score.unit import ScoreJob

        device = "cuda" if config.use_gpu else "cpu"
        package = stage_package(
            check_pin(config), config.tracking, store, run_id, precision=config.precision, device=device
        )

        job = ScoreJob(source, store.uri, run_id, package, config.top_k, config.batch_size)
        rate = _score(config, job, missing, receipts, len(source.listing().entries), run_units)
    catalog = _prove(config, plan, store, run_id, receipts, source, model)
    version = publish_version(store, run_id, catalog)
    published = read_version(store, version, stage_format=FORMAT)
    assert published is not None
    _sweep(store, run_id, published)
    return _result(plan, published, skipped=False, **rate)


def _check_apart(source: Source, store: Storage) -> None:
    """Refuse an output below the source: the run would change the very listing that its key rests on."""
    if f"{store.uri}/".startswith(f"{source.uri.rstrip('/')}/"):
        raise InputError(
            f"the output {store.uri} lies inside the source {source.uri}",
            mend="choose an --out outside of the images' folder",
        )


def _score(
    config: ScoreConfig,
    job: ScoreJob,
    missing: Sequence[Unit],
    receipts: dict[int, dict[str, Any]],
    total: int,
    run_units: RunUnits | None,
) -> dict[str, float]:
    """Score the missing units, adding their receipts; return images per second, and Ray's start apart from it."""
    if run_units is not None:
        receipts.update({int(receipt["unit"]): receipt for receipt in run_units(job, missing)})
        return {}
    from pipelines.node_paths import check_nodes_see
    from pipelines.progress import Progress
    from pipelines.ray_runtime import ray_session
    from pipelines.score.actor import run_units as run_on_ray

    earlier = sum(int(receipt["members"]) for receipt in receipts.values())
    done = 0
    begun_s = time.monotonic()
    with ray_session(config.ray) as session:
        check_nodes_see(session.num_nodes, {"ARCHIVE": job.source.root, "--out": f"{job.out}/{RUN}"})
        started_s = time.monotonic()
        num_actors = _count_actors(config, session, len(missing))
        with Progress(total, label=STAGE) as progress:
            progress.start_at(earlier)
            for receipt in run_on_ray(job, missing, num_actors=num_actors, use_gpu=config.use_gpu):
                receipts[int(receipt["unit"])] = receipt
                done += int(receipt["members"])
                progress.advance(int(receipt["members"]))
        elapsed_s = time.monotonic() - started_s
    return {
        "images_per_s": round(done / max(elapsed_s, 1e-9), 1),
        "elapsed_s": round(elapsed_s, 1),
        "ray_start_s": round(started_s - begun_s, 1),
    }


def _count_actors(config: ScoreConfig, session: RaySession, num_units: int) -> int:
    """Return how many actors to start: as asked for, or one per CPU or GPU, and no more than there are units.

    Raises:
        ClusterError: the cluster could never hold them.
    """
    from pipelines.capacity import check_fits

    room = session.num_gpus if config.use_gpu else session.num_cpus
    num_actors = min(config.num_actors or max(1, int(room)), num_units)
    check_fits(
        what=f"scoring with {num_actors} actors",
        need={"CPU": float(num_actors), "GPU": float(num_actors if config.use_gpu else 0)},
        have={"CPU": session.num_cpus, "GPU": session.num_gpus},
    )
    return num_actors


def _prove(
    config: ScoreConfig,
    plan: Plan,
    store: Storage,
    run_id: str,
    receipts: dict[int, dict[str, Any]],
    source: Source,
    model: ResolvedPackage,
) -> dict[str, Any]:
    """Check that members in = rows out, write the list of files, and return the catalog to publish.

    Raises:
        DataError: the law does not hold, or more members than allowed have no prediction.
    """
    from pipelines.dataset.receipt import ShardFile
    from pipelines.dataset.shards import write_shard_list
    from pipelines.score.proof import Tally, check_whole

    read = Tally()
    shards = []
    for index, receipt in sorted(receipts.items()):
        read.merge(Tally(int(receipt["members"]), int(receipt["id_sum"], 16)))
        shards.append(ShardFile.from_json({**receipt["file"], "split": SPLIT, "unit": index}))
    check_whole(store, [shard.path for shard in shards], read, listed=len(source.listing().entries))
    catalog = make_catalog(
        plan=plan,
        receipts=receipts,
        shard_list=write_shard_list(store, run_id, shards),
        run_id=run_id,
        source={"name": source.name, "location": source.uri, "listing": plan.inputs["listing"]},
        model={
            "ref": model.uri,
            "name": model.name,
            "version": model.version,
            "weights_sha256": model.weights_sha256,
        },
        # Addresses may hold a password, and say nothing about the predictions.
        config=config.model_dump(mode="json", exclude={"tracking", "ray"}),
    )
    counts = catalog["counts"]
    if counts["unscored"] > config.max_unscored_fraction * counts["members"]:
        raise DataError(
            f"{counts['unscored']} of {counts['members']} members have no prediction"
            f" ({', '.join(f'{reason}: {number}' for reason, number in catalog['reasons'].items())})",
            where=source.uri,
            mend=f"raise max_unscored_fraction (now {config.max_unscored_fraction:g}), or mend the archive",
        )
    return catalog


def _sweep(store: Storage, run_id: str, published: dict[str, Any]) -> None:
    """Delete, after publishing, what only the run itself needed: receipts, lost attempts, the copy of the package.

    What lives is asked of the published catalog and never of this process: another driver of the same run may have
    published first, with other attempts.
    """
    from pipelines.dataset.shards import read_shard_list

    named = set()
    for entry in published["shard_lists"]:
        named |= {entry["path"], *(shard.path for shard in read_shard_list(store, entry)[0])}
    for file in [*store.list(f"data/{run_id}"), *store.list(f"_work/{run_id}")]:
        if file.path not in named:
            store.delete(file.path)


def _result(plan: Plan, catalog: dict[str, Any], *, skipped: bool, **rate: float) -> ScoreResult:
    counts = catalog["counts"]
    model = catalog["model"]
    figures: dict[str, float | int | str] = {
        "model": "/".join(part for part in (model["name"], model["version"]) if part),
        "members": counts["members"],
        "scored": counts["scored"],
        "unscored": counts["unscored"],
        **rate,
    }
    if catalog["reasons"]:
        figures["reasons"] = ", ".join(f"{reason} {number}" for reason, number in catalog["reasons"].items())
    commands = (f"resnet data files {shlex.quote(plan.out)}",)
    return ScoreResult(plan.stage, plan.out, plan.key, skipped, figures, commands, version=int(catalog["version"]))
