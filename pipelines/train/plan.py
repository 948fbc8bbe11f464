"""What a training run would do: its key from the config and the dataset's fingerprint, and where its output goes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pipelines.dataset.catalog import DATASET_FORMAT, format_ref, parse_ref, read_version
from pipelines.errors import ConfigError, InputError
from pipelines.stage_output import Plan, canonical_json, default_out, stage_key
from pipelines.storage import Storage
from pipelines.train.config import TrainConfig

OUTPUT_VERSION = 1
STAGE = "train"


@dataclass(frozen=True)
class TrainPlan(Plan):
    """The plan, and the dataset version that the run is pinned to."""

    dataset: str = ""
    """Absolute address and version, as `open_dataset` takes it anywhere."""


def plan(config: TrainConfig) -> TrainPlan:
    """Return the plan: the dataset's catalog is read, nothing else.

    Raises:
        ConfigError: no dataset is named.
        InputError: there is no such dataset or version.
    """
    if not config.dataset:
        raise ConfigError("dataset is missing", mend="name one: resnet train CONFIG --dataset DATASET")
    uri, version = parse_ref(config.dataset)
    storage = Storage.open(uri)
    catalog = read_version(storage, version, stage_format=DATASET_FORMAT)
    if catalog is None:
        raise InputError(
            f"there is no dataset at {storage.uri}: no catalog is published there",
            mend=f"make one: resnet ingest SOURCE --out {uri}",
        )
    inputs = {
        "dataset": str(catalog["fingerprint"]),
        # The same stored rows can be shown to a network in another geometry.
        "preprocess": hashlib.sha256(canonical_json(catalog["preprocess"])).hexdigest()[:16],
    }
    key = stage_key(STAGE, config, inputs, OUTPUT_VERSION)
    out = config.out or default_out(STAGE, key)
    return TrainPlan(STAGE, key, inputs, out, dataset=format_ref(storage.uri, int(catalog["version"])))
