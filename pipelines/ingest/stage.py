"""The ingest stage: list, cut into units, run the units that have no receipt, check, publish the catalog last.

A first ingest makes version 1. An append reads what a dataset has not and joins it to the newest version.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipelines.dataset.catalog import (
    DATASET_FORMAT,
    Catalog,
    Rebase,
    format_ref,
    next_run_id,
    publish_version,
    read_version,
)
from pipelines.dataset.label_text import SEPARATOR
from pipelines.errors import InputError, NotFound
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.plan import STAGE, make_plan, open_images
from pipelines.ingest.review import not_given, review, tell_unchecked
from pipelines.ingest.standing import check_location, holds_another, is_by_earlier, own_settings, settled
from pipelines.progress import Progress
from pipelines.sources.addresses import split_pattern
from pipelines.sources.base import Listing, Source, Unit
from pipelines.sources.labels import names_of
from pipelines.sources.names import outside_splits
from pipelines.stage_output import RUN, Plan, StageResult, open_run
from pipelines.storage import Storage

if TYPE_CHECKING:
    from pipelines.ingest.append import Joining
    from pipelines.ingest.budget import Budget
    from pipelines.ingest.newcomers import Update
    from pipelines.ingest.split import SplitPlan
    from pipelines.ingest.unit import IngestJob

logger = logging.getLogger(__name__)

MAX_CLASSES = 50_000
"""More are not classes but names of images; ImageNet-21k has 21,841."""

_NEWS = ("added", "changed", "unchanged", "gone", "withheld", "leaks")
"""What an append's result says of the difference to the version before."""

_WRITTEN = (
    "data/run/train/part.parquet",
    *(f"sheet/{place}/samples.{kind}" for place in ("run", "run/v") for kind in ("jpg", "png")),
)
"""Where a dataset has files that a pattern might take for images."""

RunUnits = Callable[["IngestJob", Sequence[Unit]], Iterator[dict[str, Any]]]
"""Does units and yields their receipts in any order; Ray Data in the product, a plain loop in fast tests."""


@dataclass(frozen=True)
class IngestResult(StageResult):
    """The published dataset: address, version, counts, and how fast it was made."""

    version: int = 1


def run(config: IngestConfig, run_units: RunUnits | None = None) -> IngestResult:
    """Make a dataset of a source's images, or with `append` its next version; every member is accounted for once.

    Killed at any moment and started again, it goes on with the units that have no receipt, and the rows and the
    fingerprint are those of an uninterrupted run.

    Raises:
        InputError: the source is missing, unreadable or without images, or `out` holds something else.
        ConfigError: an append has settings that are not the dataset's.
        DataError: too many images are unusable.
        PublishConflict: another append of the same source was published meanwhile.
    """
    config = settled(config.model_copy(update={"append": True}) if config.retry_failed else config)
    source = open_images(config)
    plan = make_plan(config, source)
    store = Storage.open(plan.out)
    _check_apart(source, store)
    standing = read_version(store, stage_format=DATASET_FORMAT)
    if standing is not None:
        if standing["sources"].get(source.name) == plan.key and not config.retry_failed:
            if config.checks:
                tell_unchecked(config, standing, plan.out)
            return _result(plan, standing, skipped=True)
        if not config.append:
            if is_by_earlier(config, source, standing):
                logger.info("ingest: it was made by an earlier release, and stands; --append takes in what is new")
                return _result(plan, standing, skipped=True)
            raise holds_another(config, store, source, standing)
        check_location(config, standing, source.name, source.uri)
        source.task = standing["task"] if config.task == "auto" else config.task
    _check_whole(config, source, source.listing())
    if config.retry_failed:
        return _retry(config, plan, store, source, standing, run_units)
    if standing is None:
        try:
            return _start(config, plan, store, source, run_units)
        except NotFound:
            # another driver of this run may have published it, and cleaned up what this one was still looking at
            standing = read_version(store, stage_format=DATASET_FORMAT)
            if standing is None or standing["sources"].get(source.name) != plan.key:
                raise
            return _result(plan, standing, skipped=True)
    return _append(config, plan, store, source, standing, run_units)


