"""Weights of another run in a new network: copied where they fit, refused where not, and kept where asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.dataset.reader import Dataset
from pipelines.errors import ConfigError
from pipelines.package.load import load_resolved
from pipelines.tracking import TrackingConfig
from pipelines.train.collectives import World
from pipelines.train.config import TrainConfig
from pipelines.train.initial import Initial, find_initial, fitted_spec
from pipelines.train.network import make_network
from pipelines.train.pixels import input_shape
from resnet_models.errors import SpecError
from resnet_models.growth.grow import grow
from resnet_models.resnet import ResNet
from resnet_models.spec import ModelSpec

_LOGGER = logging.getLogger(__name__)

# Parts that belong to the classes or to training alone: they may differ between the package and the new network.
_OWN_PARTS = ("head.", "exits.")
_OWN_FIELDS = ("num_classes", "zero_init_last", "exits", "head_dropout", "block_dropout")


@dataclass(frozen=True)
class Start:
    """A network ready to be trained."""

    network: ResNet
    spec: ModelSpec
    """Its description, settled by the data."""
    initial: Initial | None
    """The package its weights are from; None: random weights."""
    frozen: list[nn.Module]
    """Parts that are kept as they are."""


def start_network(
    config: TrainConfig,
    classes: Sequence[str],
    image_shape: tuple[int, int],
    *,
    world: World,
    device: torch.device,
    resumes: bool,
) -> Start:
    """Return the network of a run at its start, or, where it `resumes`, one that a checkpoint will fill.

    Raises:
        ConfigError, InputError: as `fitted_spec`, `find_initial` and `load_initial`.
    """
    initial = find_initial(config)
    if initial is None and config.init.lr_decay_by_depth < 1 and world.rank == 0:
        _LOGGER.warning(
            "init.lr_decay_by_depth is %g and there is no init.from: the first layers start from random weights and"
            " learn slowest; mend: name a network with init.from=..., or set init.lr_decay_by_depth=1",
            config.init.lr_decay_by_depth,
        )
    spec = fitted_spec(config, initial, classes, image_shape)

    def load(network: ResNet) -> None:
        if initial and not resumes:
            load_initial(
                network,
                initial,
                keeps_head=initial.keeps_head(classes),
                tracking=config.tracking,
                grows_by=config.seed if config.init.grow else None,
            )
            if world.rank == 0:
                _LOGGER.info("starting from %s", initial.describe(classes))

    network = make_network(
        spec, seed=config.seed, world=world, device=device, channels_last=config.channels_last, load=load
    )
    return Start(network, spec, initial, freeze(network, config.init.freeze_until))


def load_initial(
    network: ResNet, initial: Initial, *, keeps_head: bool, tracking: TrackingConfig, grows_by: int | None = None
) -> None:
    """Copy a package's weights into a network in place; with `keeps_head` false the head stays as it was drawn.

    With a seed in `grows_by` the package's network is grown to this one's size first, its function unchanged.

    Raises:
        InputError: the package is damaged, half written, of another type, or holds values that are no numbers.
        ConfigError: a tensor has another shape here; the first is named, and the settings that would fit.
    """
    source = load_resolved(initial.resolved, tracking).network
    if grows_by is not None:
        source = _grown(source, network.spec, seed=grows_by)
    given = source.state_dict()
    own = network.state_dict()
    taken = _taken_names(own, given, source.spec, network.spec, keeps_head=keeps_head)
    network.load_state_dict({**own, **{name: given[name] for name in taken}})
    if others := differences(source.spec, network.spec):
        words = ", ".join(f"{name} {there} there and {here} here" for name, (there, here) in others.items())
        _LOGGER.warning("the weights that init.from names were trained in another network: %s", words)


def _grown(network: ResNet, spec: ModelSpec, *, seed: int) -> ResNet:
    """Return a network of a larger spec that computes the same; what matters in training alone may differ.

    Raises:
        ConfigError: it cannot be grown so.
    """
    own = {field.name: getattr(network.spec, field.name) for field in fields(spec) if _is_own(field.name)}
    try:
        return grow(network, replace(spec, **own), seed=seed).network
    except SpecError as error:
        raise ConfigError(
            f"the network that init.from names cannot be grown to this one: {error}",
            where="init.grow",
            mend="give model the package's settings, with more blocks or channels only",
        ) from error


def refuse_misfit(config: TrainConfig, initial: Initial, dataset: Dataset) -> None:
    """Refuse weights of another network by the two descriptions alone, before anything is started.

    Raises:
        ConfigError: as `load_initial`, or the network does not fit the data.
    """
    here = fitted_spec(config, initial, dataset.classes, input_shape(dataset))
    if config.init.grow:
        _grown(ResNet(initial.spec), here, seed=0)
        return
    with torch.device("meta"):  # shapes only
        own, given = ResNet(here).state_dict(), ResNet(initial.spec).state_dict()
    _taken_names(own, given, initial.spec, here, keeps_head=initial.keeps_head(dataset.classes))


def _taken_names(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], there: ModelSpec, here: ModelSpec, *, keeps_head: bool
) -> list[str]:
    """Return the names of the tensors that are taken; raise where one does not fit."""
    taken = []
    for name, tensor in own.items():
        if name.startswith(_OWN_PARTS) and (not keeps_head or name not in given):
            continue
        if name not in given or given[name].shape != tensor.shape:
            raise _misfit(name, given, tensor, there, here)
        taken.append(name)
    for name in given:
        if name not in own and not name.startswith(_OWN_PARTS):
            raise _misfit(name, given, None, there, here)
    return taken


def differences(there: ModelSpec, here: ModelSpec) -> dict[str, tuple[object, object]]:
    """Return the fields in which two settled specs make different networks, as JSON values."""
    first, second = _settled(there), _settled(here)
    return {name: (first[name], second[name]) for name in first if first[name] != second[name]}


def _settled(spec: ModelSpec) -> dict[str, Any]:
    """Return a spec's fields with one spelling for each network, what matters in training alone left out."""
    values = spec.to_json()
    values |= {
        "depth": 0,
        "depths": list(spec.stage_depths),
        "channels": list(spec.stage_channels),
        "width": 1.0,
        "strides": list(spec.stage_strides),
        "stem_channels": spec.stem_width,
        "stem_pool": spec.settled_stem_pool,
        "ordering": spec.settled_ordering,
        "norm_size": spec.settled_norm_size,
    }
    return {field.name: values[field.name] for field in fields(spec) if not _is_own(field.name)}


