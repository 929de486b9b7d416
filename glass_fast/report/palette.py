"""Colours of the report: the PASCAL VOC palette, slot colours, one fixed colour per compared method."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from glass_fast.data import png

UNCERTAIN = 255
"""Label of pixels between the two thresholds (and of void pixels in VOC)."""

# The compared methods use the Okabe-Ito colours, which stay apart for colour-blind readers and in grey print.
_METHODS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "grid": ("grid", "#c3c9d3"),
        "random_slots": ("random slots", "#9aa4b2"),
        "kmeans": ("k-means", "#5f6b7a"),
        "unguided": ("unguided", "#d55e00"),
        "semantic": ("semantic", "#e69f00"),
        "glass": ("glass", "#0072b2"),
        "upper_bound": ("upper bound", "#009e73"),
    }
)
_EXTRA = ("#cc79a7", "#56b4e9", "#7a5195", "#8c6d31", "#3b7a57")


def method_order(names: set[str]) -> list[str]:
    """Known methods in the order baselines, unguided, guided, upper bound; unknown ones last, by name."""
    known = [name for name in _METHODS if name in names]
    return known + sorted(names - set(known))


def method_label(name: str) -> str:
    """The name that a reader sees (``random_slots`` -> ``random slots``)."""
    return _METHODS[name][0] if name in _METHODS else name.replace("_", " ")


def method_colour(name: str) -> str:
    """Hex colour of a method; unknown names get a stable one."""
    if name in _METHODS:
        return _METHODS[name][1]
    return _EXTRA[sum(name.encode("utf-8", "replace")) % len(_EXTRA)]


def voc_palette() -> NDArray[np.uint8]:
    """The 256-colour PASCAL VOC palette, uint8 (256, 3): the colours in which masks are stored."""
    return np.array(png.voc_palette(), dtype=np.uint8).reshape(256, 3)


def label_colour(label: int) -> str:
    """Hex colour of a label id in the VOC palette (the colour of the overlay and of the class chips)."""
    red, green, blue = voc_palette()[label % 256]
    return f"#{red:02x}{green:02x}{blue:02x}"


def slot_palette(background: int | None = None) -> NDArray[np.uint8]:
    """Colour of each slot index, uint8 (256, 3), as in the overlays of the discover stage; background light grey."""
    colours = np.roll(voc_palette(), -1, axis=0)
    if background is not None and 0 <= background < 256:
        colours[background] = (233, 236, 241)
    return colours


def heat_colours() -> NDArray[np.uint8]:
    """A perceptually ordered dark-to-light map for soft attention maps, uint8 (256, 3)."""
    stops = np.array(
        [
            [13, 8, 55],
            [72, 22, 120],
            [150, 38, 120],
            [218, 75, 80],
            [250, 140, 40],
            [252, 205, 75],
            [255, 252, 215],
        ],
        dtype=np.float64,
    )
    at = np.linspace(0, len(stops) - 1, 256)
    channels = [np.interp(at, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)
