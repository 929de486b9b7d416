"""PNG with fixed settings: equal arrays give equal bytes (for one version of the codec)."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from glass_fast.errors import DataError

_COMPRESS_LEVEL = 6


def voc_palette() -> list[int]:
    """The 256-colour PASCAL VOC palette as flat RGB values (bits of the index are spread over the
    channels)."""
    palette = []
    for index in range(256):
        red = green = blue = 0
        for bit in range(8):
            shift = 7 - bit
            triple = index >> (3 * bit)
            red |= (triple & 1) << shift
            green |= (triple >> 1 & 1) << shift
            blue |= (triple >> 2 & 1) << shift
        palette += [red, green, blue]
    return palette


_PALETTE = voc_palette()


def _save(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_COMPRESS_LEVEL, optimize=False)
    return buffer.getvalue()


def encode_rgb(image: NDArray[np.uint8]) -> bytes:
    """PNG of a uint8 ``(height, width, 3)`` array."""
    return _save(Image.fromarray(np.ascontiguousarray(image)))


def encode_grey(image: NDArray[np.uint8]) -> bytes:
    """PNG of a uint8 ``(height, width)`` array."""
    return _save(Image.fromarray(np.ascontiguousarray(image)))


def encode_labels(labels: NDArray[np.uint8]) -> bytes:
    """Palette PNG (VOC colours) of a uint8 ``(height, width)`` label map."""
    image = Image.fromarray(np.ascontiguousarray(labels))
    image.putpalette(_PALETTE)
    return _save(image)


def is_whole(data: bytes) -> bool:
    """Whether the chunks of a PNG lead to an end chunk; Pillow stops at the last pixel and would not miss the rest."""
    position = 8
    while position + 12 <= len(data):
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return False


def decode_exact(data: bytes, name: str, max_pixels: int = 2**26) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Values of a PNG exactly as stored: RGB, grey (8 or 16 bit) or palette *indices*.

    Args:
        data: the file's bytes.
        name: what to call it in errors.
        max_pixels: refused above this, before decoding.

    Returns:
        uint8 ``(height, width, 3)`` for RGB, uint8 or uint16 ``(height, width)`` otherwise.

    Raises:
        DataError: GF-DATA-132, not a PNG, damaged, too large or of another mode.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:  # another library may have switched Pillow's check off
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG",))
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(
                    "GF-DATA-132", f"{name} has {width} x {height} pixels, at most {max_pixels} are accepted"
                )
            if not is_whole(data):
                raise DataError("GF-DATA-132", f"{name} is truncated", "restore the file")
            image.load()
    except DataError:
        raise
    except Exception as error:  # Pillow raises SyntaxError, struct.error and others for damaged files
        raise DataError(
            "GF-DATA-132",
            f"{name} is not a readable PNG: {type(error).__name__}: {error}",
            "restore the file",
        ) from error
    if image.mode == "1":
        image = image.convert("L")
    if image.mode in ("RGB", "L", "P"):
        return np.array(image, dtype=np.uint8)
    if image.mode in ("I;16", "I;16B", "I"):
        wide = np.array(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise DataError("GF-DATA-132", f"{name} has values outside 0..65535")
        return wide.astype(np.uint16)
    raise DataError("GF-DATA-132", f"{name} is a PNG of mode {image.mode}; expected RGB, grey or palette")
