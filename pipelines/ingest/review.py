"""What is said of a dataset before it is published: what is unusual, and the checks that hold it back."""

from __future__ import annotations

import logging

from pipelines.dataset.catalog import Catalog
from pipelines.ingest.config import IngestConfig
from pipelines.storage import Storage

logger = logging.getLogger(__name__)

_NO_LABELS = "they are in no class folder, and no table was given (labels=)"


def review(config: IngestConfig, store: Storage, catalog: Catalog) -> list[str]:
    """Return what people should know of a dataset that is about to be published.

    Raises:
        DataError: it fails a check at `error`, so that it must not be.
    """
    from pipelines.dataset.quarantine import MAX_CHANCE, bias_of
    from pipelines.dataset.reader import Dataset

    dataset = Dataset(store.uri, 0, catalog)
    sentences = remarks(catalog)
    bias = bias_of(dataset)
    if bias is not None and bias.chance < MAX_CHANCE:
        sentences.append(bias.words)
    if config.checks:
        from pipelines.ingest.checks import hold

        sentences += hold(config.checks, dataset)
    return sentences


def remarks(catalog: Catalog) -> list[str]:
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
            f"{unlabelled:,} images have no label: "
            + ("the table gives them none" if catalog["config"].get("labels") else _NO_LABELS)
        )
    shares = catalog["split"]["shares"]
    for split in ("train", "val", "test"):
        if split not in catalog["splits"] and (split == "train" or shares[split] > 0):
            warnings.append(f"split {split} is empty: {catalog['rows']:,} images are too few for its share")
    from pipelines.dataset.near import MAX_ACCIDENTS

    duplicates = catalog["duplicates"]
    if conflicts := duplicates["label_conflicts"]:
        stand = "pictures stand" if conflicts > 1 else "picture stands"
        warnings.append(f"{conflicts:,} {stand} under different labels")
    # copies look alike too, but for those of one colour, which are not compared
    is_sure = duplicates["near"].get("accidents", 0.0) <= MAX_ACCIDENTS
    alike = duplicates["near"]["leaks"] if duplicates["policy"]["near"] == "report" and is_sure else 0
    kept = max(duplicates["leaks_kept"], alike)
    if not is_sure:
        warnings.append(
            "look-alikes are not counted as leaks: the perceptual hash takes many of these pictures for each other"
        )
    if capped := duplicates["near"].get("capped", 0):
        warnings.append(
            f"{capped:,} perceptual hashes resemble so many others that not all were compared: more may look alike than"
            " was counted"
        )
    if kept:
        warnings.append(
            f"{kept:,} {'images look' if kept > 1 else 'image looks'} like one in a more held-out split, so held-out"
            " figures may be too good (duplicates.near=one_side takes them out)"
        )
    return warnings


def not_given(stray: str) -> str:
    """Say that the source's own splits are not used, since an image lies in none of them."""
    return (
        f"the source has folders of splits, and {stray} lies in none of them: the images were divided anew;"
        " with the stray images removed the source's own splits are kept"
    )


def tell_unchecked(config: IngestConfig, standing: Catalog, out: str) -> None:
    """Say that checks which a standing dataset was not made with are not run by skipping it."""
    if config.model_dump(mode="json")["checks"] != standing["config"].get("checks", []):
        logger.warning("the dataset stands, made with other checks: `resnet data check %s` runs them on it", out)