def _is_own(field: str) -> bool:
    """Return whether a field of a spec belongs to the classes or to training alone."""
    return field in _OWN_FIELDS or field.startswith("drop_")


def _misfit(
    name: str, given: Mapping[str, Tensor], own: Tensor | None, there: ModelSpec, here: ModelSpec
) -> ConfigError:
    """Return the error that names the first tensor that differs and the settings that would make it fit."""
    theirs = f"has shape {list(given[name].shape)} there" if name in given else "is not there"
    ours = "is not here" if own is None else f"{'' if name in given else 'has shape '}{list(own.shape)} here"
    fitting = {field: value for field, (value, _) in differences(there, here).items()}
    if "depths" in fitting and here.depth:
        fitting["depth"] = 0
    if "channels" in fitting and here.width != 1.0:
        fitting["width"] = 1.0
    settings = " ".join(f"model.{field}={value}".replace(" ", "") for field, value in fitting.items())
    return ConfigError(
        f"the weights that init.from names do not fit this network: {name} {theirs} and {ours}",
        where="init.from",
        mend="leave model out, and the network is theirs" + (f"; or set {settings}" if settings else ""),
    )


def freeze(network: ResNet, until: str) -> list[nn.Module]:
    """Fix what lies before a part: parameters take no gradient; return the modules, for `set_training`.

    Args:
        network: the network, in place.
        until: `stage1` keeps the stem, `stage3` the stem and two stages, `head` all but the head; empty keeps nothing.
    """
    if not until:
        return []
    kept: list[nn.Module] = [network.stem]
    kept += list(network.stages)[: None if until == "head" else int(until.removeprefix("stage")) - 1]
    if until == "head" and network.norm is not None:
        kept.append(network.norm)
    for module in kept:
        module.requires_grad_(False)
    return kept


def set_training(network: nn.Module, frozen: list[nn.Module]) -> None:
    """Put a network into training mode but for its frozen parts, whose norm statistics and draws then stand still."""
    network.train()
    for module in frozen:
        module.eval()


def rate_scales(network: ResNet, decay: float) -> dict[str, float]:
    """Return for each parameter its learning rate as a fraction of the head's, by depth: stem, stages, head.

    A final norm counts with the last stage, whose output it normalises.
    """
    stages = len(network.stages)

    def depth(name: str) -> int:
        part, _, rest = name.partition(".")
        if part == "stem":
            return 0
        if part == "stages":
            return int(rest.partition(".")[0]) + 1
        return stages if part == "norm" else stages + 1

    return {name: decay ** (stages + 1 - depth(name)) for name, _ in network.named_parameters()}
