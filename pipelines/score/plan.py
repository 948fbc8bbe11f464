"""What a scoring run would do: its key from the archive's listing and the pinned model, and where its output goes."""

from __future__ import annotations

import re

from pipelines.errors import RegistryError
from pipelines.package.resolve import ResolvedPackage, resolve_ref
from pipelines.score.config import ScoreConfig
from pipelines.sources.base import Source
from pipelines.sources.resolve import open_source
from pipelines.stage_output import Plan, default_out, stage_key

OUTPUT_VERSION = 1
STAGE = "score"

_PINNED = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>[0-9]+)")


def plan(config: ScoreConfig) -> Plan:
    """Return the plan: the listing is read and the model's alias resolved, nothing else.

    Raises:
        InputError: the archive or the model is missing or unreadable.
    """
    return make_plan(config, open_source(config.archive, config.source_name), pin_model(config))


def make_plan(config: ScoreConfig, source: Source, model: ResolvedPackage) -> Plan:
    """Return the plan for a source and a model that are already at hand."""
    inputs = {
        "source": source.name,
        "listing": source.listing_digest(),
        "model": f"{model.name}/{model.version}",
        "weights": model.weights_sha256,
    }
    key = stage_key(STAGE, config, inputs, OUTPUT_VERSION)
    return Plan(STAGE, key, inputs, config.out or default_out(STAGE, key))


def pin_model(config: ScoreConfig) -> ResolvedPackage:
    """Return the very package that is meant: an alias is resolved here and nowhere later.

    A version whose hash the config holds is taken at its word, so that a skip needs no registry; `check_pin` asks it
    before any work.

    Raises:
        InputError: the address is malformed or the folder holds no package.
        RegistryError: the registry lacks the model.
    """
    match = _PINNED.fullmatch(config.model)
    if match and config.model_sha256:
        return ResolvedPackage(config.model, config.model, match["name"], match["version"], config.model_sha256)
    return check_pin(config)


def check_pin(config: ScoreConfig) -> ResolvedPackage:
    """Resolve the model where it is kept and compare it with the hash that the config expects.

    Raises:
        RegistryError: it is another model by now.
    """
    resolved = resolve_ref(config.model, config.tracking)
    if config.model_sha256 not in ("", resolved.weights_sha256):
        raise RegistryError(
            f"{config.model} has weights {resolved.weights_sha256}, and model_sha256 is {config.model_sha256}",
            where=resolved.uri,
            mend="name the version that you mean, or leave model_sha256 out",
        )
    return resolved
