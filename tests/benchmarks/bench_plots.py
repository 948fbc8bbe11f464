"""Pictures of what the ingest benchmarks measured, written where RESNET_BENCH_PLOTS names a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OURS, OTHERS, BAR = "#c2410c", "#94a3b8", "#334155"


@contextmanager
def _axes(name: str, width: float, height: float) -> Iterator[Any]:
    """Yield axes, or None where no folder is named; the picture is written when the block ends."""
    folder = os.environ.get("RESNET_BENCH_PLOTS")
    if not folder:
        yield None
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    yield axes
    Path(folder).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(folder) / f"{name}.png", dpi=150)
    print(f"plot: {Path(folder) / name}.png")


def plot_rates(bars: dict[str, float]) -> None:
    """Draw images per second of ingest (the first) and of what it was measured against."""
    with _axes("ingest_rates", 7, 0.35 * len(bars) + 0.9) as axes:
        if axes is None:
            return
        axes.barh(list(bars), list(bars.values()), color=[OURS, *[OTHERS] * (len(bars) - 1)])
        for place, rate in enumerate(bars.values()):
            axes.text(rate, place, f" {rate:,.0f}", va="center", fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("photographs a second, two processes: 256 px, JPEG")
        axes.margins(x=0.12)


def plot_cores(rates: dict[int, float]) -> None:
    """Draw images per second against cores, beside what as many times one core would be."""
    with _axes("ingest_cores", 4.5, 3) as axes:
        if axes is None:
            return
        cores = list(rates)
        axes.plot(
            cores, [rates[cores[0]] * each / cores[0] for each in cores], "--", color=OTHERS, label="in proportion"
        )
        axes.plot(cores, list(rates.values()), "o-", color=OURS, label="ingest")
        axes.set(xlabel="cores", ylabel="photographs a second", xticks=cores)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)


def plot_memory(peaks: dict[int, float], limit_mb: float) -> None:
    """Draw the peak memory of a worker in MB against the number of photographs."""
    with _axes("ingest_memory", 4.5, 3) as axes:
        if axes is None:
            return
        axes.axhline(limit_mb, ls="--", color=BAR, lw=1, label="allowed")
        axes.plot(list(peaks), list(peaks.values()), "o-", color=OURS, label="one worker's peak")
        axes.set(xlabel="photographs in the dataset", ylabel="MB", xscale="log")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
