"""A picture ready to be stored, logged or embedded: encoded bytes and the size at which it is meant to be seen."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg"}


@dataclass(frozen=True)
class Picture:
    """An encoded picture.

    `width` and `height` are the size to show it at, in CSS pixels; the bytes may hold two pixels for each of them.
    """

    data: bytes
    media_type: str
    width: int
    height: int
    dark: bytes = b""
    """The same picture for a dark page; empty when one rendering serves both."""

    @property
    def extension(self) -> str:
        """Suffix of a file that holds `data`, without the dot."""
        return EXTENSIONS[self.media_type]

    def data_uri(self, *, dark: bool = False) -> str:
        """Return the bytes as a `data:` address, which a page can show without fetching anything."""
        data = self.dark if dark else self.data
        return f"data:{self.media_type};base64,{base64.b64encode(data).decode('ascii')}"

    def _repr_mimebundle_(self, **_: object) -> dict[str, bytes]:
        return {self.media_type: self.data}


def encode_picture(
    pixels: npt.NDArray[Any], *, scale: float = 1.0, media_type: str = "image/jpeg", quality: int = 85
) -> Picture:
    """Encode uint8 pixels of shape (H, W, 3) or (H, W); shown at `scale` CSS pixels for each pixel."""
    from PIL import Image

    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise ValueError(f"a picture needs uint8 pixels (H, W, 3) or (H, W), not {pixels.dtype} {pixels.shape}")
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if media_type == "image/png":
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=quality, optimize=True)
    height, width = pixels.shape[:2]
    return Picture(buffer.getvalue(), media_type, max(1, round(width * scale)), max(1, round(height * scale)))
