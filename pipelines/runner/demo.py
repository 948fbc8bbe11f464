"""The default demo source: scikit-learn's handwritten digits as a zip of PNGs, with three faults planted.

A truncated file, an exact copy that would leak from train to test, and a wrong label on a test image. The split of
an image is a pure function of its id and the seed, so the two images that must lie in given splits are found by
asking that function; what was planted is written down beside the archive, and the report shows that all was caught.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipelines.config.strict import StrictModel, runtime_field
from pipelines.errors import ConfigError
from pipelines.image.plain_png import encode_grey_png
from pipelines.ingest.config import IngestConfig, SplitConfig
from pipelines.ingest.split import SplitPlan, make_split_plan
from pipelines.sources.base import Entry, Found, image_id, make_listing
from pipelines.stage_output import (
    Plan,
    StageResult,
    default_out,
    open_run,
    publish_catalog,
    read_catalog,
    stage_key,
)
from pipelines.storage import Storage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

OUTPUT_VERSION = 1
ARCHIVE = "digits.zip"
PLANTED = "planted.json"
_FIXED_TIME = (2000, 1, 1, 0, 0, 0)
_TRUNCATED_BYTES = 60  # of 137: signature and header are whole, the pixels are not
_LEVELS = 16  # grey levels of the data set are 0 to 16


class DemoConfig(StrictModel):
    """What decides where the planted faults go."""

    split: SplitConfig
    """The split that ingest will make."""

    source_name: str = ARCHIVE
    """Name that ingest will give the archive; it is part of every image_id."""

    out: str = runtime_field("")
    """Folder of the archive."""


@dataclass(frozen=True)
class Planted:
    """The three faults, by the archive's keys."""

    truncated: str
    """A file that ends in the middle."""
    copy: str
    """An exact copy of `original`, in test while the original is in train."""
    original: str
    mislabelled: str
    """A test image in the folder of another class."""
    true_label: str
    wrong_label: str


def demo_config(ingest: IngestConfig) -> DemoConfig:
    """Return the demo's config for the ingest that will read it."""
    return DemoConfig(split=ingest.split, source_name=ingest.source_name or ARCHIVE)


def plan(config: DemoConfig) -> Plan:
    """Return the demo's plan."""
    key = stage_key("demo-data", config, {}, OUTPUT_VERSION)
    return Plan("demo-data", key, {}, config.out or default_out("demo-data", key))


def run(config: DemoConfig) -> StageResult:
    """Write the archive and its sidecar, or find them standing."""
    planned = plan(config)
    storage = Storage.open(planned.out)
    catalog = read_catalog(storage)
    skipped = catalog is not None and catalog["key"] == planned.key
    if catalog is None or not skipped:
        open_run(storage, "demo-data", planned.key, {})
        members, planted = make_members(config)
        data = make_zip(members)
        storage.put(ARCHIVE, data)
        storage.put(PLANTED, json.dumps(asdict(planted), indent=1).encode())
        catalog = publish_catalog(
            storage,
            {
                "stage": "demo-data",
                "key": planned.key,
                "archive": ARCHIVE,
                "sha256": hashlib.sha256(data).hexdigest(),
                "members": len(members),
                "planted": asdict(planted),
            },
        )
    return StageResult(
        "demo-data",
        planned.out,
        planned.key,
        skipped,
        {"members": int(catalog["members"])},
        (f"resnet ingest {planned.out}/{ARCHIVE}",),
    )


def make_members(config: DemoConfig) -> tuple[dict[str, bytes], Planted]:
    """Return the archive's members by key, faults included, and what was planted.

    Raises:
        ConfigError: the split leaves train or test empty, so that nothing can leak between them.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.images, digits.target
    clean = {f"{labels[i]}/{i:04d}.png": encode_grey_png(_grey(images[i])) for i in range(len(labels))}
    typical = _most_typical(images, labels)
    # Moving one image shifts the cut-offs of its classes a little: candidates come from the clean listing's plan,
    # and only the whole archive's own plan decides.
    guess = _plan_of(clean, config)

    def guessed(key: str) -> str:
        return guess.split_of(image_id(config.source_name, key.encode(), 0), key.partition("/")[0])

    for place, index in enumerate(typical):
        true, wrong = str(labels[index]), str((int(labels[index]) + 1) % 10)
        old, new = f"{true}/{index:04d}.png", f"{wrong}/{index:04d}.png"
        if guessed(new) != "test":
            continue
        for other in typical[place + 1 :]:
            original = f"{labels[other]}/{other:04d}.png"
            copy = f"{labels[other]}/copy-of-{other:04d}.png"
            if (guessed(original), guessed(copy)) != ("train", "test"):
                continue
            members = {(new if key == old else key): data for key, data in clean.items()}
            truncated = f"{labels[other]}/truncated.png"
            members |= {truncated: clean[original][:_TRUNCATED_BYTES], copy: clean[original]}
            members = dict(sorted(members.items()))
            splits = splits_of(members, config)
            if (splits[original], splits[copy], splits[new]) == ("train", "test", "test"):
                return members, Planted(truncated, copy, original, new, true, wrong)
    raise ConfigError(
        f"the demo's faults cannot be planted: no image lies in test with split {config.split.model_dump(mode='json')}",
        mend="give train and test a share, for example ingest.split.test=0.2",
    )


def splits_of(members: Mapping[str, bytes], config: DemoConfig) -> dict[str, str]:
    """Return the split that ingest will give each member of the archive."""
    plan_made = _plan_of(members, config)
    entries = _entries(members, config)
    return {entry.key: plan_made.split_of(entry.image_id, entry.label, entry.given_split) for entry in entries}


def _plan_of(members: Mapping[str, bytes], config: DemoConfig) -> SplitPlan:
    return make_split_plan(_entries(members, config), config.split)


def _entries(members: Mapping[str, bytes], config: DemoConfig) -> tuple[Entry, ...]:
    return make_listing(config.source_name, [Found(key.encode(), len(data)) for key, data in members.items()]).entries


def make_zip(members: Mapping[str, bytes]) -> bytes:
    """Return a zip with the members in order, stored, its bytes a function of them alone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for key, data in members.items():
            entry = zipfile.ZipInfo(key, _FIXED_TIME)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


def _grey(image: Any) -> npt.NDArray[np.uint8]:
    import numpy as np

    return np.asarray(np.rint(image * (255 / _LEVELS)), dtype=np.uint8)


def _most_typical(images: Any, labels: Any) -> list[int]:
    """Return the images in order of distance to the mean of their class: a wrong label on one must stand out."""
    import numpy as np

    flat = images.reshape(len(images), -1)
    means = np.stack([flat[labels == digit].mean(axis=0) for digit in range(10)])
    distance = ((flat - means[labels]) ** 2).sum(axis=1)
    return [int(index) for index in np.argsort(distance, kind="stable")]
