"""The report's sections about data: what came in, what was planted and caught, what was scored, and the lineage."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping

from pipelines.dataset import inspect
from pipelines.dataset.reader import Dataset, open_dataset
from pipelines.plots.contact_sheet import mosaic
from pipelines.plots.figures import class_balance
from pipelines.plots.page import Cell, FigureCard, Page, Tile
from pipelines.runner import graph, report_images
from pipelines.runner.config import SOURCE, RunConfig
from pipelines.runner.graph import Made

_SAMPLES = 48
_MAX_PER_CLASS = 4
_SHEET_COLUMNS = 8
_SHEET_PX = 440
_REFUSED_SHOWN = 12
_SCORED_SHOWN = 16
_UNSEEN = ("test",)
MISSED = "NOT CAUGHT"


def open_made(made: Mapping[str, Made]) -> Dataset:
    """Return the dataset of a run, at the version that the run made."""
    return open_dataset(f"{made['ingest'].out}@v{made['ingest'].catalog['version']}")


def add_data(page: Page, pipeline: RunConfig, made: Mapping[str, Made]) -> None:
    """Add what the dataset holds, with samples of each class, and what was refused."""
    dataset = open_made(made)
    splits = dataset.catalog["splits"]
    order = [name for name in ("train", "val", "test") if name in splits]
    order += [name for name in splits if name not in order]
    counts = {name: {label: int(n) for label, n in splits[name]["labels"].items()} for name in order}
    section = page.section(
        "Data",
        f"Read once from {_source_words(pipeline)}, split by image and seed, stored as plain Parquet.",
    )
    rows: list[list[Cell]] = [
        [name, int(splits[name]["rows"]), len(dataset.shards(name)), int(splits[name]["bytes"])] for name in order
    ]
    section.table(["split", "images", "files", "bytes"], rows)
    mean, std = dataset.mean_std("train")
    classes = dataset.classes[:_SAMPLES]
    per_class = max(1, min(_MAX_PER_CLASS, _SAMPLES // max(1, len(classes))))
    images = report_images.sample_classes(dataset, "train", per_class, classes)
    cards = [
        FigureCard(
            class_balance(counts),
            "Images per class and split",
            f"Training pixels have mean {_numbers(mean)} and standard deviation {_numbers(std)} on a scale of 0 to 1.",
        )
    ]
    if images:
        columns = min(_SHEET_COLUMNS, len(images))
        side = max(max(image.pixels.shape[:2]) for image in images)
        sheet = mosaic(
            [image.pixels for image in images],
            [image.label for image in images],
            columns=columns,
            scale=_SHEET_PX / columns / side,
        )
        cards.append(FigureCard(sheet, "Samples of each class", "From the training split, under their labels."))
    section.figures(cards)
    _add_refused(page, dataset)


def _add_refused(page: Page, dataset: Dataset) -> None:
    section = page.sections[-1]
    refused = inspect.quarantined(dataset)
    if not refused:
        section.note("Every member of the source was readable; nothing was refused.")
        return
    reasons = Counter(str(row["reason"]) for row in refused)
    words = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    number = "1 member was" if len(refused) == 1 else f"{len(refused):,} members were"
    section.note(f"{number} refused and kept apart: {words}.", warn=True)
    shown: list[list[Cell]] = [
        [row["key"], row["label"], row["reason"], row["message"]] for row in refused[:_REFUSED_SHOWN]
    ]
    section.table(["member", "label", "reason", "what was found"], shown, stack=True)


def add_planted(page: Page, made: Mapping[str, Made]) -> None:
    """Add the demo's planted faults and where each was caught."""
    planted = made[graph.DEMO].catalog["planted"]
    refused = {str(row["key"]): row for row in inspect.quarantined(open_made(made))}
    live = live_keys(open_made(made), (planted["copy"], planted["original"]))
    section = page.section(
        "Planted faults",
        "The demo puts three faults into its archive, to show that a pipeline which only ran through would be wrong.",
    )
    truncated = refused.get(planted["truncated"])
    gone = [key for key in (planted["copy"], planted["original"]) if key not in live]
    mistakes = made["evaluate"].catalog["mistakes"]
    rank = next((i for i, row in enumerate(mistakes, 1) if row["key"] == planted["mislabelled"]), 0)
    wrong = f"labelled {planted['wrong_label']}, is a {planted['true_label']}"
    rows: list[list[Cell]] = [
        [
            "a truncated file",
            planted["truncated"],
            f"caught by ingest: refused as {truncated['reason']}" if truncated else MISSED,
        ],
        [
            "an exact copy, one in train and one in test",
            f"{planted['copy']} of {planted['original']}",
            f"caught by ingest: {gone[0]} taken out as a leak" if len(gone) == 1 else MISSED,
        ],
        [
            f"a wrong label on a test image ({wrong})",
            planted["mislabelled"],
            f"caught by evaluation: mistake number {rank}, seen as {mistakes[rank - 1]['predicted']}"
            if rank
            else MISSED,
        ],
    ]
    section.table(["fault", "member", "outcome"], rows, stack=True)


