"""An evaluation as pictures: confusion, reliability, and one page with the worst mistakes as images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.evaluate.summary import Summary
from pipelines.plots.figures import confusion_matrix, reliability
from pipelines.plots.page import Cell, Fact, FigureCard, Meter, Page, Tile
from pipelines.plots.picture import Picture
from pipelines.plots.thumbnail import make_picture, make_thumbnail

_MAX_CLASSES = 200

UNSURE = (
    "whether images look like one in this dataset's train split cannot be judged, since the perceptual hash takes many"
    " of these pictures for each other: only the same bytes count as leaked"
)
"""Said where look-alikes are left out."""


def make_figures(summary: Summary, classes: Sequence[str]) -> dict[str, Picture]:
    """Return the pictures of an evaluation by file name without suffix."""
    confusion = {"confusion": confusion_matrix(summary.confusion, classes)} if summary.confusion else {}
    return {**confusion, "reliability": reliability(summary.reliability, float(summary.metrics["ece"]))}


def make_page(
    summary: Summary,
    figures: Mapping[str, Picture],
    mistakes: Sequence[Mapping[str, Any]],
    images: Mapping[int, bytes],
    *,
    model: str,
    dataset: str,
    split: str,
    is_sure: bool = True,
    num_views: int = 1,
) -> bytes:
    """Return `mistakes.html`: a self-contained page.

    Args:
        summary: the figures.
        figures: the pictures of `make_figures`.
        mistakes: entries of `worst_mistakes`.
        images: stored image files by row position.
        model: name of the model, shown.
        dataset: reference of the dataset, shown.
        split: name of the split, shown.
        is_sure: whether the perceptual hash tells the dataset's pictures apart.
        num_views: views of each image whose answers were averaged.
    """
    metrics = summary.metrics
    page = Page(
        "Evaluation",
        kicker="resnet-pipelines",
        lead=f"{_short(model)} on split {split} of {_short(dataset)}: {metrics['labelled_rows']:,} labelled images,"
        " each once.",
    )
    section = page.section("Result")
    if num_views > 1:
        section.note(f"Each answer is the mean over {num_views} views of the image, mirrored or moved: more right than"
                     " the package's own, which has one.")  # fmt: skip
    section.facts(_facts(metrics))
    if leaked := metrics.get("leaked_rows", 0):
        section.note(
            f"{leaked:,} of these images stand in this dataset's train split too, or look like one there; without them"
            f" {_without_leaks(metrics)}.",
            warn=True,
        )
    if not is_sure:
        section.note(UNSURE[0].upper() + UNSURE[1:] + ".", warn=True)
    _add_mistakes(page, mistakes, images)
    cards = [FigureCard(figures["reliability"], "Calibration", "Below the diagonal the network is too sure of itself.")]
    if "confusion" in figures:
        cards.insert(0, FigureCard(figures["confusion"], "Confusion", "Rows: true class. Columns: predicted class."))
    page.section("Where it errs").figures(cards)
    _add_classes(page, summary)
    return page.render()


def _facts(metrics: Mapping[str, float | int]) -> list[Fact]:
    """Return the figures that matter most, by what labels the images have."""
    calibration = Fact(f"{metrics['ece']:.2%}", "calibration error: how far sureness is off")
    mean_f1 = Fact(f"{metrics['macro_f1']:.3f}", "mean F1 over classes")
    if "map" in metrics:
        return [
            Fact(f"{metrics['map']:.2%}", "mean average precision over classes", "lead"),
            mean_f1,
            Fact(f"{metrics['micro_f1']:.3f}", "F1 of all answers together"),
            Fact(f"{metrics['exact']:.2%}", "images with every class told rightly"),
            calibration,
        ]
    return [
        Fact(f"{metrics['top1']:.2%}", "right (top-1)", "lead"),
        Fact(f"{metrics['top1_low']:.1%} to {metrics['top1_high']:.1%}", "95% interval of that figure"),
        Fact(f"{metrics['top5']:.2%}", "label among the first five"),
        calibration,
        mean_f1,
    ]


def _without_leaks(metrics: Mapping[str, float | int]) -> str:
    if "map" in metrics:
        return f"the mean average precision is {metrics['map_without_leaks']:.2%}"
    return (
        f"{metrics['top1_without_leaks']:.2%} are right (95% interval {metrics['top1_without_leaks_low']:.1%} to"
        f" {metrics['top1_without_leaks_high']:.1%})"
    )


def _short(address: str) -> str:
    """Return the last two parts of an address: a whole one fills a phone's screen."""
    return "/".join(address.rsplit("/", 2)[-2:])


def _add_mistakes(page: Page, mistakes: Sequence[Mapping[str, Any]], images: Mapping[int, bytes]) -> None:
    if not mistakes:
        page.section("Mistakes", "None: every labelled image was given what its label says.")
        return
    section = page.section(
        "Mistakes", "The surest first. Where a network is sure and wrong, the label is the first thing to look at."
    )
    section.images(
        [
            Tile(
                _thumbnail(images[mistake["row"]]),
                f"{mistake['label']} → {mistake['predicted']}",
                f"{mistake['probability']:.0%} sure{_about(mistake)} · {mistake['key']}",
            )
            for mistake in mistakes
        ],
        title="Label → prediction",
    )


def _about(mistake: Mapping[str, Any]) -> str:
    """Return which of several classes the network is wrong about."""
    return f" about {mistake['class']}" if "class" in mistake else ""


def _add_classes(page: Page, summary: Summary) -> None:
    ordered = sorted(summary.per_class, key=lambda row: (row["f1"], row["label"]))[:_MAX_CLASSES]
    rows: list[list[Cell]] = [
        [
            str(row["label"]),
            int(row["support"]),
            Meter(row["precision"], f"{row['precision']:.1%}"),
            f"{row['precision_low']:.0%} to {row['precision_high']:.0%}",
            Meter(row["recall"], f"{row['recall']:.1%}"),
            f"{row['recall_low']:.0%} to {row['recall_high']:.0%}",
            round(float(row["f1"]), 3),
            *([_average_precision(row)] if "average_precision" in row else []),
        ]
        for row in ordered
    ]
    more = len(summary.per_class) - len(rows)
    words = "The weakest first." + (f" {more:,} stronger classes are left out; the catalog has all." if more else "")
    columns = ["class", "images", "precision", "95% interval", "recall", "95% interval", "F1"]
    if ordered and "average_precision" in ordered[0]:
        columns.append("average precision")
    page.section("Classes", words).table(columns, rows)


def _average_precision(row: Mapping[str, Any]) -> Cell:
    value = row["average_precision"]
    return None if value is None else Meter(value, f"{value:.1%}")


def _thumbnail(data: bytes) -> Picture:
    pixels = make_thumbnail(data)
    assert pixels is not None, "it was decoded to be evaluated"
    return make_picture(pixels)
