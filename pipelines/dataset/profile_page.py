"""The data sheet: a dataset as one self-contained page of figures, warnings and samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.dataset.duplicates import Alike
from pipelines.dataset.profile import PROPERTIES, TELLING, Profile
from pipelines.dataset.reader import Dataset
from pipelines.dataset.stored_images import stored_images
from pipelines.plots.contact_sheet import mosaic
from pipelines.plots.figures import class_balance
from pipelines.plots.page import Cell, Fact, FigureCard, Meter, Page, Tile
from pipelines.plots.thumbnail import make_picture, make_thumbnail

_CLASSES_SHOWN = 24
_PER_CLASS = 8
_SHEET_PX = 560
_WORDS = {
    "brightness": "brightness (0 black to 1 white)",
    "contrast": "contrast (0 to 0.5)",
    "sharpness": "sharpness (0 to 1)",
    "source_width": "width of the source, px",
    "source_height": "height of the source, px",
    "aspect": "long by short side",
    "format": "file format",
}
_HINTS = {
    "dark": "nearly black",
    "bright": "nearly white",
    "one colour": "without contrast",
    "blurred": "without edges",
    "long": "long and narrow; cropping them loses most",
}


def make_sheet(dataset: Dataset, profile: Profile, alike: Alike) -> bytes:
    """Return the data sheet of a version."""
    catalog = dataset.catalog
    page = Page(
        f"Data sheet: {dataset.ref.rsplit('/', 1)[-1]}",
        kicker="resnet-pipelines",
        lead=f"{catalog['rows']:,} images of {len(dataset.classes)} classes from {', '.join(catalog['sources'])}.",
        footer=f"Fingerprint {dataset.fingerprint}. Made from the columns of {dataset.ref}.",
    )
    _add_summary(page, dataset, profile, alike)
    _add_classes(page, dataset)
    _add_properties(page, profile)
    _add_telling(page, profile)
    _add_outliers(page, dataset, profile)
    _add_refused(page, profile)
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
    for name, share in profile.telling.items():
        if share >= TELLING:
            section.note(
                f"{_WORDS[name]} differs between classes (share {share:.2f}): a network may learn it instead of the"
                " pictures",
                warn=True,
            )


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
    labels = dataset.table("train", ["label"]).column("label").to_pylist()
    places: dict[str, list[int]] = {label: [] for label in dataset.classes[:_CLASSES_SHOWN]}
    for row, label in enumerate(labels):
        if label in places:
            places[label].append(row)
    chosen = {label: rows[:: max(1, len(rows) // _PER_CLASS)][:_PER_CLASS] for label, rows in places.items() if rows}
    images = stored_images(dataset, "train", sorted(row for rows in chosen.values() for row in rows))
    found = {label: [make_thumbnail(images[row]) for row in rows] for label, rows in chosen.items()}
    return {label: [pixels for pixels in all_of if pixels is not None] for label, all_of in found.items()}


def _add_properties(page: Page, profile: Profile) -> None:
    section = page.section("Properties", "Over all images; splits of one source should agree.")
    splits = list(profile.by_split)
    rows: list[list[Cell]] = [
        [_WORDS[name], *profile.properties[name], *(profile.by_split[split][name] for split in splits)]
        for name in PROPERTIES
        if name in profile.properties
    ]
    columns = ["property", "least", "5%", "median", "95%", "most", *(f"mean of {split}" for split in splits)]
    section.table(columns, rows)
    total = sum(profile.formats.values())
    formats: list[list[Cell]] = [
        [name, number, Meter(number / total, f"{number / total:.1%}")] for name, number in profile.formats.items()
    ]
    section.table(["source format", "images", "share"], formats)


def _add_telling(page: Page, profile: Profile) -> None:
    rows: list[list[Cell]] = [
        [_WORDS[name], Meter(share, f"{share:.2f}")]
        for name, share in sorted(profile.telling.items(), key=lambda item: -item[1])
    ]
    page.section(
        "What gives the label away",
        "Share of a property's variance that lies between classes (eta squared; Cramer's V for the format). A high"
        " share is no fault by itself: snow is bright. It is one where it comes from the camera, the site or the crop.",
    ).table(["property", "share between classes"], rows)


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


def _add_refused(page: Page, profile: Profile) -> None:
    if not profile.refused:
        page.section("Refused", "Every member of the source was readable.")
        return
    section = page.section("Refused")
    section.table(["reason", "members"], [[reason, number] for reason, number in profile.refused.items()])
    if profile.refused_bias is not None and profile.refused_bias < 0.01:
        section.note(
            f"Some classes lost more than others (chi-square, p = {profile.refused_bias:.1g}): figures of those classes"
            " stand for what could be read, not for the class.",
            warn=True,
        )
