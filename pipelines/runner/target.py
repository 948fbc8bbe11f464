"""What a stage's positional CONFIG means: a preset, a config file, a dataset, or images that are ingested first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar

from pipelines.config.load import find_preset, load_config, preset_names
from pipelines.config.strict import StrictModel
from pipelines.dataset.catalog import DATASET_FORMAT, parse_ref, read_version
from pipelines.errors import ConfigError, InputError
from pipelines.ingest.config import IngestConfig
from pipelines.ray_runtime import RayConfig
from pipelines.sources.addresses import is_virtual
from pipelines.storage import Storage

C = TypeVar("C", bound=StrictModel)

YAML_SUFFIXES = (".yaml", ".yml")
# Where each stage's schema lives; loaded when asked for.
_SCHEMAS: dict[str, tuple[str, str]] = {
    "run": ("pipelines.runner.config", "RunConfig"),
    "ingest": ("pipelines.ingest.config", "IngestConfig"),
    "train": ("pipelines.train.config", "TrainConfig"),
    "tune": ("pipelines.tune.config", "TuneConfig"),
    "evaluate": ("pipelines.evaluate.config", "EvaluateConfig"),
    "register": ("pipelines.registry.config", "RegisterConfig"),
    "score": ("pipelines.score.config", "ScoreConfig"),
}
# Where a stage's config names its dataset.
_DATASET_KEYS = {"train": "dataset", "tune": "train.dataset"}


@dataclass(frozen=True)
class Target:
    """A resolved CONFIG.

    Attributes:
        stage: the stage it is for.
        config: the preset's or the user's YAML file; None for the stage's defaults.
        data: address of a dataset or of images; empty when the config itself names its dataset.
        kind: what `data` is.
        words: the same in a sentence.
    """

    stage: str
    config: Path | None
    data: str
    kind: Literal["none", "dataset", "images"]
    words: str


def schema_of(stage: str) -> type[StrictModel]:
    """Return a stage's config model.

    Raises:
        InputError: there is no such stage.
    """
    if stage not in _SCHEMAS:
        raise InputError(f"there is no stage {stage!r}", mend=f"one of: {', '.join(_SCHEMAS)}")
    module, name = _SCHEMAS[stage]
    schema: type[StrictModel] = getattr(import_module(module), name)
    return schema


def config_path(stage: str, name: str) -> Path:
    """Return the file behind the name of a preset or a path that ends in .yaml.

    Raises:
        InputError: it is neither; the message lists the presets.
    """
    preset = find_preset(stage, name)
    if preset is not None:
        return preset
    path = Path(name)
    if path.suffix in YAML_SUFFIXES and path.is_file():
        return path
    known = ", ".join(preset_names(stage)) or "none is shipped"
    what = f"config file {name} does not exist" if path.suffix in YAML_SUFFIXES else f"{stage} has no preset {name!r}"
    raise InputError(what, mend=f"give a .yaml file or a preset: {known}")


def resolve(stage: str, text: str, *, dataset: str = "") -> Target:
    """Return what CONFIG means, tried in this order: preset name, suffix .yaml, address of data.

    Raises:
        InputError: nothing of that name is there, or two datasets are named.
    """
    preset = find_preset(stage, text)
    if preset is not None or Path(text).suffix in YAML_SUFFIXES:
        path = config_path(stage, text)
        name = f"preset {text}" if preset is not None else f"config file {text}"
        if not dataset:
            return Target(stage, path, "", "none", f"CONFIG is the {name}")
        kind = _kind_of(stage, dataset, named=True)
        return Target(stage, path, dataset, kind, f"CONFIG is the {name}, on the {_noun(kind)} {dataset}")
    if dataset:
        raise InputError(
            f"{text} is data and --dataset names {dataset}: only one can be used",
            mend=f"resnet {stage} PRESET --dataset {dataset}, with a preset: {', '.join(preset_names(stage))}",
        )
    kind = _kind_of(stage, text)
    return Target(stage, None, text, kind, f"CONFIG is the {_noun(kind)} {text}, with the defaults of {stage}")


def load(
    schema: type[C],
    target: Target,
    overrides: Sequence[str],
    *,
    out: str = "",
    dry_run: bool = False,
    say: Callable[[str], None],
) -> C:
    """Return the stage's config; images are ingested first and the split that was made is said.

    Args:
        schema: the stage's config model.
        target: what CONFIG meant.
        overrides: `key=value` texts of the stage.
        out: output folder of the stage; empty for its default.
        dry_run: only say what would be ingested.
        say: takes one line of news.
    """
    inputs: dict[str, Any] = {"out": out} if out else {}
    if target.kind == "dataset":
        inputs[_DATASET_KEYS[target.stage]] = target.data
    elif target.kind == "images":
        # A misspelt key of the stage must not show only after a long ingest.
        checked = load_config(schema, target.config, overrides, {**inputs, _DATASET_KEYS[target.stage]: target.data})
        ray = getattr(checked, "ray", RayConfig())
        inputs[_DATASET_KEYS[target.stage]] = ingest_first(target.data, ray=ray, dry_run=dry_run, say=say)
    return load_config(schema, target.config, overrides, inputs)


def ingest_first(source: str, *, ray: RayConfig, dry_run: bool, say: Callable[[str], None]) -> str:
    """Ingest images with the default settings, once, on the stage's cluster, and return the dataset's address."""
    config = IngestConfig(source=source, ray=ray)
    if dry_run:
        from pipelines.ingest.plan import plan

        out = plan(config).out
        say(f"ingest: {source} would be ingested into {out} first, {describe_split(config)}")
        return out
    from pipelines.ingest import stage

    outcome = stage.run(config)
    say(f"ingest: {outcome.out}{' stands already' if outcome.skipped else ''}, {describe_split(config)}")
    catalog = read_version(Storage.open(outcome.out))
    if catalog is not None:
        say(f"ingest: {describe_counts(catalog)}")
    return outcome.out


def describe_split(config: IngestConfig) -> str:
    """Return in words how images are split, as the config asks for it."""
    split = config.split
    return f"split {split.train:.0%} train, {split.val:.0%} val, {split.test:.0%} test, seed {split.seed}"


def describe_counts(catalog: dict[str, Any]) -> str:
    """Return in words how many images each split of a dataset holds."""
    splits = {name: part["rows"] for name, part in catalog["splits"].items()}
    words = ", ".join(f"{name} {rows:,}" for name, rows in splits.items())
    counts = catalog["counts"]
    refused = ", ".join(
        f"{name.partition('.')[2]} {number:,}" for name, number in counts.items() if name.startswith("quarantined.")
    )
    return f"{sum(splits.values()):,} images: {words}" + (f"; refused: {refused}" if refused else "")


def is_dataset(address: str) -> bool:
    """Return whether an address is a published dataset (with or without `@vN`)."""
    uri, _ = parse_ref(address)
    catalog = read_version(Storage.open(uri))
    return catalog is not None and catalog.get("format") == DATASET_FORMAT


def _kind_of(stage: str, address: str, *, named: bool = False) -> Literal["dataset", "images"]:
    uri, version = parse_ref(address)
    if version is not None or is_dataset(uri):
        return "dataset"
    if is_virtual(uri) and not named:
        return "images"
    if "://" not in uri and not Path(uri).expanduser().exists():
        if named:
            raise InputError(
                f"there is no dataset at {address}, and nothing else", where="--dataset", mend="check the path"
            )
        raise InputError(
            f"{address} is no preset of {stage}, no .yaml file, and nothing is there",
            mend=f"presets: {', '.join(preset_names(stage)) or 'none'}; or check the path",
        )
    if "://" not in uri and Path(uri).suffix.lower() in (".csv", ".tsv", ".jsonl", ".json", ".txt"):
        raise ConfigError(
            f"{address} is a table, where a folder, .zip or .tar of images is meant",
            mend="give the folder that holds the images, one sub-folder a class; or ingest it with the table:"
            f" resnet ingest IMAGES labels={address}",
        )
    return "images"


def _noun(kind: str) -> str:
    return {"dataset": "dataset", "images": "images in"}[kind]
