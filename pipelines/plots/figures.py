"""The figures of training, data and evaluation; each takes plain numbers and returns one `Picture`.

All are 480 CSS pixels wide and set their panels one above the other, so that a phone, which shows them at three
quarters of that, still shows readable letters.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines.plots.canvas import FONT_SIZE, axis_labels, render, shorten, style_axes, whole_numbers
from pipelines.plots.palette import Palette
from pipelines.plots.params import describe_params
from pipelines.plots.picture import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 480
MAX_NAMED_CLASSES = 24
"""Above this a confusion matrix drops its cell numbers and names only the pairs that are confused most."""
MAX_CLASS_BARS = 30
WORST_PAIRS = 12


def training_curves(records: Sequence[Mapping[str, Any]]) -> Picture:
    """Draw loss and top-1 accuracy over epochs from epoch records; the best validation epoch is marked.

    Of equal ones that with the lowest loss is, since its weights are kept.

    A record holds `epoch`, `train_loss`, `val_loss`, `train_top1`, `val_top1` (fractions); missing
    values leave gaps. Records with `val_map` are of images with several labels: that is drawn, and no line for train.
    """
    epochs = [int(record["epoch"]) for record in records]
    is_multi = any(record.get("val_map") is not None for record in records)

    def draw(figure: "Figure", palette: Palette) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True)
        _pair_of_curves(upper, palette, epochs, _column(records, "train_loss"), _column(records, "val_loss"))
        style_axes(upper, palette, title="Loss")
        accuracy = _column(records, "val_map" if is_multi else "val_top1")
        _pair_of_curves(lower, palette, epochs, _column(records, "train_top1"), accuracy, percent=True)
        style_axes(lower, palette, title="Mean average precision, %" if is_multi else "Top-1 accuracy, %")
        axis_labels(lower, palette, x="epoch")
        whole_numbers(lower)
        if np.isfinite(accuracy).any():
            best = best_epoch(accuracy, _column(records, "val_loss"))
            lower.plot(epochs[best], 100 * accuracy[best], "o", color=palette.accent, markersize=6, zorder=5)
            lower.annotate(
                f"best {100 * accuracy[best]:.1f}%",
                (epochs[best], 100 * accuracy[best]),
                xytext=(0, -14),
                textcoords="offset points",
                ha="right" if best > len(epochs) / 2 else "left",
                color=palette.accent,
                fontsize=FONT_SIZE,
            )

    return render(draw, WIDTH, 420)


def best_epoch(scores: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]) -> int:
    """Return the index of the highest score; of equal ones that with the lowest loss, of those the first."""
    is_best = scores == np.nanmax(scores)
    known = np.where(np.isnan(losses), math.inf, losses)
    order = np.lexsort((known, ~is_best))  # the last key counts first, and equal ones stay in their order
    return int(order[0])


def confusion_matrix(matrix: Sequence[Sequence[int]] | npt.NDArray[Any], classes: Sequence[str]) -> Picture:
    """Draw a confusion matrix (rows: true class, columns: predicted), each row as shares of its true class.

    Hits are drawn in the accent and misses in the warm colour, which is stretched to the worst miss so that a class
    confused in 3% of cases still shows beside a diagonal of 95%. With more than 24 classes the pairs confused most
    are listed below, since no picture can name 10,000 cells.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"a confusion matrix of shape {counts.shape} does not fit {len(classes)} classes")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = len(classes) <= MAX_NAMED_CLASSES
    pairs = [] if named else _worst_pairs(counts, classes)

    def draw(figure: "Figure", palette: Palette) -> None:
        if named:
            _confusion_cells(figure.subplots(), palette, shares, counts, classes)
            return
        # Two subfigures: one layout would indent the matrix by the length of the names below it.
        grid = figure.add_gridspec(2, 1, height_ratios=[WIDTH, 60 + 22 * max(1, len(pairs))])
        upper, lower = (figure.add_subfigure(grid[row]) for row in range(2))
        for part in (upper, lower):
            part.set_facecolor(palette.card)
        _confusion_cells(upper.subplots(), palette, shares, counts, classes)
        _pair_bars(lower.subplots(), palette, pairs)

    if named:
        return render(draw, WIDTH, max(320, min(WIDTH + 50, 150 + 46 * len(classes))))
    return render(draw, WIDTH, WIDTH + 60 + 22 * max(1, len(pairs)))


