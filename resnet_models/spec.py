"""What a residual network is, as plain data: `ModelSpec`, importable without torch.

A spec says everything that `resnet_models.resnet.build` needs and nothing else, survives a trip through JSON
unchanged, and refuses at once what no network can honour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from resnet_models.errors import SpecError
from resnet_models.spec_checks import check_spec_honoured, check_spec_shape, check_spec_values
from resnet_models.spec_fields import SpecFields

AUTO_STEM_LIMIT_PX = 64
"""Stem "auto": images up to this side keep their resolution in the stem, as in the CIFAR networks."""


@dataclass(frozen=True)
class ModelSpec(SpecFields):
    """A residual network, layer counts and widths included; its fields are those of `SpecFields`.

    The defaults describe ResNet-18 for large images and ResNet-20 for small ones.

    Raises:
        SpecError: A value is out of range, or the block cannot honour a field; names field, value and cure.
    """

    def __post_init__(self) -> None:
        """Refuse what no network can honour; shapes are checked once the stem is known."""
        check_spec_values(self)
        check_spec_honoured(self)
        if self.stem != "auto":
            check_spec_shape(self)

    def for_images(self, *, image_size_px: int, num_classes: int = 0) -> ModelSpec:
        """Return the spec settled for images of this side: no "auto" stem, and the number of classes filled in.

        Args:
            image_size_px: Side of the network's input; the shorter one where the images are not square.
            num_classes: Classes of the data; 0 keeps the spec's own.

        Raises:
            SpecError: The spec names another number of classes, its depth does not fit the settled stem, or the image
                is too small for its strides.
        """
        if num_classes and self.num_classes not in (0, num_classes):
            raise SpecError(
                "num_classes",
                self.num_classes,
                f"the data has {num_classes} classes",
                "leave num_classes at 0 to take it from the data",
            )
        stem = self.stem
        if stem == "auto":
            stem = "cifar" if image_size_px <= AUTO_STEM_LIMIT_PX else "imagenet"
        settled = replace(self, stem=stem, num_classes=num_classes or self.num_classes)
        check_image_size(settled, image_size_px)
        return settled

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON values, all of them, in the order of declaration."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> ModelSpec:
        """Return the spec that `to_json` wrote; a missing field takes its default.

        Raises:
            SpecError: A field is unknown (the nearest is named) or holds a value of another type.
            TypeError: The values are no table of fields.
        """
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            raise TypeError(f"a spec is read from fields by name, not from {values!r:.80}")
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise SpecError(name, values[name], "ModelSpec has no such field", _nearest_spec_field(name, known))
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **tuples})  # type: ignore[arg-type]  # types are checked by __post_init__


def check_image_size(spec: ModelSpec, image_size_px: int) -> None:
    """Refuse images of which a strided layer would see a single pixel.

    Args:
        spec: A settled spec.
        image_size_px: The shorter side.

    Raises:
        SpecError: Names the size, the stride and the least size.
    """
    if image_size_px < spec.min_image_px:
        raise SpecError(
            "image_size_px",
            image_size_px,
            f"the network strides over {spec.total_stride} pixels (stem {spec.stem_stride}, "
            f"stages {' x '.join(map(str, spec.stage_strides))})",
            f"use images of at least {spec.min_image_px} px, smaller strides, or stem=cifar",
        )


def _nearest_spec_field(name: str, known: list[str]) -> str:
    from difflib import get_close_matches  # 5 ms that only a misspelt field pays

    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"the fields are {', '.join(known)}"