def _start(
    config: IngestConfig, plan: Plan, store: Storage, source: Source, run_units: RunUnits | None
) -> IngestResult:
    """Make the first version of a dataset."""
    from pipelines.ingest.finish import build_catalog
    from pipelines.ingest.listed import make_table, write_listing
    from pipelines.ingest.report import write_sheet
    from pipelines.ingest.split import make_split_plan

    listing = source.listing()
    split_plan = make_split_plan(listing.entries, config.split, source.carried, tells_keys=source.tells_keys)
    stray = outside_splits([entry.key for entry in listing.entries if not entry.reason])
    run_id = next_run_id(store, plan.key)
    open_run(store, STAGE, plan.key, {"run_id": run_id, "inputs": plan.inputs})
    receipts, rate = _do_units(config, store, run_id, source, split_plan, run_units)
    catalog = build_catalog(config, plan, store, run_id, source, receipts, split_plan)
    table = make_table([entry.image_id for entry in listing.entries], source.tokens())
    origin = {"listing": write_listing(store, run_id, table), "settings": own_settings(config)}
    catalog["origins"] = {source.name: origin}
    catalog["warnings"] = [*review(config, store, catalog), *listing.warnings]
    if stray and split_plan.by != "given":
        # a key may name a person, and warnings are logged
        catalog["warnings"].append(not_given("an image" if config.privacy.applies else stray))
    catalog["sheet"] = write_sheet(store, run_id, catalog)
    return _publish(plan, store, run_id, catalog, rate)


def _append(
    config: IngestConfig,
    plan: Plan,
    store: Storage,
    source: Source,
    standing: Catalog,
    run_units: RunUnits | None,
) -> IngestResult:
    """Read what a dataset has not of a source, and make that its next version."""
    from pipelines.dataset.reader import Dataset
    from pipelines.ingest.append import is_news, run_key
    from pipelines.ingest.newcomers import find_update

    update = find_update(Dataset(store.uri, standing["version"], standing), source)
    run_id = next_run_id(store, run_key(plan.key, standing, source.name, update))
    join, rate = _read_update(config, plan, store, run_id, source, standing, update, run_units)
    catalog = join(standing, standing["version"])
    if not is_news(catalog, standing, source.name):
        logger.info("ingest: nothing of %s differs from what stands: nothing was published", source.name)
        return _result(plan, standing, skipped=True)
    return _publish(plan, store, run_id, catalog, rate, join=join)


def _retry(
    config: IngestConfig,
    plan: Plan,
    store: Storage,
    source: Source,
    standing: Catalog | None,
    run_units: RunUnits | None,
) -> IngestResult:
    """Read what a dataset holds as refused of a source once more, and make what passes its next version."""
    from pipelines.dataset.reader import Dataset
    from pipelines.ingest.retry import FREE, Retrying, end_retry, find_refused, retry_run_id

    if standing is None or source.name not in standing["sources"]:
        raise InputError(
            f"{store.uri} holds nothing of {source.name} that could be tried again",
            mend=shlex.join(["resnet", "ingest", source.uri, "--out", store.uri, *(["--append"] if standing else [])]),
        )
    update = find_refused(Dataset(store.uri, standing["version"], standing), source)
    if update is None:
        return _result(plan, standing, skipped=True)
    config = config.model_copy(update=FREE)
    run_id = retry_run_id(store, config, standing, source, update)
    joining, rate = _read_update(config, plan, store, run_id, source, standing, update, run_units)
    join = Retrying(joining, frozenset(entry.image_id for entry in update.source.listing().entries))
    catalog = join(standing, standing["version"])
    is_same = catalog["fingerprint"] == standing["fingerprint"]
    if is_same and catalog["counts"]["quarantined"] == standing["counts"]["quarantined"]:
        end_retry(store, run_id)
        logger.warning("none of %d refused members passes now: nothing was published", len(join.image_ids))
        return _result(plan, standing, skipped=True)
    return _publish(plan, store, run_id, catalog, rate, join=join)


def _read_update(
    config: IngestConfig,
    plan: Plan,
    store: Storage,
    run_id: str,
    source: Source,
    standing: Catalog,
    update: Update,
    run_units: RunUnits | None,
) -> tuple[Joining, dict[str, float]]:
    """Read some members of a source; return what joins them to the version that stands, and how fast it went."""
    from pipelines.ingest.append import Joining
    from pipelines.ingest.finish import build_catalog
    from pipelines.ingest.listed import write_listing

    receipts, rate = _do_units(config, store, run_id, update.source, update.split_plan, run_units)
    own = build_catalog(config, plan, store, run_id, update.source, receipts, update.split_plan, appends=True)
    own["preprocess"] = standing["preprocess"]  # the run's own largest image says nothing of the dataset
    origin = {"listing": write_listing(store, run_id, update.listing), "settings": own_settings(config)}
    own["origins"] = {source.name: origin}
    known_key = standing["sources"].get(source.name)
    if config.retry_failed:
        own["sources"] = {source.name: known_key}  # what else is new in the source is still to be appended

    warn = partial(review, config, store)
    return Joining(config, store, run_id, source.name, known_key, update, own, warn), rate


