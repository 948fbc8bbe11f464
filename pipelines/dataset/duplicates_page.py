"""The look-alikes of a dataset as one page: what straddles splits or labels first, side by side as images."""

from __future__ import annotations

from pipelines.dataset.duplicates import Alike, Cluster
from pipelines.dataset.reader import Dataset
from pipelines.dataset.stored_images import stored_images
from pipelines.plots.page import Fact, Page, Section, Tile
from pipelines.plots.thumbnail import make_picture, make_thumbnail

_CLUSTERS_SHOWN = 60
_IMAGES_SHOWN = 8


def make_page(alike: Alike, dataset: Dataset) -> bytes:
    """Return a self-contained page: figures, then clusters, the most harmful first."""
    counts = alike.counts()
    page = Page(
        "Look-alikes",
        kicker="resnet-pipelines",
        lead=f"{counts['images']:,} images of {dataset.ref.rsplit('/', 1)[-1]} compared by perceptual hash.",
    )
    result = page.section("Result").facts(
        [
            Fact(f"{counts['clusters']:,}", "clusters of images that look alike", "lead"),
            Fact(f"{counts['images_in_clusters']:,}", "images in them"),
            Fact(f"{counts['clusters_across_splits']:,}", "clusters that are in more than one split"),
            Fact(f"{counts['leaks']:,}", "images that look like one in a more held-out split"),
            Fact(f"{counts['clusters_with_different_labels']:,}", "clusters with different labels"),
            Fact(f"{counts['one_colour']:,}", "images of one colour, left out"),
        ]
    )
    if alike.doubt:
        result.note(alike.doubt, warn=True)
    across = [cluster for cluster in alike.clusters if len(cluster.splits) > 1]
    disputed = [cluster for cluster in alike.clusters if len(cluster.labels) > 1 and len(cluster.splits) == 1]
    rest = [cluster for cluster in alike.clusters if len(cluster.splits) == 1 and len(cluster.labels) == 1]
    for title, intro, clusters in (
        ("Across splits", "Held-out figures count images that training has seen, or nearly.", across),
        ("Different labels", "Images that look alike and are called differently.", disputed),
        ("Within a split", "They are seen more often than others.", rest),
    ):
        if clusters:
            add_clusters(page.section(title, intro), clusters, dataset)
    return page.render()


def add_clusters(section: Section, clusters: list[Cluster], dataset: Dataset, *, limit: int = _CLUSTERS_SHOWN) -> None:
    """Add the largest clusters to a section, each as a row of images."""
    shown = sorted(clusters, key=lambda cluster: -len(cluster.rows))[:limit]
    wanted: dict[str, list[int]] = {}
    for cluster in shown:
        for row in cluster.rows[:_IMAGES_SHOWN]:
            wanted.setdefault(row["split"], []).append(row["row"])
    images = {split: stored_images(dataset, split, rows) for split, rows in wanted.items()}
    for number, cluster in enumerate(shown, start=1):
        tiles = []
        for row in cluster.rows[:_IMAGES_SHOWN]:
            pixels = make_thumbnail(images[row["split"]][row["row"]])
            if pixels is not None:
                words = f"{row['split']} · {row['distance']} bits · {row['key']}"
                tiles.append(Tile(make_picture(pixels), str(row["label"]), words))
        more = len(cluster.rows) - len(tiles)
        section.images(tiles, title=f"{number}: {len(cluster.rows)} images" + (f", {more} not shown" if more else ""))
    if len(clusters) > len(shown):
        section.note(f"{len(clusters) - len(shown):,} more are not shown; `resnet data duplicates` has all.")
