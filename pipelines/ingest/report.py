"""The data sheet of an ingest: numbers as JSON, and a sheet of sample images of each class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipelines.dataset.reader import Dataset
from pipelines.dataset.writer import label_names
from pipelines.image.decode import Pixels, decode_image
from pipelines.plots.contact_sheet import mosaic
from pipelines.storage import Storage

MAX_SAMPLES = 60
MAX_PER_CLASS = 6
GROUPS_READ = 8
"""Row groups looked at for samples; units mix classes, so a few of them hold most."""


def write_sheet(store: Storage, run_id: str, catalog: Mapping[str, Any]) -> dict[str, Any]:
    """Write `sheet/<run id>/sheet.json` and `samples.jpg`; return their paths for the catalog."""
    dataset = Dataset(store.uri, 0, dict(catalog))
    split = "train" if "train" in catalog["splits"] else next(iter(catalog["splits"]))
    samples = sample_images(dataset, split)
    mean, std = dataset.mean_std(split)
    sheet = {
        "rows": catalog["rows"],
        "classes": catalog["classes"],
        "splits": catalog["splits"],
        "counts": catalog["counts"],
        "mean": list(mean),
        "std": list(std),
        "duplicates": catalog["duplicates"],
        "ignored": catalog["ignored"],
        "flags": catalog["flags"],
        "difference": catalog.get("difference", {}),
        "warnings": catalog.get("warnings", []),
        "samples": [{"label": label, "key": key} for label, key, _ in samples],
    }
    paths = {"numbers": f"sheet/{run_id}/sheet.json"}
    store.put(paths["numbers"], json.dumps(sheet, indent=1, ensure_ascii=False).encode())
    if samples:
        picture = mosaic([pixels for _, _, pixels in samples], [label for label, _, _ in samples])
        paths["samples"] = f"sheet/{run_id}/samples.{picture.extension}"
        store.put(paths["samples"], picture.data)
    return paths


def sample_images(dataset: Dataset, split: str) -> list[tuple[str, str, Pixels]]:
    """Return (label, key, pixels) of a few images a class, in the order of classes; unlabelled ones without a name."""
    names = dataset.classes or [""]
    per_class = max(1, min(MAX_PER_CLASS, MAX_SAMPLES // len(names)))
    groups = range(len(dataset.row_groups(split)))
    step = max(1, len(groups) // GROUPS_READ)
    found: dict[str, list[tuple[str, str, Pixels]]] = {}
    for group in groups[::step]:
        if sum(map(len, found.values())) >= min(MAX_SAMPLES, per_class * len(names)):
            break
        for row in dataset.read_group(split, group, ["image", "label", "key"]).to_pylist():
            # an image of several classes stands for the first of them that is in need
            for label in label_names(row["label"]) or [""]:
                samples = found.setdefault(label, [])
                if len(samples) < per_class and (samples or len(found) <= MAX_SAMPLES):
                    samples.append((label, row["key"], decode_image(row["image"]["bytes"]).pixels))
                    break
    return [sample for label in sorted(found) for sample in found[label]][:MAX_SAMPLES]