def _do_units(
    config: IngestConfig,
    store: Storage,
    run_id: str,
    source: Source,
    split_plan: SplitPlan,
    run_units: RunUnits | None,
) -> tuple[dict[int, Mapping[str, Any]], dict[str, float]]:
    """Do the units of a run that have no receipt; return the receipts of all, and how fast it went."""
    from pipelines.dataset.receipt import read_receipts
    from pipelines.ingest.budget import Budget
    from pipelines.ingest.unit import IngestJob

    units = source.units()
    receipts: dict[int, Mapping[str, Any]] = dict(read_receipts(store, run_id))
    missing = [unit for unit in units if unit.index not in receipts]
    if not missing:
        return receipts, {}
    if receipts:
        logger.info("ingest: %d of %d units stand from an earlier run", len(receipts), len(units))
    job = IngestJob(source, store.uri, run_id, config.image, split_plan, config.privacy)
    kept = {"units_kept": len(receipts)} if receipts else {}
    budget = Budget(config, source.listing().entries, store)
    return receipts, {**_run_missing(config, job, missing, receipts, budget, run_units), **kept}


def _publish(
    plan: Plan, store: Storage, run_id: str, catalog: Catalog, rate: Mapping[str, float], join: Rebase | None = None
) -> IngestResult:
    """Publish a catalog as the next version, joined to what another run published meanwhile, and clean up."""
    from pipelines.dataset.collect import clean_run

    for warning in catalog["warnings"]:
        logger.warning("%s", warning)
    base = catalog["difference"]["parent"] if join else 0
    version = publish_version(store, run_id, catalog, base=base, rebase=join)
    clean_run(store, run_id)
    published = read_version(store, version, stage_format=DATASET_FORMAT)
    assert published is not None
    return _result(plan, published, skipped=False, **rate)


def _run_missing(
    config: IngestConfig,
    job: IngestJob,
    missing: Sequence[Unit],
    receipts: dict[int, Mapping[str, Any]],
    budget: Budget,
    run_units: RunUnits | None,
) -> dict[str, float]:
    """Do the units that have no receipt, adding theirs; return images per second, and Ray's start apart from it."""
    if run_units is not None:
        _collect(run_units(job, missing), missing, receipts, budget)
        return {}
    from pipelines.ingest.task import run_units as run_on_ray
    from pipelines.node_paths import check_nodes_see
    from pipelines.ray_runtime import ray_session

    begun_s = time.monotonic()
    with ray_session(config.ray) as session:
        check_nodes_see(session.num_nodes, {"SOURCE": job.source.root, "--out": f"{job.out}/{RUN}"})
        started_s = time.monotonic()
        done = _collect(run_on_ray(job, missing), missing, receipts, budget)
        elapsed_s = time.monotonic() - started_s
    return {
        "images_per_s": round(done / max(elapsed_s, 1e-9), 1),
        "elapsed_s": round(elapsed_s, 1),
        "ray_start_s": round(started_s - begun_s, 1),
    }


def _collect(
    reports: Iterator[dict[str, Any]], units: Sequence[Unit], receipts: dict[int, Mapping[str, Any]], budget: Budget
) -> int:
    """Add the receipts of units as they are done; return the members in them. Stops early once the budget is spent."""
    sizes = {unit.index: sum(entry.size for entry in unit.entries) for unit in units}
    done, done_bytes, started_s = 0, 0, time.monotonic()
    for receipt in receipts.values():
        budget.add(receipt)
    with Progress(budget.total, label=STAGE) as progress:
        progress.start_at(sum(int(receipt["members"]) for receipt in receipts.values()))
        for receipt in reports:
            receipts[int(receipt["unit"])] = receipt
            done += int(receipt["members"])
            budget.add(receipt)
            done_bytes += sizes[int(receipt["unit"])]
            mb_per_s = done_bytes / 1e6 / max(time.monotonic() - started_s, 1e-9)
            refused = {"quarantined": f"{budget.refused:,}"} if budget.refused else {}
            progress.advance(int(receipt["members"]), **{"MB/s": f"{mb_per_s:.3g}"}, **refused)
            if budget.is_spent:
                break  # no later unit can mend it, and `Budget.check` says what it was
    return done