def leaderboard(trials: Sequence[Mapping[str, Any]], limit: int = 12) -> Picture:
    """Draw the validation top-1 of the first trials, which come best first, each named by its sampled values.

    As points: the axis is cut to where they lie, and a bar on a cut axis would lie about its length.

    A trial holds `id`, `params`, `val_top1` (None if it never reported) and `status`. Trials that were stopped early
    are drawn paler than finished ones: their figure is from fewer epochs.
    """
    shown = [trial for trial in trials if trial.get("val_top1") is not None][:limit]

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.subplots()
        style_axes(axes, palette, title="Validation top-1, %", grid="x")
        axis_labels(axes, palette, x=f"best {len(shown)} of {len(trials)}; pale: stopped early")
        if not shown:
            _empty(axes, palette, "no trial has reported yet")
            return
        values = [100 * float(trial["val_top1"]) for trial in shown]
        colours = [palette.accent if t.get("status") == "finished" else palette.quiet for t in shown]
        rows = np.arange(len(shown))
        axes.scatter(values, rows, color=colours, s=56, zorder=3)
        names = [shorten(f"{trial['id']}  {describe_params(trial['params'])}", 40) for trial in shown]
        axes.set_yticks(rows, names, parse_math=False)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        low = max(0.0, min(values) - 0.35 * max(4.0, max(values) - min(values)))
        axes.set_xlim(low, max(values) + 0.2 * (max(values) - low))
        for row, value in enumerate(values):
            axes.text(value, row, f"   {value:.1f}", va="center", ha="left", color=palette.ink, fontsize=FONT_SIZE)

    return render(draw, WIDTH, 110 + 30 * max(2, len(shown)))


def reliability(bins: Sequence[Mapping[str, float]], ece: float | None = None) -> Picture:
    """Draw a reliability diagram: accuracy against confidence, and below it how many predictions each bin holds.

    A bin holds `confidence` (its mean, 0 to 1), `accuracy` (0 to 1) and `count`; empty bins are left out. On the
    diagonal a network is exactly as sure as it is right; below it, too sure.
    """
    filled = [b for b in bins if b["count"] > 0]
    confidence = np.asarray([b["confidence"] for b in filled], dtype=float)
    accuracy = np.asarray([b["accuracy"] for b in filled], dtype=float)
    counts = np.asarray([b["count"] for b in filled], dtype=float)

    def draw(figure: "Figure", palette: Palette) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        title = "Right, % · against how sure" + (f" · ECE {100 * ece:.1f}%" if ece is not None else "")
        style_axes(upper, palette, title=title)
        upper.plot([0, 100], [0, 100], color=palette.quiet, linewidth=1, linestyle=(0, (4, 3)))
        upper.vlines(100 * confidence, 100 * accuracy, 100 * confidence, color=palette.warm, linewidth=2, alpha=0.75)
        upper.plot(100 * confidence, 100 * accuracy, "o-", color=palette.accent, linewidth=1.6, markersize=4.5)
        upper.set(xlim=(0, 100), ylim=(0, 103))
        style_axes(lower, palette, title="Predictions")
        lower.bar(100 * confidence, counts, width=100 / max(len(bins), 1) * 0.72, color=palette.quiet)
        axis_labels(lower, palette, x="how sure, %")

    return render(draw, WIDTH, 420)


def class_balance(counts: Mapping[str, Mapping[str, int]]) -> Picture:
    """Draw how many images each class has in each split; `counts[split][class]`.

    Up to 30 classes are bars with their names; more are one line per split over classes ordered by size.
    """
    splits = list(counts)
    names = sorted({name for per_class in counts.values() for name in per_class}, key=_natural)
    table = np.asarray([[counts[split].get(name, 0) for name in names] for split in splits], dtype=float)

    def draw(figure: "Figure", palette: Palette) -> None:
        axes = figure.subplots()
        if not names:
            style_axes(axes, palette, grid="none")
            _empty(axes, palette, "no labelled images")
        elif len(names) <= MAX_CLASS_BARS:
            style_axes(axes, palette, title="Images per class", grid="x")
            _balance_bars(axes, palette, names, splits, table)
        else:
            style_axes(axes, palette, title="Images per class, largest class first")
            order = np.argsort(-table.sum(axis=0), kind="stable")
            for shade, split, row in zip(_shades(palette, len(splits)), splits, table, strict=True):
                axes.step(range(1, len(names) + 1), row[order], where="mid", color=shade, linewidth=1.8, label=split)
            axes.set_ylim(bottom=0)
            axis_labels(axes, palette, x=f"rank among {len(names):,} classes")
        if names:
            _legend(axes, palette, len(splits))

    return render(draw, WIDTH, 110 + 26 * max(3, len(names)) if len(names) <= MAX_CLASS_BARS else 360)


def _column(records: Sequence[Mapping[str, Any]], name: str) -> npt.NDArray[np.float64]:
    values = [record.get(name) for record in records]
    return np.asarray([math.nan if value is None else float(value) for value in values], dtype=np.float64)


def _pair_of_curves(
    axes: "Axes",
    palette: Palette,
    epochs: Sequence[int],
    train: npt.NDArray[np.float64],
    val: npt.NDArray[np.float64],
    *,
    percent: bool = False,
) -> None:
    factor = 100 if percent else 1
    marker = "o" if len(epochs) < 3 else None
    axes.plot(epochs, factor * train, color=palette.quiet, linewidth=1.6, label="train", marker=marker, markersize=3)
    axes.plot(epochs, factor * val, color=palette.accent, linewidth=2, label="val", marker=marker, markersize=3)
    axes.margins(x=0.03, y=0.14)
    if not percent:
        _legend(axes, palette, 2)


