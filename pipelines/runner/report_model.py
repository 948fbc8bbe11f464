"""The report's sections about the network: the result at a glance, training, the sweep, the test, the mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.metrics.deciding import find_deciding
from pipelines.plots.figures import confusion_matrix, leaderboard, reliability, training_curves
from pipelines.plots.page import Cell, Fact, FigureCard, Meter, Page, Tile
from pipelines.plots.params import describe_params
from pipelines.plots.picture import Picture
from pipelines.plots.sweeps import sweep_curves, sweep_slices
from pipelines.runner import graph, report_images
from pipelines.runner.graph import Made
from pipelines.runner.report_data import open_made
from pipelines.storage import Storage
from pipelines.tune.report import ranked

_MISTAKES_SHOWN = 24
_CLASSES_SHOWN = 60
_TRIALS_SHOWN = 20


def add_summary(page: Page, made: Mapping[str, Made]) -> None:
    """Add the figures that matter most."""
    evaluation, registered = made["evaluate"].catalog, made["register"].catalog
    metrics = evaluation["metrics"]
    best = graph.best(made).catalog["best"]
    lead = (
        Fact(f"{metrics['map']:.1%}", "mean average precision on test images", "lead")
        if "map" in metrics
        else Fact(f"{metrics['top1']:.1%}", f"of test images right; 95% interval {_interval(evaluation)}", "lead")
    )
    facts = [
        lead,
        Fact(f"{float(best[find_deciding(best, 'val_')]):.1%}", "on val, where the network was chosen"),
        Fact(f"{metrics['ece']:.1%}", "calibration error: how far sureness is off"),
        Fact(f"v{registered['version']}", f"of {registered['name']}{_champion(registered)}"),
    ]
    if "score" in made:
        scored = made["score"].catalog["counts"]["scored"]
        facts.append(Fact(f"{scored:,}", "images of an archive scored with it"))
    page.section("Result").facts(facts)


def describe_result(evaluation: Mapping[str, Any]) -> str:
    """Return what the network is worth, as a clause that the number of test images completes."""
    metrics = evaluation["metrics"]
    if "map" in metrics:
        return f"whose mean average precision is {metrics['map']:.1%} on"
    return f"that is right on {metrics['top1']:.1%} of"


def _interval(evaluation: Mapping[str, Any]) -> str:
    low, high = evaluation["metrics"]["top1_low"], evaluation["metrics"]["top1_high"]
    return f"{100 * low:.1f}\u2013{high:.1%}"


def _champion(registered: Mapping[str, Any]) -> str:
    return ", now its champion" if registered.get("promoted") else ", registered"


def add_training(page: Page, made: Mapping[str, Made]) -> None:
    """Add the curves of the plain training run and what its network saw."""
    train = made["train"]
    catalog, records = train.catalog, train.catalog["records"]
    deciding = find_deciding(catalog["best"], "val_")
    rates = sorted(float(record["images_per_s"]) for record in records if record.get("images_per_s"))
    pace = f" {len(records)} epochs at {rates[len(rates) // 2]:,.0f} images per second." if rates else ""
    section = page.section("Training", describe_network(catalog) + pace)
    cards = [
        FigureCard(
            training_curves(records),
            "Loss and accuracy by epoch",
            f"Best on val in epoch {catalog['best']['epoch']}: {catalog['best'][deciding]:.1%}.",
        )
    ]
    mosaic = _stored_picture(train.out, "figures/mosaic.jpg", "image/jpeg")
    if mosaic is not None:
        cards.append(FigureCard(mosaic, "What the network saw", "The first training images, augmented as they were."))
    section.figures(cards)


def describe_network(catalog: Mapping[str, Any]) -> str:
    """Return a network's spec in a sentence."""
    spec = catalog["model"]["spec"]
    layers = f"depths {spec['depths']}" if spec.get("depths") else f"depth {spec.get('depth')}"
    words = f"A residual network of {spec.get('block', 'basic')} blocks, {layers}, width {spec.get('width', 1)}"
    return words + f", stem {spec['stem']}." if isinstance(spec.get("stem"), str) else words + "."


