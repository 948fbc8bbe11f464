"""The one `Preprocess` specification: what ingest stores and what a network sees, from raw files or stored rows."""

import math
from dataclasses import dataclass, field
from typing import Any

from pipelines.image.decode import DEFAULT_BACKGROUND, Pixels, ValueRange, decode_image
from pipelines.image.header import DEFAULT_LIMITS, Limits
from pipelines.image.resize import Geometry, apply_geometry

DEPTH_RULE = "shift8"


@dataclass(frozen=True)
class Preprocess:
    """Stored geometry (ingest) and evaluation geometry (readers), composed when a raw file is scored."""

    stored: Geometry = field(default_factory=Geometry)
    evaluation: Geometry = field(default_factory=Geometry)
    background: tuple[int, int, int] = DEFAULT_BACKGROUND
    """RGB on which transparent pixels are composited and that fills padding."""
    depth16: str = DEPTH_RULE
    """How 16-bit samples without a range become 8: value >> 8, the only rule so far."""
    value_range: ValueRange | None = None
    """Values of wide samples (16-bit, 32-bit, float) that become 0 and 255; None: `depth16`, and others are refused."""
    is_decoding_scaled: bool = False
    """Whether the decoder scales JPEGs much larger than the stored geometry by 1/2, 1/4 or 1/8."""

    def __post_init__(self) -> None:
        if self.depth16 != DEPTH_RULE:
            raise ValueError(f"depth16 is {self.depth16!r}; this version knows only {DEPTH_RULE!r}")
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"background is {self.background}; it must be three values of 0 to 255")
        if self.value_range is not None:
            check_value_range(self.value_range)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, as catalogs and packages keep them.

        What was added after the first of these is left out where it changes nothing.
        """
        values: dict[str, Any] = {
            "stored": self.stored.to_json(),
            "evaluation": self.evaluation.to_json(),
            "background": list(self.background),
            "depth16": self.depth16,
        }
        if self.value_range is not None:
            values["value_range"] = list(self.value_range)
        if self.is_decoding_scaled:
            values["is_decoding_scaled"] = True
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Preprocess":
        """Build from `to_json`'s values; raises KeyError, TypeError or ValueError on others."""
        red, green, blue = values["background"]
        given = values.get("value_range")
        return cls(
            stored=Geometry.from_json(values["stored"]),
            evaluation=Geometry.from_json(values["evaluation"]),
            background=(red, green, blue),
            depth16=values["depth16"],
            value_range=None if given is None else (float(given[0]), float(given[1])),
            is_decoding_scaled=bool(values.get("is_decoding_scaled", False)),
        )


def check_value_range(value_range: ValueRange) -> None:
    """Raise ValueError where the two values span no range."""
    low, high = value_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range is {list(value_range)}; it must be two numbers, the lower one first")


def prepare_raw(data: bytes, preprocess: Preprocess, limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """Return the (H, W, 3) network input of a raw file: stored geometry, then evaluation geometry, no re-encoding.

    Raises:
        RefusedImage: when the bytes are not an acceptable image.
    """
    image = decode_image(
        data,
        limits,
        preprocess.background,
        value_range=preprocess.value_range,
        divisor_rule=preprocess.stored.divisor_of if preprocess.is_decoding_scaled else None,
    )
    stored = apply_geometry(image.pixels, preprocess.stored, preprocess.background, image.upright_size)
    return prepare_pixels(stored, preprocess)


def prepare_stored(data: bytes, preprocess: Preprocess) -> Pixels:
    """Return the (H, W, 3) network input of a dataset row's bytes: evaluation geometry only."""
    return prepare_pixels(decode_image(data, DEFAULT_LIMITS, preprocess.background).pixels, preprocess)


def prepare_pixels(pixels: Pixels, preprocess: Preprocess) -> Pixels:
    """Apply the evaluation geometry to decoded pixels."""
    return apply_geometry(pixels, preprocess.evaluation, preprocess.background)