def live_keys(dataset: Dataset, keys: tuple[str, ...]) -> set[str]:
    """Return which of some keys are live rows of a dataset."""
    found: set[str] = set()
    for split in dataset.splits:
        found.update(key for key in dataset.table(split, ["key"]).column("key").to_pylist() if key in keys)
    return found


def add_scored(page: Page, pipeline: RunConfig, made: Mapping[str, Made]) -> None:
    """Add what was scored: counts, and a sample of pictures with the classes given to them."""
    score, catalog = made["score"], made["score"].catalog
    section_config = graph.stage_config(pipeline, "score", made)
    archive, name = str(getattr(section_config, "archive", "")), str(getattr(section_config, "source_name", ""))
    predictions = report_images.read_predictions(score.out, catalog)
    failed = [row for row in predictions.values() if row["names"] is None]
    dataset = open_made(made)
    known: set[str] = set()
    for split in dataset.splits:
        if split not in _UNSEEN:
            known.update(dataset.table(split, ["image_id"]).column("image_id").to_pylist())
    scored = report_images.sample_scored(archive, name, predictions, known, _SCORED_SHOWN)
    section = page.section(
        "Scored archive",
        f"{len(predictions):,} members of {archive.rpartition('/')[2]}, each exactly once"
        + (f"; {len(failed):,} of them without a prediction, and with the reason why." if failed else "."),
    )
    section.images(
        [Tile(one.picture, one.caption, f"{one.sureness} · {one.key}") for one in scored],
        title="A sample, taken from images that were not trained on where there are any",
    )
    if failed:
        rows: list[list[Cell]] = [[row["key"], row["reason"], row["message"]] for row in failed[:_REFUSED_SHOWN]]
        section.table(["member", "reason", "what was found"], rows, caption="Without a prediction", stack=True)


def add_lineage(page: Page, made: Mapping[str, Made]) -> None:
    """Add what each output is a function of: keys, fingerprints, the model's version and hash."""
    dataset, registered = open_made(made), made["register"].catalog
    section = page.section("Lineage", "An output's key is a hash of its settings and of its inputs' fingerprints.")
    rows: list[list[Cell]] = [[stage, one.key[:12], one.out] for stage, one in made.items()]
    section.table(["stage", "key", "output"], rows, stack=True)
    facts: list[list[Cell]] = [
        ["dataset", f"version {dataset.version}, fingerprint {dataset.fingerprint}"],
        ["test rows", dataset.split_fingerprint("test")],
        ["model", f"models:/{registered['name']}/{registered['version']}"],
        ["weights, SHA-256", registered["model"]["weights_sha256"]],
    ]
    section.table(["what", "identity"], facts, stack=True)


def add_commands(page: Page, pipeline: RunConfig, made: Mapping[str, Made], repeat: str) -> None:
    """Add the commands that repeat the run, and each of its stages alone."""
    section = page.section("Repeat it", "A stage whose output stands is skipped; nothing is computed twice.")
    registered = made["register"].catalog
    model = f"models:/{registered['name']}/{registered['version']}"
    dataset = f"{made['ingest'].out}@v{made['ingest'].catalog['version']}"
    section.commands(
        [repeat, f"{repeat} --explain", *(f"{repeat} --only {stage}" for stage in made)],
        title="The run, and each stage of it",
    )
    best = graph.best(made)
    archive = str(getattr(graph.stage_config(pipeline, "score", made), "archive", "")) if "score" in made else ""
    commands = [
        f"resnet data show {shlex.quote(dataset)}",
        f"resnet data verify {shlex.quote(dataset)}",
        f"resnet data files {shlex.quote(dataset)} --split test",
        f"resnet evaluate {shlex.quote(best.out)} {shlex.quote(dataset)}",
        f"resnet models show {shlex.quote(registered['name'])}",
    ]
    if archive:
        commands.append(f"resnet score {shlex.quote(archive)} --model {model} --out predictions")
    section.commands([*commands, "resnet ui"], title="Look closer")


def _source_words(pipeline: RunConfig) -> str:
    if pipeline.source == SOURCE or pipeline.source.startswith("demo:"):
        return "scikit-learn's handwritten digits, written out as a zip of PNGs"
    return pipeline.source.rstrip("/").rpartition("/")[2]


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