def add_sweep(page: Page, made: Mapping[str, Made]) -> None:
    """Add the sweep: leaderboard, values against accuracy, and the table of trials."""
    catalog = made["tune"].catalog
    trials = ranked(catalog["trials"])
    best = catalog["best"]
    plain = float(made["train"].catalog["best"]["val_top1"])
    if graph.best(made) is made["tune"]:
        verdict = "It was registered."
    elif plain > best["val_top1"]:
        verdict = "The plain training run above was better, and was registered."
    else:
        verdict = "The plain training run above was as good, and a tie stays with it."
    section = page.section(
        "Sweep",
        f"{len(trials)} trials; the best reached {best['val_top1']:.1%} on val with {describe_params(best['params'])}."
        f" {verdict}",
    )
    cards = [FigureCard(leaderboard(trials), "Leaderboard")]
    if any(trial.get("curve") for trial in trials):
        cards.append(FigureCard(sweep_curves(trials), "How the trials learned"))
    cards.append(FigureCard(sweep_slices(trials), "What each value did"))
    section.figures(cards)
    rows: list[list[Cell]] = [
        [
            str(trial["id"]),
            describe_params(trial["params"]),
            int(trial.get("epochs") or 0),
            _meter(trial.get("val_top1")),
            str(trial["status"]),
        ]
        for trial in trials[:_TRIALS_SHOWN]
    ]
    section.table(["trial", "values", "epochs", "val top-1", "state"], rows, lead_row=0)


def add_test(page: Page, made: Mapping[str, Made]) -> None:
    """Add the measurement on test: confusion, calibration, classes."""
    catalog = made["evaluate"].catalog
    classes = _classes(made)
    section = page.section(
        "Test",
        "Images that neither training nor the choice of the network has seen, each once.",
    )
    counts = catalog["confusion"]  # empty where images have several labels
    cards = [FigureCard(confusion_matrix(counts, classes), "Confusion", "Rows: true class.")] if counts else []
    bins = catalog.get("reliability")
    if bins:
        cards.append(FigureCard(reliability(bins, catalog["metrics"].get("ece")), "Calibration"))
    section.figures(cards)
    rows: list[list[Cell]] = [
        [
            str(row["label"]),
            int(row["support"]),
            _meter(row["precision"]),
            _meter(row["recall"]),
            f"{100 * row['recall_low']:.0f}\u2013{row['recall_high']:.0%}"
            if row.get("recall_low") is not None
            else None,
            *([_meter(row["average_precision"])] if "average_precision" in row else []),
        ]
        for row in catalog["per_class"][:_CLASSES_SHOWN]
    ]
    # What the figure of several labels is the mean of.
    more = ["average precision"] if any("average_precision" in row for row in catalog["per_class"]) else []
    section.table(["class", "images", "precision", "recall", "95% interval of recall", *more], rows)


def add_mistakes(page: Page, made: Mapping[str, Made]) -> None:
    """Add the mistakes that the network was most sure of."""
    mistakes = made["evaluate"].catalog["mistakes"]
    if not mistakes:
        page.section("Mistakes", "None: every test image was given its label.")
        return
    section = page.section(
        "Mistakes",
        "The surest first. Where the network is sure and wrong, the label is the first thing to look at.",
    )
    planted = made[graph.DEMO].catalog["planted"]["mislabelled"] if graph.DEMO in made else ""
    shown = mistakes[:_MISTAKES_SHOWN]
    split = str(made["evaluate"].catalog["dataset"]["split"])
    found = report_images.find_rows(open_made(made), split, {row["image_id"] for row in shown})
    tiles = []
    for row in shown:
        image = found.get(row["image_id"])
        if image is None:
            continue
        words = f"{row['label']} → {row['predicted']}"
        is_planted = bool(planted) and row["key"] == planted
        about = f" about {row['class']}" if "class" in row else ""  # of several labels, the one that is wrong
        remark = f"{row['probability']:.0%} sure{about}" + (
            " · planted wrong label" if is_planted else f" · {row['key']}"
        )
        tiles.append(Tile(image.picture, words, remark, warn=is_planted))
    section.images(tiles, title="Label → prediction")


def _classes(made: Mapping[str, Made]) -> list[str]:
    return [str(name) for name in made["ingest"].catalog["classes"]]


def _meter(value: object) -> Cell:
    return Meter(float(value), f"{float(value):.1%}") if isinstance(value, (int, float)) else None


def _range(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{100 * low:.0f}\u2013{high:.0%}"


def _stored_picture(out: str, path: str, media_type: str) -> Picture | None:
    storage = Storage.open(out)
    if not storage.exists(path):
        return None
    from io import BytesIO

    from PIL import Image

    data = storage.read(path)
    with Image.open(BytesIO(data), formats=["JPEG", "PNG"]) as image:
        width, height = image.size
    return Picture(data, media_type, width, height)