def _check_apart(source: Source, store: Storage) -> None:
    """Refuse an output in the source: the next listing would find the dataset's own files among the images."""
    base, pattern = f"{source.root.rstrip('/')}/", split_pattern(source.uri)
    if not f"{store.uri}/".startswith(base):
        return
    below = f"{store.uri}/".removeprefix(base)
    if pattern is None:
        raise InputError(
            f"the output {store.uri} lies inside the source {source.uri}",
            mend="choose an --out outside of the images' folder",
        )
    if any(pattern.matches(below + path) for path in _WRITTEN):
        raise InputError(
            f"the pattern {source.uri} also matches what is written into the output {store.uri}",
            mend="choose an --out that the pattern does not match",
        )


def _check_whole(config: IngestConfig, source: Source, listing: Listing) -> None:
    if listing.faults and not config.allow_broken_archive:
        readable = sum(not entry.reason for entry in listing.entries)
        raise InputError(
            f"{source.uri} is damaged: {listing.faults[0]}; {readable:,} members before the damage are readable",
            mend="fetch it again, or take what is readable with allow_broken_archive=true",
        )
    classes = {name for entry in listing.entries for name in names_of(entry.label)}
    if source.task == "multi" and (joined := sorted(name for name in classes if SEPARATOR in name)):
        raise InputError(
            f"{source.uri} has a class {joined[0]!r}, and {SEPARATOR} stands between the labels of one image",
            mend=f"if these are several labels: label_separator='{SEPARATOR}'; else rename the class",
        )
    if len(classes) > MAX_CLASSES:
        raise InputError(
            f"{source.uri} has {len(classes):,} classes in {len(listing.entries):,} images;"
            f" {MAX_CLASSES:,} are allowed",
            where=f"for example {', '.join(sorted(classes)[:3])}" if source.tells_keys else "",
            mend="is another column the label? label_column=NAME for Parquet, or a table (labels=) with a column label",
        )


def _dropped(catalog: Catalog) -> dict[str, int]:
    """Return how many rows went by policy: out of a less held-out split, and beside another."""
    reasons = catalog.get("duplicates", {}).get("dropped")
    if reasons is None:  # by an earlier release, which dropped leaks alone
        return {"leaks_dropped": catalog["counts"]["dropped"]}
    leaks = sum(number for reason, number in reasons.items() if reason.endswith("LEAK"))
    copies = sum(reasons.values()) - leaks
    return {"leaks_dropped": leaks, **({"copies_dropped": copies} if copies else {})}


def _result(plan: Plan, catalog: Catalog, *, skipped: bool, **rate: float) -> IngestResult:
    counts = catalog["counts"]
    figures: dict[str, float | int | str] = {
        "images": catalog["rows"],
        "classes": len(catalog["classes"]),
        **{split: catalog["splits"][split]["rows"] for split in ("train", "val", "test") if split in catalog["splits"]},
        "quarantined": counts["quarantined"],
        **_dropped(catalog),
        "fingerprint": catalog["fingerprint"][:16],
        **rate,
    }
    reasons = {name.partition(".")[2]: number for name, number in counts.items() if name.startswith("quarantined.")}
    if reasons:
        figures["reasons"] = ", ".join(f"{reason} {number}" for reason, number in reasons.items())
    out = shlex.quote(plan.out)
    commands: tuple[str, ...] = (f"resnet data show {out}", f"resnet train {out}")
    if not catalog["classes"]:
        commands = (f"resnet data relabel {out} LABELS.csv", commands[0])
    elif catalog["task"] != "single":
        commands = (commands[0], f"resnet train {out} loss.name=bce")
    if counts["quarantined"] > counts.get("accepted", 0):
        commands = (*commands, f"resnet data quarantine list {out}")
    if not skipped and (difference := catalog.get("difference")):
        figures |= {name: difference[name] for name in _NEWS if difference[name]}
        commands = (f"resnet data diff {shlex.quote(format_ref(plan.out, difference['parent']))} {out}", *commands)
        if gone := catalog["sheet"].get("gone"):
            table = shlex.quote(f"{plan.out}/{gone}")
            commands = (f"resnet data exclude {out} --from {table} --reason 'gone from the source'", *commands)
    return IngestResult(plan.stage, plan.out, plan.key, skipped, figures, commands, version=int(catalog["version"]))
