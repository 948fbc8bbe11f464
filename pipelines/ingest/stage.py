"""The ingest stage: list, cut into units, run the units that have no receipt, check, publish the catalog last."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.dataset.catalog import DATASET_FORMAT, Catalog, next_run_id, publish_version, read_version
from pipelines.errors import InputError
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.plan import STAGE, make_plan, open_images
from pipelines.progress import Progress
from pipelines.sources.base import Listing, Source, Unit
from pipelines.sources.names import outside_splits
from pipelines.stage_output import RUN, Plan, StageResult, open_run
from pipelines.storage import Storage

if TYPE_CHECKING:
    from pipelines.ingest.unit import IngestJob

logger = logging.getLogger(__name__)

RunUnits = Callable[["IngestJob", Sequence[Unit]], Iterator[dict[str, Any]]]
"""Does units and yields their receipts in any order; Ray Data in the product, a plain loop in fast tests."""


@dataclass(frozen=True)
class IngestResult(StageResult):
    """The published dataset: address, version, counts, and how fast it was made."""

    version: int = 1


def run(config: IngestConfig, run_units: RunUnits | None = None) -> IngestResult:
    """Make a dataset of a source's images, every member accounted for exactly once.

    Killed at any moment and started again, it goes on with the units that have no receipt, and the rows and the
    fingerprint are those of an uninterrupted run.

    Raises:
        InputError: the source is missing, unreadable or without images, or `out` holds something else.
        DataError: too many images are unusable.
    """
    source = open_images(config)
    plan = make_plan(config, source)
    store = Storage.open(plan.out)
    _check_apart(source, store)
    standing = read_version(store, stage_format=DATASET_FORMAT)
    if standing is not None:
        if standing["sources"].get(source.name) == plan.key:
            return _result(plan, standing, skipped=True)
        raise _holds_another(store, source, standing)
    listing = source.listing()
    _check_whole(config, source, listing)

    from pipelines.dataset.collect import clean_run
    from pipelines.dataset.receipt import read_receipts
    from pipelines.ingest.finish import build_catalog
    from pipelines.ingest.report import write_sheet
    from pipelines.ingest.split import make_split_plan
    from pipelines.ingest.unit import IngestJob

    split_plan = make_split_plan(listing.entries, config.split, source.carried)
    stray = outside_splits([entry.key for entry in listing.entries if not entry.reason])
    units = source.units()
    run_id = next_run_id(store, plan.key)
    open_run(store, STAGE, plan.key, {"run_id": run_id, "inputs": plan.inputs})
    receipts: dict[int, Mapping[str, Any]] = dict(read_receipts(store, run_id))
    rate: dict[str, float] = {}
    if missing := [unit for unit in units if unit.index not in receipts]:
        if receipts:
            logger.info("ingest: %d of %d units stand from an earlier run", len(receipts), len(units))
        job = IngestJob(source, store.uri, run_id, config.image, split_plan)
        rate = _run_missing(config, job, missing, receipts, len(listing.entries), run_units)
    catalog = build_catalog(config, plan, store, run_id, source, receipts, split_plan)
    catalog["warnings"] = (
        _warnings(catalog)
        + list(listing.warnings)
        + ([_not_given(stray)] if stray and split_plan.by != "given" else [])
    )
    for warning in catalog["warnings"]:
        logger.warning("%s", warning)
    catalog["sheet"] = write_sheet(store, run_id, catalog)
    version = publish_version(store, run_id, catalog)
    clean_run(store, run_id)
    published = read_version(store, version, stage_format=DATASET_FORMAT)
    assert published is not None
    return _result(plan, published, skipped=False, **rate)


def _run_missing(
    config: IngestConfig,
    job: IngestJob,
    missing: Sequence[Unit],
    receipts: dict[int, Mapping[str, Any]],
    total: int,
    run_units: RunUnits | None,
) -> dict[str, float]:
    """Do the units that have no receipt, adding theirs; return images per second, and Ray's start apart from it."""
    if run_units is not None:
        _collect(config, run_units(job, missing), receipts, total)
        return {}
    from pipelines.ingest.task import run_units as run_on_ray
    from pipelines.node_paths import check_nodes_see
    from pipelines.ray_runtime import ray_session

    begun_s = time.monotonic()
    with ray_session(config.ray) as session:
        check_nodes_see(session.num_nodes, {"SOURCE": job.source.uri, "--out": f"{job.out}/{RUN}"})
        started_s = time.monotonic()
        done = _collect(config, run_on_ray(job, missing), receipts, total)
        elapsed_s = time.monotonic() - started_s
    return {
        "images_per_s": round(done / max(elapsed_s, 1e-9), 1),
        "elapsed_s": round(elapsed_s, 1),
        "ray_start_s": round(started_s - begun_s, 1),
    }


