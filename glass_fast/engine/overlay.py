"""Overlay pictures: segments tinted and outlined over the photo."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from glass_fast.data.png import voc_palette

MAX_SIDE = 1024
_TINT = 0.5


def shrink(image: NDArray[np.uint8], max_side: int = MAX_SIDE) -> NDArray[np.uint8]:
    """The picture with its longer side at most ``max_side`` pixels (never enlarged)."""
    from PIL import Image

    height, width = image.shape[:2]
    factor = max_side / max(height, width)
    if factor >= 1:
        return np.array(image, copy=True)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))


def slot_colours(count: int) -> NDArray[np.uint8]:
    """Colours ``(count, 3)`` of slots: the VOC palette without its black first entry."""
    return np.array(voc_palette(), dtype=np.uint8).reshape(-1, 3)[1 : count + 1]


def outlines(labels: NDArray[np.uint8], thickness: int = 1) -> NDArray[np.bool_]:
    """Pixels beside a pixel of another label, ``thickness`` pixels to each side."""
    edge = np.zeros(labels.shape, dtype=bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    for _ in range(thickness - 1):
        wide = edge.copy()
        wide[1:] |= edge[:-1]
        wide[:-1] |= edge[1:]
        wide[:, 1:] |= edge[:, :-1]
        wide[:, :-1] |= edge[:, 1:]
        edge = wide
    return edge


def draw_overlay(image: NDArray[np.uint8], labels: NDArray[np.uint8], background: int) -> NDArray[np.uint8]:
    """Photo with tinted segments and white outlines; the guessed background keeps its colours.

    Args:
        image: uint8 ``(height, width, 3)``.
        labels: slot of each pixel, ``(height, width)``.
        background: slot that is not tinted.
    """
    colours = slot_colours(int(labels.max()) + 1).astype(np.float32)
    picture = image.astype(np.float32)
    inside = labels != background
    picture[inside] = (1 - _TINT) * picture[inside] + _TINT * colours[labels[inside]]
    thickness = 1 + max(labels.shape) // 700
    picture[outlines(labels, thickness)] = 255
    return picture.round().astype(np.uint8)


def encode_jpeg(image: NDArray[np.uint8], quality: int = 90) -> bytes:
    """JPEG bytes of a uint8 ``(height, width, 3)`` picture."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
