"""Thumbnails as data URIs: pictures, mask overlays, slot maps, soft maps. Pillow and numpy only."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glass_fast.errors import DataError
from glass_fast.report.palette import UNCERTAIN, heat_colours, slot_palette, voc_palette

THUMBNAIL = 168
"""Longest side of a stored thumbnail in pixels."""
MAP_SIDE = 48
"""Longest side of a stored soft map in pixels."""
MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 2**20

_JPEG = {"quality": 86, "subsampling": 0, "optimize": True}


@dataclass(frozen=True)
class Picture:
    """One embedded picture: data URI, size in pixels and the text for readers who cannot see it."""

    uri: str
    width: int
    height: int
    alt: str


def picture(image: NDArray[np.uint8], alt: str, side: int = THUMBNAIL) -> Picture:
    """A colour picture, reduced so that its longest side is at most ``side`` pixels (never enlarged).

    Args:
        image: uint8 (H, W, 3).
        alt: description for screen readers.
        side: longest side in pixels.

    Returns:
        JPEG with full colour resolution as a data URI.
    """
    shown = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", **_JPEG)
    return _embed("image/jpeg", buffer.getvalue(), shown.size, alt)


def mask_overlay(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], alt: str, side: int = THUMBNAIL
) -> Picture:
    """The picture with its label mask: VOC colours, light outlines, hatched where uncertain (255).

    Args:
        image: uint8 (H, W, 3).
        mask: uint8 (H, W); 0 background, 255 uncertain.
        alt: description for screen readers.
        side: longest side in pixels.
    """
    small, labels = _reduce(image, mask, side)
    return picture(_blend(small, labels), alt, side)


def slot_map(slots: NDArray[np.uint8], background: int | None, alt: str, side: int = THUMBNAIL) -> Picture:
    """A map of slot indices in the colours of the overlays, as a palette PNG.

    Args:
        slots: uint8 (H, W); every value, 0 included, is one slot.
        background: slot that is taken for background and drawn light grey; None: none is known.
        alt: description for screen readers.
        side: longest side in pixels.
    """
    shown = Image.fromarray(np.ascontiguousarray(slots))
    shown.thumbnail((side, side), Image.Resampling.NEAREST)
    coloured = Image.frombytes("P", shown.size, shown.tobytes())
    coloured.putpalette(slot_palette(background).tobytes())
    buffer = io.BytesIO()
    coloured.save(buffer, "PNG", optimize=True)
    return _embed("image/png", buffer.getvalue(), shown.size, alt)


def slot_map_file(path: Path, background: int | None, alt: str, side: int = THUMBNAIL) -> Picture:
    """The same from a label map in the run folder.

    Raises:
        DataError: the file is no label map, damaged, or larger than the limits of this module.
    """
    from glass_fast.data.png import decode_exact

    if path.stat().st_size > MAX_BYTES:
        raise DataError("GF-DATA-195", f"{path.name} has more than {MAX_BYTES} bytes", "expected a label map")
    labels = decode_exact(path.read_bytes(), path.name, MAX_PIXELS)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise DataError(
            "GF-DATA-195", f"{path.name} is {labels.dtype} {labels.shape}", "expected an 8-bit label map"
        )
    return slot_map(labels.astype(np.uint8), background, alt, side)


def soft_map(values: NDArray[np.uint8], alt: str, side: int = MAP_SIDE) -> Picture:
    """A soft attention map, uint8 (h, w), in dark-to-light colours, as a palette PNG."""
    shown = Image.fromarray(np.ascontiguousarray(values)).convert("L")
    shown.thumbnail((side, side), Image.Resampling.BOX)
    coloured = Image.frombytes("P", shown.size, shown.tobytes())
    coloured.putpalette(heat_colours().tobytes())
    buffer = io.BytesIO()
    coloured.save(buffer, "PNG", optimize=True)
    return _embed("image/png", buffer.getvalue(), shown.size, alt)


def picture_file(path: Path, alt: str, side: int = THUMBNAIL) -> Picture:
    """A picture read from the run folder with the guarded decoder.

    Raises:
        DataError: the file is no picture, damaged, or larger than the limits of this module.
    """
    from glass_fast.data.images import decode_image

    return picture(decode_image(path, max_pixels=MAX_PIXELS, max_bytes=MAX_BYTES), alt, side)


def _embed(kind: str, data: bytes, size: tuple[int, int], alt: str) -> Picture:
    return Picture(f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}", size[0], size[1], alt)


def _reduce(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Both at thumbnail size: labels by nearest neighbour, small pictures doubled for a fine outline."""
    shown = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    scale = side / max(shown.size)
    if scale < 1:
        shown = shown.resize(
            (max(round(shown.width * scale), 1), max(round(shown.height * scale), 1)),
            Image.Resampling.LANCZOS,
        )
    elif scale >= 2:
        shown = shown.resize((shown.width * 2, shown.height * 2), Image.Resampling.BICUBIC)
    labels = Image.fromarray(np.ascontiguousarray(mask)).resize(shown.size, Image.Resampling.NEAREST)
    return np.asarray(shown, dtype=np.uint8), np.asarray(labels, dtype=np.uint8)


def _blend(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Background greyed, labels tinted at 50 %, one-pixel light outline between labels."""
    base = image.astype(np.float32)
    grey = base.mean(axis=2, keepdims=True)
    out = 0.55 * base + 0.25 * grey + 0.2 * 255.0
    inside = labels > 0
    tint = voc_palette()[labels].astype(np.float32)
    out[inside] = 0.5 * base[inside] + 0.5 * tint[inside]
    band = labels == UNCERTAIN
    rows, columns = np.indices(labels.shape)
    stripe = ((rows + columns) // 2) % 2 == 0
    out[band] = 0.7 * base[band] + 0.3 * 255.0
    out[band & stripe] = 245.0
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:, :] |= labels[1:, :] != labels[:-1, :]
    out[edge] = 0.2 * out[edge] + 0.8 * 255.0
    return np.clip(out, 0, 255).round().astype(np.uint8)
