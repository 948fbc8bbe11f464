"""From a file of weights made elsewhere to a package of ours: names mapped, checked, licence and source kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError, InputError
from pipelines.image.preprocess import Preprocess
from pipelines.image.resize import Geometry
from pipelines.package.describe import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    PackageDescription,
    parse_description,
    write_package,
)
from pipelines.package.weights_file import read_weights_file
from pipelines.storage import Storage
from resnet_models.errors import SpecError
from resnet_models.spec import AUTO_STEM_LIMIT_PX, ModelSpec
from resnet_models.zoo import named_spec

if TYPE_CHECKING:
    from torch import Tensor

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
_CROP_SHARE = 0.875
"""Share of the shorter side that an ImageNet network is shown, 224 of 256."""
_HEAD = "head.weight"


@dataclass(frozen=True)
class Origin:
    """Where weights come from and what may be done with them."""

    licence: str
    """Licence of the weights, e.g. BSD-3-Clause or CC-BY-NC-4.0."""
    source: str
    """Address or paper that they come from."""


@dataclass(frozen=True)
class Pixels:
    """What the network was trained to see."""

    image_size_px: int = 224
    """Side of its input."""
    mean: Triple = IMAGENET_MEAN
    """Mean of pixel / 255 per channel that was subtracted."""
    std: Triple = IMAGENET_STD
    """Standard deviation of pixel / 255 per channel that was divided by."""


@dataclass(frozen=True)
class Imported:
    """A package made from a file."""

    out: str
    """Address of its folder."""
    names: str
    """Whose names the tensors had: ours, torchvision or timm."""
    parameters: int
    num_classes: int
    weights_sha256: str
    notes: tuple[str, ...]
    """What was done beside copying, in words."""


def import_weights(
    file: Path,
    arch: str,
    out: str,
    origin: Origin,
    *,
    changes: Mapping[str, object] | None = None,
    classes: Sequence[str] = (),
    pixels: Pixels | None = None,
    as_float32: bool = False,
) -> Imported:
    """Write a file of weights as a package that `init.from`, evaluate and score take.

    Args:
        file: safetensors, or what `torch.save` wrote of a state dict.
        arch: name of the network (`resnet_models.zoo`).
        out: folder or address of the package.
        origin: licence and source, kept in the package and in all that is trained from it.
        changes: fields of the network that differ from the named one's.
        classes: class names in the order of the outputs; empty: "output 0" and so on, which no dataset has.
        pixels: what the network was trained to see; None: ImageNet's usual.
        as_float32: convert half-precision weights.

    Raises:
        InputError: the file is unreadable, holds more than tensors, another network's or values that are no numbers,
            or `out` holds another package.
        ConfigError: there is no such network, it cannot see these pixels, or licence or source are empty.
    """
    pixels = pixels or Pixels()
    spec = _settled_spec(arch, dict(changes or {}), pixels)
    _check_words(origin, classes)
    state, notes = read_weights_file(file)
    state, notes = _as_float32(state, notes, file, wanted=as_float32)
    names, spec, state, notes = _fit(state, spec, notes, file)
    description = PackageDescription(
        spec=spec,
        classes=tuple(classes) or tuple(f"output {index}" for index in range(spec.num_classes)),
        preprocess=_preprocess(pixels).to_json(),
        mean=pixels.mean,
        std=pixels.std,
        origin={
            "licence": origin.licence,
            "source": origin.source,
            "file": file.name,
            "file_sha256": _sha256(file),
            "arch": arch,
            "names": names,
        },
    )
    if len(description.classes) != spec.num_classes:
        raise InputError(
            f"{len(description.classes)} class names are given; the network has {spec.num_classes} outputs",
            mend="give one name a line, in the order of the outputs",
        )
    written = _write(Storage.open(out), state, description)
    parameters = sum(tensor.numel() for name, tensor in state.items() if not name.endswith(_STATISTICS))
    return Imported(Storage.open(out).uri, names, parameters, spec.num_classes, str(written["weights_sha256"]), notes)


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _settled_spec(arch: str, changes: Mapping[str, object], pixels: Pixels) -> ModelSpec:
    """Return the named network for these pixels, refusing what no package of images can hold."""
    try:
        spec = named_spec(arch, **changes).for_images(image_size_px=pixels.image_size_px)
    except SpecError as error:
        raise ConfigError(f"{error.field} is {error.value!r}: {error.reason}", mend=error.cure) from error
    if spec.in_channels != 3:
        raise ConfigError(
            f"in_channels is {spec.in_channels}; packages are shown RGB images, grey ones included",
            mend="leave in_channels at 3",
        )
    for name, values, is_right in (
        ("mean", pixels.mean, lambda value: 0 <= value <= 1),
        ("std", pixels.std, lambda value: 0 < value <= 1),
    ):
        if not all(map(is_right, values)):
            raise ConfigError(
                f"{name} is {list(values)}; it is of pixel / 255, so three numbers of "
                f"{'0' if name == 'mean' else 'more than 0'} to 1",
                mend="give what the network was trained with, or leave it at ImageNet's",
            )
    return spec


def _check_words(origin: Origin, classes: Sequence[str]) -> None:
    """Refuse an empty licence or source, and a class named twice."""
    for name, words in (("licence", origin.licence), ("source", origin.source)):
        if not words.strip():
            raise ConfigError(f"the {name} is empty", mend=f"say it, for example --{name} unknown")
    twice = [name for name in classes if classes.count(name) > 1]
    if twice:
        raise InputError(
            f"the class {twice[0]!r} is named {classes.count(twice[0])} times", mend="name each output once, in order"
        )


def _as_float32(
    state: dict[str, Tensor], notes: tuple[str, ...], file: Path, *, wanted: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the weights in float32; other floating types only where that is asked for."""
    import torch

    others = [name for name, tensor in state.items() if tensor.is_floating_point() and tensor.dtype != torch.float32]
    if not others:
        return state, notes
    kind = str(state[others[0]].dtype).removeprefix("torch.")
    if not wanted:
        raise InputError(
            f"{others[0]} in {file} is {kind}; weights are float32 here",
            mend="add --as-float32 to convert them",
        )
    converted = {name: tensor.float() if name in set(others) else tensor for name, tensor in state.items()}
    return converted, (*notes, f"{len(others)} tensors converted from {kind}")


