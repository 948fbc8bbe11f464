"""What there is to say of a network before anything is trained: its layers, costs, levels, and a picture of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError
from pipelines.package.resolve import REGISTRY_SCHEME, read_description, resolve_ref
from resnet_models.errors import SpecError
from resnet_models.spec import ModelSpec
from resnet_models.zoo import named_spec, spec_names

if TYPE_CHECKING:
    from pipelines.tracking import TrackingConfig
    from resnet_models.layers import Layer
    from resnet_models.memory import TrainingMemory
    from resnet_models.receptive import Level

SMALL_IMAGE_PX, LARGE_IMAGE_PX = 32, 224


@dataclass(frozen=True)
class Run:
    """Equal blocks in a row, or layers outside blocks."""

    part: str
    """stem, stage1, ..., head."""
    first: int
    """Number of the first block in its stage, from 0; -1 outside stages."""
    times: int
    """Equal blocks."""
    layers: tuple[Layer, ...]
    """Layers of one of them."""


@dataclass(frozen=True)
class Portrait:
    """A network described."""

    name: str
    spec: ModelSpec
    image_size_px: int
    runs: tuple[Run, ...]
    levels: tuple[Level, ...]
    memory: TrainingMemory

    @property
    def parameters(self) -> int:
        """Trained values."""
        return sum(layer.parameters * run.times for run in self.runs for layer in run.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return sum(layer.macs * run.times for run in self.runs for layer in run.layers)

    def parts(self) -> list[dict[str, Any]]:
        """Return one row a part: shape behind it, blocks, costs, stride and receptive field."""
        levels = {level.part: level for level in self.levels}
        rows = []
        for part, runs in groupby(self.runs, key=lambda run: run.part):
            inside = list(runs)
            layers = [(layer, run.times) for run in inside for layer in run.layers]
            shape = next(layer.shape for layer, _ in reversed(layers) if not (layer.is_beside or layer.is_gate))
            level = levels.get(part)
            rows.append(
                {
                    "part": part,
                    "shape": list(shape),
                    "blocks": sum(run.times for run in inside if run.first >= 0),
                    "parameters": sum(layer.parameters * times for layer, times in layers),
                    "macs": sum(layer.macs * times for layer, times in layers),
                    "activation_bytes": self.memory.activations.get(part, 0),
                    "stride": level.stride if level else 0,
                    "receptive_field_px": level.receptive_field_px if level else 0,
                }
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "name": self.name,
            "spec": self.spec.to_json(),
            "image_size_px": self.image_size_px,
            "parameters": self.parameters,
            "macs": self.macs,
            "training": {
                "batch_size": self.memory.batch_size,
                "activation_bytes": self.memory.activation_bytes,
                "parameter_bytes": self.memory.parameters,
                "gradient_bytes": self.memory.gradients,
                "total_bytes": self.memory.total_bytes(),
            },
            "parts": self.parts(),
            "levels": [asdict(level) for level in self.levels],
            "runs": [
                {**asdict(run), "layers": [asdict(layer) | {"shape": list(layer.shape)} for layer in run.layers]}
                for run in self.runs
            ],
        }


def find_spec(
    model: str, changes: Mapping[str, object], *, image_size_px: int = 0, tracking: TrackingConfig | None = None
) -> tuple[ModelSpec, int]:
    """Return the settled network behind a word, and the side of the images to describe it for.

    Args:
        model: A name of the zoo; a package, train or tune folder; models:/NAME@ALIAS; or nothing, where `changes` say
            it all.
        changes: Fields of `ModelSpec` that differ.
        image_size_px: Side of the images; 0: the package's, else 32 for small stems and 224 for others.
        tracking: Where models:/ addresses are looked up.

    Raises:
        ConfigError: A field cannot be honoured.
        InputError: Nothing goes by that name.
        RegistryError: The registry lacks it or cannot be reached.
    """
    try:
        spec, size = _spec_of(model, changes, tracking)
        size = image_size_px or size
        if not size:
            is_small = spec.stem in ("cifar", "whitening")
            size = SMALL_IMAGE_PX if is_small else LARGE_IMAGE_PX
        return spec.for_images(image_size_px=size, num_classes=spec.num_classes or 1000), size
    except SpecError as error:
        raise ConfigError(f"{error.field} is {error.value!r}: {error.reason}", mend=error.cure) from error


def _spec_of(model: str, changes: Mapping[str, object], tracking: TrackingConfig | None) -> tuple[ModelSpec, int]:
    """Return the network, and the side of its images where a package tells it, else 0."""
    if not model:
        return ModelSpec.from_json(changes), 0
    if model in spec_names():
        return named_spec(model, **changes), 0
    if not model.startswith(REGISTRY_SCHEME) and not _may_be_a_folder(model):
        named_spec(model)  # raises, naming the nearest
    description = read_description(resolve_ref(model, tracking), tracking)
    known: dict[str, object] = dict(description["spec"])
    if changes.get("depths"):
        known["depth"] = 0
    spec = ModelSpec.from_json({**known, **changes})
    return spec, int(description["preprocess"].get("evaluation", {}).get("size_px", 0))


def _may_be_a_folder(model: str) -> bool:
    import os

    return "/" in model or model.endswith((".pth", ".pt", ".safetensors")) or os.path.exists(model)


def portray(name: str, spec: ModelSpec, *, image_size_px: int, batch_size: int) -> Portrait:
    """Return all figures of a settled network.

    Args:
        name: What to call it.
        spec: The network.
        image_size_px: Side of the images.
        batch_size: Images of the training step whose memory is told.
    """
    from resnet_models.layers import trace_layers
    from resnet_models.memory import training_memory
    from resnet_models.receptive import levels_of

    layers = trace_layers(spec, image_size_px=image_size_px)
    memory = training_memory(spec, image_size_px=image_size_px, batch_size=batch_size)
    return Portrait(name, spec, image_size_px, tuple(fold(layers)), tuple(levels_of(spec, layers)), memory)


def fold(layers: Sequence[Layer]) -> list[Run]:
    """Return layers by block, equal blocks in a row as one."""
    runs: list[Run] = []
    for (part, number), inside in groupby(layers, key=lambda layer: (layer.part, layer.block)):
        block = tuple(inside)
        last = runs[-1] if runs else None
        if last and number > 0 and last.part == part and last.first >= 0 and _alike(last.layers, block):
            runs[-1] = Run(part, last.first, last.times + 1, last.layers)
        else:
            runs.append(Run(part, number, 1, block))
    return runs


def _alike(first: Sequence[Layer], second: Sequence[Layer]) -> bool:
    return [(layer.kind, layer.shape) for layer in first] == [(layer.kind, layer.shape) for layer in second]
