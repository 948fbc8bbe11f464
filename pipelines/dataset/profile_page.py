"""The data sheet: a dataset as one self-contained page of figures, warnings and samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.dataset.duplicates import Alike
from pipelines.dataset.duplicates_page import add_clusters
from pipelines.dataset.predictive import Classes
from pipelines.dataset.profile import TELLING, Profile
from pipelines.dataset.quarantine import MAX_CHANCE, quarantine_rows
from pipelines.dataset.quarantine_page import add_thumbnails
from pipelines.dataset.reader import Dataset
from pipelines.dataset.stored_images import stored_images
from pipelines.plots.contact_sheet import mosaic
from pipelines.plots.figures import class_balance
from pipelines.plots.page import Cell, Fact, FigureCard, Meter, Page, Tile
from pipelines.plots.thumbnail import make_picture, make_thumbnail

_CLASSES_SHOWN = 24
_PER_CLASS = 8
_PER_SPLIT = 16
_CLUSTERS_SHOWN = 8
_THUMBNAILS_SHOWN = 24
_ROWS_SHOWN = 20
_SHEET_PX = 560
_WORDS = {
    "brightness": "brightness (0 black to 1 white)",
    "contrast": "contrast (0 to 0.5)",
    "sharpness": "sharpness (0 to 1)",
    "source_width": "width of the source, px",
    "source_height": "height of the source, px",
    "aspect": "long by short side",
    "source_bytes": "size of the source's file, bytes",
    "format": "file format",
    "cropped_fraction": "share of the pixels cropped away",
}
_HINTS = {
    "dark": "nearly black",
    "bright": "nearly white",
    "one colour": "without contrast",
    "blurred": "without edges",
    "long": "long and narrow; cropping them loses most",
    "cropped": "of which more than half was cut away",
}


def make_sheet(dataset: Dataset, profile: Profile, alike: Alike) -> bytes:
    """Return the data sheet of a version."""
    catalog = dataset.catalog
    page = Page(
        f"Data sheet: {dataset.ref.rsplit('/', 1)[-1]}",
        kicker="resnet-pipelines",
        lead=f"{catalog['rows']:,} images"
        + (f" of {len(dataset.classes):,} classes" if dataset.classes else " without labels")
        + f" from {', '.join(catalog['sources'])}.",
        footer=f"Fingerprint {dataset.fingerprint}. Made from the columns of {dataset.ref}.",
    )
    _add_summary(page, dataset, profile, alike)
    _add_difference(page, profile)
    _add_classes(page, dataset)
    _add_splits(page, dataset, profile)
    _add_properties(page, profile)
    _add_telling(page, profile)
    _add_outliers(page, dataset, profile)
    _add_duplicates(page, dataset, alike)
    _add_refused(page, dataset, profile)
    return page.render()


def _add_summary(page: Page, dataset: Dataset, profile: Profile, alike: Alike) -> None:
    counts, exact = alike.counts(), dataset.catalog.get("duplicates", {})
    labelled = {label: 0 for label in dataset.classes}
    for split in dataset.catalog["splits"].values():
        for label, number in split["labels"].items():
            labelled[label] = labelled.get(label, 0) + number
    sizes = sorted(labelled.values())
    section = page.section("Summary")
    section.facts(
        [
            Fact(f"{dataset.catalog['rows']:,}", "images", "lead"),
            Fact(f"{sizes[-1] / max(1, sizes[0]):.1f}" if sizes else "-", "largest class by smallest"),
            Fact(f"{sum(profile.refused.values()):,}", "refused members"),
            Fact(f"{exact.get('leaks_dropped', 0):,}", "exact copies taken out of another split"),
            Fact(f"{counts['clusters_across_splits']:,}", "groups of look-alikes across splits"),
            Fact(f"{profile.cropped_away:.1%}", "of the pixels cropped away"),
        ]
    )
    for warning in dataset.catalog.get("warnings", []):
        section.note(warning, warn=True)
    for name, found in profile.telling.items():
        if found.excess >= TELLING:
            section.note(
                f"{_WORDS.get(name, name)} tells class {found.label} from all others (by {found.share:.2f} of 1): a"
                " network may learn it instead of the pictures",
                warn=True,
            )


def _add_difference(page: Page, profile: Profile) -> None:
    """Say what the version has over its parent."""
    found = profile.difference
    if not found:
        return
    before, now = found["rows"]
    section = page.section(
        f"Against v{found['parent']}", f"Made by {found['stage']} from v{found['parent']}, by the two catalogs."
    )
    section.facts([Fact(f"{now:,}", f"images; {before:,} before", "lead"), Fact(f"{now - before:+,}", "difference")])
    for title, pairs in (("split", found["splits"]), ("class", found["classes"]), ("count", found["counts"])):
        rows: list[list[Cell]] = [[name, was, is_, f"{is_ - was:+,}"] for name, (was, is_) in pairs.items()]
        if rows:
            section.table([title, "before", "now", "difference"], rows[:_ROWS_SHOWN])
        if len(rows) > _ROWS_SHOWN:
            section.note(f"{len(rows) - _ROWS_SHOWN:,} more that differ less are not shown.")
    facts: list[list[Cell]] = [
        [name.replace("_", " "), value] for name, value in found["append"].items() if isinstance(value, (int, str))
    ]
    if facts:
        section.table(["of the append", ""], facts)


def _add_classes(page: Page, dataset: Dataset) -> None:
    splits = dataset.catalog["splits"]
    order = [name for name in ("train", "val", "test") if name in splits]
    counts = {name: {label: int(n) for label, n in splits[name]["labels"].items()} for name in order}
    cards = [FigureCard(class_balance(counts), "Images per class and split")]
    samples = _samples(dataset)
    columns = min(_PER_CLASS, max((len(images) for images in samples.values()), default=1))
    for label, images in samples.items():
        side = max(max(pixels.shape[:2]) for pixels in images)
        sheet = mosaic(images, columns=columns, scale=_SHEET_PX / columns / side)
        cards.append(FigureCard(sheet, label, "", alt=f"{len(images)} training images of class {label}"))
    words = "Samples are spread over the training split."
    if len(dataset.classes) > _CLASSES_SHOWN:
        words += f" The first {_CLASSES_SHOWN} of {len(dataset.classes):,} classes are shown."
    page.section("Classes", words).figures(cards)


def _samples(dataset: Dataset) -> dict[str, list[Any]]:
    """Return thumbnails of up to eight training images of each of the first classes, spread over the split."""
    if "train" not in dataset.splits:
        return {}
    classes = Classes.of(dataset.table("train", ["label"]).column("label"), least=1)
    number = {name: index for index, name in enumerate(classes.names)}
    chosen: dict[str, list[int]] = {}
    for label in dataset.classes[:_CLASSES_SHOWN]:
        rows = classes.rows[classes.place[classes.index == number.get(label, -1)]]
        if len(rows):
            chosen[label] = _spread(rows.tolist(), _PER_CLASS)
    images = stored_images(dataset, "train", sorted({row for rows in chosen.values() for row in rows}))
    found = {label: [make_thumbnail(images[row]) for row in rows] for label, rows in chosen.items()}
    return {label: [pixels for pixels in all_of if pixels is not None] for label, all_of in found.items()}


def _spread(rows: Sequence[int], limit: int) -> list[int]:
    """Return up to `limit` of the rows, spread over all."""
    return [rows[place] for place in np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int))]


def _add_splits(page: Page, dataset: Dataset, profile: Profile) -> None:
    """Show the splits side by side: sizes, colours, a few pictures of each."""
    splits = [name for name in ("train", "val", "test") if name in profile.channels]
    section = page.section("Splits", "Splits of one source should look alike, in figures and in pictures.")
    total = sum(dataset.num_rows(split) for split in splits)
    rows: list[list[Cell]] = [
        [
            split,
            dataset.num_rows(split),
            Meter(dataset.num_rows(split) / total, f"{dataset.num_rows(split) / total:.1%}"),
            int(dataset.catalog["splits"][split]["unlabelled"]),
            *(
                f"{mean:.3f} \N{PLUS-MINUS SIGN} {std:.3f}"
                for mean, std in zip(*profile.channels[split].values(), strict=True)
            ),
        ]
        for split in splits
    ]
    section.table(["split", "images", "share", "unlabelled", "red", "green", "blue"], rows)
    cards = []
    for split in splits:
        places = _spread(range(dataset.num_rows(split)), _PER_SPLIT)
        images = stored_images(dataset, split, places)
        shown = [pixels for place in places if (pixels := make_thumbnail(images[place])) is not None]
        columns = min(_PER_CLASS, len(shown))
        side = max(max(pixels.shape[:2]) for pixels in shown)
        sheet = mosaic(shown, columns=columns, scale=_SHEET_PX / columns / side)
        cards.append(FigureCard(sheet, split, "", alt=f"{len(shown)} images of split {split}"))
    section.figures(cards)


def _add_properties(page: Page, profile: Profile) -> None:
    section = page.section("Properties", "Over all images; splits of one source should agree.")
    splits = list(profile.by_split)
    rows: list[list[Cell]] = [
        [_WORDS[name], *profile.properties[name], *(profile.by_split[split][name] for split in splits)]
        for name in profile.properties
    ]
    columns = ["property", "least", "5%", "median", "95%", "most", *(f"mean of {split}" for split in splits)]
    section.table(columns, rows)
    total = sum(profile.formats.values())
    formats: list[list[Cell]] = [
        [name, number, Meter(number / total, f"{number / total:.1%}")] for name, number in profile.formats.items()
    ]
    section.table(["source format", "images", "share"], formats)
    sizes: list[list[Cell]] = [[name, number] for name, number in profile.sizes.items()]
    section.table(["commonest sizes of the sources, px", "images"], sizes)
    if profile.flags:
        flags: list[list[Cell]] = [[name, number] for name, number in list(profile.flags.items())[:_ROWS_SHOWN]]
        section.table(["remark", "images"], flags)


def _add_telling(page: Page, profile: Profile) -> None:
    if not any(found.label for found in profile.telling.values()):
        return  # fewer than two classes with images enough: there is nothing to tell apart
    rows: list[list[Cell]] = [
        [_WORDS.get(name, name), found.label, Meter(found.share, f"{found.share:.2f}"), f"{found.chance:.2f}"]
        for name, found in sorted(profile.telling.items(), key=lambda item: -item[1].share)
    ]
    page.section(
        "What gives the label away",
        "How well a property tells one class from all others: 0 not at all, 1 always (for numbers from the area under"
        " the ROC curve, for names Cramer's V). Chance is what shuffled labels reach. A high share is no fault by"
        " itself: snow is bright. It is one where it comes from the camera, the site or the crop.",
    ).table(["property", "class told best", "share", "chance"], rows)


def _add_outliers(page: Page, dataset: Dataset, profile: Profile) -> None:
    shown = {kind: (number, rows) for kind, (number, rows) in profile.outliers.items() if rows}
    if not shown:
        page.section("Outliers", "No image is nearly black, nearly white, blurred, of one colour, or very long.")
        return
    section = page.section("Outliers", "The most extreme of each kind; whether they are faults is for a person to say.")
    for kind, (number, rows) in shown.items():
        section.images(_tiles(dataset, rows), title=f"{kind}: {number:,} {_HINTS[kind]}")


def _tiles(dataset: Dataset, rows: Sequence[dict[str, Any]]) -> list[Tile]:
    wanted: dict[str, list[int]] = {}
    for row in rows:
        wanted.setdefault(row["split"], []).append(row["row"])
    images = {split: stored_images(dataset, split, places) for split, places in wanted.items()}
    tiles = []
    for row in rows:
        pixels = make_thumbnail(images[row["split"]][row["row"]])
        if pixels is not None:
            tiles.append(Tile(make_picture(pixels), str(row["label"]), f"{row['split']} · {row['key']}"))
    return tiles


def _add_duplicates(page: Page, dataset: Dataset, alike: Alike) -> None:
    """Show what stands more than once, and what straddles splits."""
    counts, exact = alike.counts(), dataset.catalog.get("duplicates", {})
    section = page.section("Duplicates and leaks", "By bytes when it was made, by perceptual hash as it stands now.")
    table: list[list[Cell]] = [
        ["exact copies taken out of another split", exact.get("leaks_dropped", 0)],
        ["exact copies that stay in a less held-out split", exact.get("leaks_kept", 0)],
        ["exact copies within a split", exact.get("within_a_split", 0)],
        ["pictures under different labels", exact.get("label_conflicts", 0)],
        *([f"dropped by policy as {reason}", number] for reason, number in exact.get("dropped", {}).items()),
        ["groups of look-alikes", counts["clusters"]],
        ["images in them", counts["images_in_clusters"]],
        ["groups across splits", counts["clusters_across_splits"]],
        ["images that look like one in a more held-out split", counts["leaks"]],
        ["groups with different labels", counts["clusters_with_different_labels"]],
        ["images of one colour, not compared", counts["one_colour"]],
    ]
    section.table(["what", "number"], table)
    if alike.doubt:
        section.note(alike.doubt, warn=True)
    across = [cluster for cluster in alike.clusters if len(cluster.splits) > 1]
    if across:
        add_clusters(section, across, dataset, limit=_CLUSTERS_SHOWN)


def _add_refused(page: Page, dataset: Dataset, profile: Profile) -> None:
    accepted = int(dataset.catalog["counts"].get("accepted", 0))
    if not profile.refused and not accepted:
        page.section("Quarantine", "Every member of the source was taken.")
        return
    section = page.section(
        "Quarantine", f"{accepted:,} more {'are' if accepted > 1 else 'is'} accepted as lost." if accepted else ""
    )
    section.table(["reason", "members"], [[reason, number] for reason, number in profile.refused.items()])
    classes: list[list[Cell]] = [list(row) for row in profile.refused_classes[:_ROWS_SHOWN]]
    section.table(["reason", "class", "members"], classes)
    if profile.refused_bias is not None and profile.refused_bias.chance < MAX_CHANCE:
        section.note(profile.refused_bias.words, warn=True)
    add_thumbnails(section, quarantine_rows(dataset), limit=_THUMBNAILS_SHOWN)