def _fit(
    state: dict[str, Tensor], spec: ModelSpec, notes: tuple[str, ...], file: Path
) -> tuple[str, ModelSpec, dict[str, Tensor], tuple[str, ...]]:
    """Return whose names the weights have, and the spec and the weights that fit each other exactly."""
    import torch

    from resnet_models.resnet import ResNet
    from resnet_models.state_dict import WeightsError, check_finite, load_strict

    best: tuple[int, str, ModelSpec, dict[str, Tensor]] | None = None
    for names, mapped in _mappings(state, spec):
        sized = _with_outputs(spec, mapped.get(_HEAD))
        with torch.device("meta"):
            hits = len(ResNet(sized).state_dict().keys() & mapped.keys())
        if best is None or hits > best[0]:
            best = (hits, names, sized, mapped)
    assert best is not None, "our own names are always tried"
    _, names, sized, mapped = best
    if sized.num_classes != spec.num_classes:
        notes = (*notes, f"{sized.num_classes} outputs, as in the file, where the network has {spec.num_classes}")
    network = ResNet(sized)
    mapped, filled = _with_counters(mapped, network.state_dict())
    if filled:
        notes = (*notes, f"{filled} counters of batches seen were missing and start at 0")
    try:
        load_strict(network, mapped)
    except WeightsError as error:
        raise InputError(
            f"the file does not hold this network's weights (read with {names} names): {error}",
            where=str(file),
            mend="name the right one with --arch, or give what differs as key=value (`resnet describe NAME` shows it)",
        ) from error
    try:
        check_finite(mapped)
    except WeightsError as error:
        raise InputError(str(error), where=str(file), mend="use other weights") from error
    return names, sized, dict(network.state_dict()), notes


def _with_outputs(spec: ModelSpec, head: Tensor | None) -> ModelSpec:
    """Return the network with as many outputs as the head has rows; a head that is none is left to strict loading."""
    if head is None or not head.dim() or not len(head):
        return spec
    try:
        return replace(spec, num_classes=len(head))
    except SpecError:
        return spec


def _mappings(state: dict[str, Tensor], spec: ModelSpec) -> list[tuple[str, dict[str, Tensor]]]:
    """Return the weights under our names by each key map that can read them."""
    from resnet_models.state_dict import WeightsError, from_torchvision
    from resnet_models.timm_names import from_timm

    maps: dict[str, Callable[[Mapping[str, Tensor], ModelSpec], dict[str, Tensor]]] = {
        "torchvision": from_torchvision,  # timm's plain networks have the same names
        "timm": from_timm,
    }
    found = [("our", dict(state))]
    for names, mapping in maps.items():
        try:
            found.append((names, mapping(state, spec)))
        except WeightsError:
            continue  # not a network of theirs
    return found


def _with_counters(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Return the weights with counters that files from before 2018 lack, and how many were added."""
    import torch

    missing = [name for name in own if name.endswith("num_batches_tracked") and name not in state]
    return state | {name: torch.zeros((), dtype=torch.int64) for name in missing}, len(missing)


def _preprocess(pixels: Pixels) -> Preprocess:
    """Return the usual view in tests: the centre of the picture, all of it where networks see small pictures."""
    share = _CROP_SHARE if pixels.image_size_px > AUTO_STEM_LIMIT_PX else 1.0
    return Preprocess(evaluation=Geometry(pixels.image_size_px, "crop", crop_ratio=share))


def _write(storage: Storage, state: dict[str, Tensor], description: PackageDescription) -> dict[str, object]:
    """Write the package; one that stands there already must be the same."""
    if storage.exists(DESCRIPTION_FILE):
        where = storage.address(DESCRIPTION_FILE)
        standing = parse_description(storage.read(DESCRIPTION_FILE), where)
        if standing.get("origin") != dict(description.origin) or standing["spec"] != description.spec.to_json():
            raise InputError(f"{storage.uri} holds another package", where=where, mend="choose another --out")
    elif others := [stored.path for stored in storage.list() if not _is_half_of(storage, stored.path, state)]:
        raise InputError(
            f"{storage.uri} holds something else (for example {others[0]})",
            mend="choose an empty folder or another --out",
        )
    return write_package(storage, "", state, description)


def _is_half_of(storage: Storage, path: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether a file is what an import of these weights leaves behind when it is killed half way."""
    from resnet_models.state_dict import pack_weights

    return path == WEIGHTS_FILE and storage.read(path) == pack_weights(state)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