def _legend(axes: "Axes", palette: Palette, columns: int) -> None:
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=FONT_SIZE,
        labelcolor=palette.ink,
        handlelength=1.4,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def _confusion_cells(
    axes: "Axes",
    palette: Palette,
    shares: npt.NDArray[np.float64],
    counts: npt.NDArray[np.float64],
    classes: Sequence[str],
) -> None:
    size = len(classes)
    style_axes(axes, palette, title=f"True class down, predicted across · {counts.sum():,.0f} images", grid="none")
    axes.imshow(_confusion_colours(shares, palette), interpolation="nearest", aspect="equal")
    if size > MAX_NAMED_CLASSES:
        step = max(1, 10 ** math.floor(math.log10(size / 2)))
        axes.set_xticks(range(0, size, step))
        axes.set_yticks(range(0, size, step))
        return
    names = [shorten(name, 16) for name in classes]
    long = max(len(name) for name in names) > 3
    axes.set_xticks(range(size), names, rotation=45 if long else 0, ha="right" if long else "center", parse_math=False)
    axes.set_yticks(range(size), names, parse_math=False)
    worst = max(float((shares - np.diag(np.diag(shares))).max()), 1e-9)
    for row, column in zip(*np.nonzero(counts), strict=True):
        strength = shares[row, column] if row == column else math.sqrt(shares[row, column] / worst)
        axes.text(
            column,
            row,
            f"{counts[row, column]:.0f}",
            ha="center",
            va="center",
            color=palette.card if strength > 0.55 else palette.ink,
            fontsize=FONT_SIZE if size <= 12 else FONT_SIZE - 2.5,
        )


def _confusion_colours(shares: npt.NDArray[np.float64], palette: Palette) -> npt.NDArray[np.float64]:
    from matplotlib.colors import to_rgb

    card, accent, warm = (np.asarray(to_rgb(c)) for c in (palette.card, palette.accent, palette.warm))
    hits = np.diag(np.diag(shares))
    misses = shares - hits
    misses = np.sqrt(misses / max(float(misses.max()), 1e-9))  # the eye needs the small ones lifted
    colours = card + hits[:, :, None] * (accent - card) + 0.9 * misses[:, :, None] * (warm - card)
    return np.asarray(np.clip(colours, 0, 1))


def _worst_pairs(counts: npt.NDArray[np.float64], classes: Sequence[str]) -> list[tuple[str, int]]:
    misses = counts.copy()
    np.fill_diagonal(misses, 0)
    order = np.argsort(-misses, axis=None, kind="stable")[:WORST_PAIRS]
    cells = [(int(index) // len(classes), int(index) % len(classes)) for index in order]
    return [
        (f"{shorten(classes[row], 20)} → {shorten(classes[column], 20)}", int(misses[row, column]))
        for row, column in cells
        if misses[row, column] > 0
    ]


def _pair_bars(axes: "Axes", palette: Palette, pairs: Sequence[tuple[str, int]]) -> None:
    style_axes(axes, palette, title="Confused most, images", grid="x")
    if not pairs:
        _empty(axes, palette, "no image was misclassified")
        return
    rows = np.arange(len(pairs))
    axes.barh(rows, [count for _, count in pairs], color=palette.warm, height=0.6)
    axes.set_yticks(rows, [name for name, _ in pairs], parse_math=False)
    axes.invert_yaxis()
    whole_numbers(axes)


def _balance_bars(
    axes: "Axes", palette: Palette, names: Sequence[str], splits: Sequence[str], table: npt.NDArray[np.float64]
) -> None:
    rows = np.arange(len(names))
    left = np.zeros(len(names))
    for shade, split, values in zip(_shades(palette, len(splits)), splits, table, strict=True):
        axes.barh(rows, values, left=left, color=shade, height=0.62, label=split)
        left += values
    axes.set_yticks(rows, [shorten(name, 24) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max(float(left.max()), 1.0))
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:,.0f}", va="center", color=palette.muted, fontsize=FONT_SIZE)


def _shades(palette: Palette, count: int) -> list[str]:
    from matplotlib.colors import to_hex, to_rgb

    accent, card = (np.asarray(to_rgb(colour)) for colour in (palette.accent, palette.card))
    tints = [to_hex(accent + (card - accent) * part) for part in (0.0, 0.45)]
    return ([*tints, palette.quiet] * math.ceil(count / 3))[:count]


def _natural(name: str) -> tuple[int, int, str]:
    """Order class names as people do: 2 before 10, numbers before words."""
    return (0, int(name), name) if name.isdecimal() and name.isascii() else (1, 0, name)


def _empty(axes: "Axes", palette: Palette, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=palette.muted)
