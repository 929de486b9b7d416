"""Colours of the report: the PASCAL VOC palette, slot colours, one fixed colour per compared method."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

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

_SLOTS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#42d4f4",
    "#f032e6",
    "#bfef45",
    "#469990",
    "#9a6324",
    "#800000",
    "#808000",
    "#000075",
    "#ffe119",
    "#fabed4",
    "#dcbeff",
    "#aaffc3",
    "#ffd8b1",
    "#a9a9a9",
    "#fffac8",
)


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
    """The 256-colour PASCAL VOC palette.

    Returns:
        uint8 (256, 3); bit k of the label id goes to bit ``7 - k // 3`` of channel ``k % 3``.
    """
    palette = np.zeros((256, 3), dtype=np.uint8)
    for label in range(256):
        for bit in range(8):
            palette[label, bit % 3] |= ((label >> bit) & 1) << (7 - bit // 3)
    return palette


def label_colour(label: int) -> str:
    """Hex colour of a label id in the VOC palette (the colour of the overlay and of the class chips)."""
    red, green, blue = voc_palette()[label % 256]
    return f"#{red:02x}{green:02x}{blue:02x}"


def slot_palette(count: int) -> NDArray[np.uint8]:
    """``count`` slot colours, uint8 (count, 3); they repeat after the 20th."""
    rows = [_SLOTS[index % len(_SLOTS)] for index in range(count)]
    return np.array([[int(row[i : i + 2], 16) for i in (1, 3, 5)] for row in rows], dtype=np.uint8).reshape(
        -1, 3
    )


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
