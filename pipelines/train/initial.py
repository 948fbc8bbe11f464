"""What a run starts from, when not from random weights: one package, pinned, and what it decides. No torch here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError
from pipelines.package.describe import DESCRIPTION_FILE, WEIGHTS_FILE
from pipelines.package.resolve import REGISTRY_SCHEME, ResolvedPackage, read_artifact, read_description, resolve_ref
from pipelines.stage_output import canonical_json
from pipelines.storage import Storage
from pipelines.train.network_spec import settle_spec
from pipelines.train.schedule import side_at
from resnet_models.spec import ModelSpec

if TYPE_CHECKING:
    from pipelines.tracking import TrackingConfig
    from pipelines.train.config import TrainConfig

INIT = "init"
"""Folder of a run that holds a copy of what it starts from, so that workers and resumes need the run alone."""


@dataclass(frozen=True)
class Initial:
    """The package that a run starts from."""

    ref: str
    """As the user gave it."""
    resolved: ResolvedPackage
    """The same, pinned."""
    spec: ModelSpec
    """Its network."""
    classes: tuple[str, ...]
    """Its classes, in the order of its head's outputs."""
    origin: Mapping[str, Any]
    """Licence and source, where it or what it was trained from was imported."""

    def keeps_head(self, classes: Sequence[str]) -> bool:
        """Return whether the head fits the data: the same classes in the same order, not only as many."""
        return self.classes == tuple(classes)

    def key_inputs(self, config: TrainConfig, classes: Sequence[str]) -> dict[str, str]:
        """Return what a stage's key takes from the package: what it holds, never where it lies."""
        inputs = {
            "init": self.resolved.weights_sha256,
            "init_head": "kept" if self.keeps_head(classes) else "new",
        }
        if takes_spec(config):
            # Only what differs from the defaults: a field that a later release adds then changes no key.
            changed = {
                field.name: value
                for field in fields(self.spec)
                if (value := self.spec.to_json()[field.name]) != ModelSpec().to_json()[field.name]
                and field.name != "num_classes"
            }
            inputs["init_spec"] = hashlib.sha256(canonical_json(changed)).hexdigest()[:16]
        return inputs

    def describe(self, classes: Sequence[str]) -> str:
        """Say in one line what the run starts from and what becomes of the head."""
        name = self.ref if self.ref == self.resolved.uri else f"{self.ref} ({self.resolved.uri})"
        if self.spec.exits:
            name += ", early exits left out"
        if self.keeps_head(classes):
            return f"{name}, head kept"
        names = "other names" if len(self.classes) == len(classes) else f"{len(classes)}"
        return f"{name}, head new: {len(self.classes)} classes there, {names} here"

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return what catalog and package keep of it: the hash, and a licence, which holds for what follows too."""
        return {
            "init_sha256": self.resolved.weights_sha256,
            "init_head": "kept" if self.keeps_head(classes) else "new",
            **{name: self.origin[name] for name in ("licence", "source") if name in self.origin},
        }


def find_initial(config: TrainConfig, tracking: TrackingConfig | None = None) -> Initial | None:
    """Return the package that `init.from` names, its weights unread; None where the start is random.

    Raises:
        InputError: there is no such package, or it is a pickle.
        RegistryError: the registry lacks it or cannot be reached.
    """
    if not config.init.source:
        return None
    resolved = resolve_ref(config.init.source, tracking or config.tracking)
    description = read_description(resolved, tracking or config.tracking)
    spec = ModelSpec.from_json(description["spec"])
    origin = description.get("origin") or {}
    return Initial(config.init.source, resolved, spec, tuple(description["classes"]), origin)


def takes_spec(config: TrainConfig) -> bool:
    """Return whether the network is the package's, because the config says nothing of a network."""
    return config.model == ModelSpec()


def starting_spec(config: TrainConfig, initial: Initial | None) -> ModelSpec:
    """Return the network to train, classes left open: the config's, or the package's where the config has none.

    Early exits of the package stay behind: they would be those of weights that change.

    Raises:
        ConfigError: `init.freeze_until` names a stage that the network lacks.
    """
    spec = replace(initial.spec, num_classes=0, exits=()) if initial and takes_spec(config) else config.model
    until = config.init.freeze_until
    if until.startswith("stage") and int(until.removeprefix("stage")) > spec.num_stages:
        choices = [f"stage{number}" for number in range(1, spec.num_stages + 1)]
        raise ConfigError(
            f"init.freeze_until is {until}; the network has {spec.num_stages} stages",
            mend=f"use one of {', '.join(choices)}, head",
        )
    return spec


def fitted_spec(
    config: TrainConfig, initial: Initial | None, classes: Sequence[str], image_shape: tuple[int, int]
) -> ModelSpec:
    """Return the network to train, its stem and number of classes filled in from the data.

    Raises:
        InputError: as `settle_spec`.
        ConfigError: as `starting_spec` and `settle_spec`, or progressive images begin smaller than the network takes.
    """
    spec = settle_spec(starting_spec(config, initial), classes, image_shape)
    progressive, full_px = config.progressive, min(image_shape)
    side_px = side_at(progressive, side_px=full_px, epoch=1, epochs=config.epochs)
    if side_px < spec.min_image_px:
        fitting_px = math.ceil(spec.min_image_px / progressive.multiple_px) * progressive.multiple_px
        fraction = min(1.0, math.ceil(100 * fitting_px / full_px) / 100)
        raise ConfigError(
            f"images of the first epoch have {side_px} px a side, and the network takes {spec.min_image_px} or more",
            where="progressive.start_fraction",
            mend=f"progressive.start_fraction={fraction:g}, or smaller model.strides",
        )
    return spec


def ghost_size_of(spec: ModelSpec) -> int:
    """Return the rows of a ghost batch; 0 where norms see more than one."""
    return spec.settled_norm_size if spec.norm == "ghost" else 0


def keep_copy(initial: Initial, run: Storage, tracking: TrackingConfig) -> str:
    """Copy the package into a run's folder, once, and return the copy's address."""
    copy = run.child(INIT)
    if not copy.exists(DESCRIPTION_FILE):
        source = initial.resolved.uri
        for name in (WEIGHTS_FILE, DESCRIPTION_FILE):  # the description last: without one it is no package
            is_registered = source.startswith(REGISTRY_SCHEME)
            copy.put(name, read_artifact(source, name, tracking) if is_registered else Storage.open(source).read(name))
    return copy.uri