def _collect(
    config: IngestConfig,
    reports: Iterator[dict[str, Any]],
    receipts: dict[int, Mapping[str, Any]],
    total: int,
) -> int:
    """Add the receipts of units as they are done; return the members in them. Stops early once the budget is spent."""
    done = 0
    with Progress(total, label=STAGE) as progress:
        progress.start_at(sum(int(receipt["members"]) for receipt in receipts.values()))
        bad = sum(int(receipt["counts"]["quarantined"]) for receipt in receipts.values())
        for receipt in reports:
            receipts[int(receipt["unit"])] = receipt
            done += int(receipt["members"])
            bad += int(receipt["counts"]["quarantined"])
            progress.advance(int(receipt["members"]))
            if bad > config.max_quarantined_fraction * total:
                break  # no later unit can mend it, and `check_budget` says what it was
    return done


def _check_apart(source: Source, store: Storage) -> None:
    """Refuse an output below the source: the next listing would find the dataset's own files among the images."""
    if f"{store.uri}/".startswith(f"{source.uri.rstrip('/')}/"):
        raise InputError(
            f"the output {store.uri} lies inside the source {source.uri}",
            mend="choose an --out outside of the images' folder",
        )


def _check_whole(config: IngestConfig, source: Source, listing: Listing) -> None:
    if listing.faults and not config.allow_broken_archive:
        readable = sum(not entry.reason for entry in listing.entries)
        raise InputError(
            f"{source.uri} is damaged: {listing.faults[0]}; {readable:,} members before the damage are readable",
            mend="fetch it again, or take what is readable with allow_broken_archive=true",
        )


def _holds_another(store: Storage, source: Source, standing: Catalog) -> InputError:
    names = ", ".join(standing["sources"])
    if source.name in standing["sources"]:
        return InputError(
            f"{store.uri} holds a dataset of {source.name} made from other content or with other settings",
            where=f"it was read from {standing['locations'].get(source.name, 'elsewhere')}",
            mend="choose another --out, or leave it out to get a folder of its own",
        )
    return InputError(
        f"{store.uri} holds a dataset of {names}, not of {source.name}",
        mend="choose another --out; a dataset is made from one source",
    )


def _warnings(catalog: Catalog) -> list[str]:
    """Say what is unusual enough to look at before training."""
    totals: dict[str, int] = {}
    for part in catalog["splits"].values():
        for label, number in part["labels"].items():
            totals[label] = totals.get(label, 0) + number
    warnings = []
    lonely = sorted(label for label, number in totals.items() if number == 1)
    if lonely:
        shown = ", ".join(lonely[:5]) + (", ..." if len(lonely) > 5 else "")
        are = "classes have" if len(lonely) > 1 else "class has"
        warnings.append(f"{len(lonely)} {are} one image only ({shown}): it can be learned from but not measured")
    if len(totals) == 1:
        warnings.append(f"there is one class only ({next(iter(totals))}): are the images in folders by class?")
    unlabelled = sum(part["unlabelled"] for part in catalog["splits"].values())
    if unlabelled:
        warnings.append(
            f"{unlabelled:,} images have no label: they are in no class folder, and no table was given (labels=)"
        )
    shares = catalog["split"]["shares"]
    for split in ("train", "val", "test"):
        if split not in catalog["splits"] and (split == "train" or shares[split] > 0):
            warnings.append(f"split {split} is empty: {catalog['rows']:,} images are too few for its share")
    duplicates = catalog["duplicates"]
    if conflicts := duplicates["label_conflicts"]:
        stand = "pictures stand" if conflicts > 1 else "picture stands"
        warnings.append(f"{conflicts:,} {stand} under different labels")
    kept = duplicates["leaks_kept"] + (duplicates["near"]["leaks"] if duplicates["policy"]["near"] == "report" else 0)
    if kept:
        warnings.append(
            f"{kept:,} {'images look' if kept > 1 else 'image looks'} like one in a more held-out split, so held-out"
            " figures may be too good (duplicates.near=one_side takes them out)"
        )
    return warnings


def _not_given(stray: str) -> str:
    return (
        f"the source has folders of splits, and {stray} lies in none of them: the images were divided anew;"
        " with the stray images removed the source's own splits are kept"
    )


def _result(plan: Plan, catalog: Catalog, *, skipped: bool, **rate: float) -> IngestResult:
    counts = catalog["counts"]
    figures: dict[str, float | int | str] = {
        "images": catalog["rows"],
        "classes": len(catalog["classes"]),
        **{split: catalog["splits"][split]["rows"] for split in ("train", "val", "test") if split in catalog["splits"]},
        "quarantined": counts["quarantined"],
        "leaks_dropped": counts["dropped"],
        "fingerprint": catalog["fingerprint"][:16],
        **rate,
    }
    reasons = {name.partition(".")[2]: number for name, number in counts.items() if name.startswith("quarantined.")}
    if reasons:
        figures["reasons"] = ", ".join(f"{reason} {number}" for reason, number in reasons.items())
    commands: tuple[str, ...] = (f"resnet data show {plan.out}", f"resnet train {plan.out}")
    if not catalog["classes"]:
        commands = (
            f"resnet ingest {next(iter(catalog['locations'].values()))} labels=LABELS.csv --out OTHER",
            commands[0],
        )
    return IngestResult(plan.stage, plan.out, plan.key, skipped, figures, commands, version=int(catalog["version"]))
