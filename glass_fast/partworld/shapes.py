"""The object classes of PartWorld: each is a stack of parts that differ more than the objects do.

Coordinates lie in [-1, 1] with y pointing down; parts are painted in order. Colours are (hue, saturation,
value); class-typical palettes make text-to-object binding learnable in minutes, and colours that several
classes share keep colour alone from telling the class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Point = tuple[float, float]
Hsv = tuple[float, float, float]


@dataclass(frozen=True)
class Part:
    """One part: ``name``, base colour and the polygons that form it."""

    name: str
    colour: Hsv
    polygons: tuple[tuple[Point, ...], ...]


def _box(x0: float, y0: float, x1: float, y1: float) -> tuple[Point, ...]:
    return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _ellipse(
    cx: float, cy: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0
) -> tuple[Point, ...]:
    count = 28
    angles = [math.radians(start + (stop - start) * i / count) for i in range(count + 1)]
    return tuple((cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles)


def _ring(cx: float, cy: float, outer: float, inner: float, start: float, stop: float) -> tuple[Point, ...]:
    return _ellipse(cx, cy, outer, outer, start, stop) + tuple(
        reversed(_ellipse(cx, cy, inner, inner, start, stop))
    )


CLASSES: dict[str, tuple[Part, ...]] = {
    "car": (
        Part(
            "body",
            (0.00, 0.88, 0.80),
            (
                _box(-1.0, -0.10, 1.0, 0.45),
                ((-0.62, -0.10), (-0.38, -0.58), (0.36, -0.58), (0.66, -0.10)),
            ),
        ),
        Part(
            "window",
            (0.55, 0.35, 0.95),
            (
                ((-0.46, -0.10), (-0.30, -0.46), (-0.04, -0.46), (-0.04, -0.10)),
                ((0.06, -0.10), (0.06, -0.46), (0.28, -0.46), (0.48, -0.10)),
            ),
        ),
        Part(
            "wheel", (0.65, 0.20, 0.13), (_ellipse(-0.55, 0.45, 0.27, 0.27), _ellipse(0.55, 0.45, 0.27, 0.27))
        ),
    ),
    "boat": (
        Part("hull", (0.63, 0.85, 0.55), (((-1.0, 0.30), (1.0, 0.30), (0.66, 0.80), (-0.66, 0.80)),)),
        Part("mast", (0.07, 0.65, 0.35), (_box(-0.06, -0.95, 0.06, 0.30),)),
        Part(
            "sail",
            (0.14, 0.45, 0.98),
            (
                ((0.10, -0.90), (0.85, 0.20), (0.10, 0.20)),
                ((-0.10, -0.70), (-0.60, 0.20), (-0.10, 0.20)),
            ),
        ),
    ),
    "aeroplane": (
        Part(
            "wing",
            (0.08, 0.92, 0.97),
            (
                ((-0.15, 0.0), (0.30, 0.0), (-0.15, 0.85), (-0.42, 0.85)),
                ((-0.15, 0.0), (0.30, 0.0), (-0.15, -0.85), (-0.42, -0.85)),
            ),
        ),
        Part("fuselage", (0.58, 0.12, 0.82), (_ellipse(0.0, 0.0, 1.0, 0.21),)),
        Part("tail", (0.92, 0.70, 0.80), (((-0.62, 0.0), (-0.98, -0.48), (-0.98, 0.48)),)),
    ),
    "potted plant": (
        Part(
            "leaf",
            (0.30, 0.85, 0.72),
            (
                _ellipse(-0.42, -0.28, 0.36, 0.24),
                _ellipse(0.42, -0.28, 0.36, 0.24),
                _ellipse(0.0, -0.30, 0.22, 0.58),
            ),
        ),
        Part("bloom", (0.15, 0.95, 0.98), (_ellipse(0.0, -0.78, 0.22, 0.22),)),
        Part("pot", (0.04, 0.72, 0.66), (((-0.52, 0.15), (0.52, 0.15), (0.36, 0.92), (-0.36, 0.92)),)),
    ),
    "umbrella": (
        Part(
            "handle",
            (0.07, 0.60, 0.28),
            (_box(-0.055, -0.10, 0.055, 0.85), _ring(0.15, 0.80, 0.21, 0.10, 0, 180)),
        ),
        Part("canopy", (0.77, 0.72, 0.68), (_ellipse(0.0, 0.05, 1.0, 0.92, 180, 360),)),
        Part(
            "panel",
            (0.86, 0.45, 0.97),
            (
                ((0.0, -0.87), (0.33, 0.05), (-0.33, 0.05)),
                ((0.0, -0.87), (1.0, 0.05), (0.74, 0.05)),
                ((0.0, -0.87), (-1.0, 0.05), (-0.74, 0.05)),
            ),
        ),
    ),
    "cup": (
        Part("handle", (0.66, 0.75, 0.38), (_ring(0.58, 0.08, 0.42, 0.23, -90, 90),)),
        Part("body", (0.48, 0.82, 0.78), (((-0.66, -0.55), (0.62, -0.55), (0.50, 0.78), (-0.54, 0.78)),)),
        Part("drink", (0.07, 0.80, 0.34), (_ellipse(-0.02, -0.55, 0.64, 0.19),)),
    ),
    "house": (
        Part("wall", (0.11, 0.38, 0.93), (_box(-0.72, -0.10, 0.72, 0.88),)),
        Part("roof", (0.99, 0.72, 0.48), (((-0.98, -0.10), (0.0, -0.92), (0.98, -0.10)),)),
        Part("door", (0.36, 0.75, 0.42), (_box(-0.16, 0.28, 0.20, 0.88),)),
        Part("window", (0.55, 0.60, 0.92), (_box(-0.58, 0.12, -0.28, 0.42), _box(0.32, 0.12, 0.60, 0.42))),
    ),
    "tree": (
        Part("trunk", (0.07, 0.70, 0.38), (_box(-0.15, 0.20, 0.15, 0.95),)),
        Part(
            "crown",
            (0.37, 0.85, 0.40),
            (
                _ellipse(0.0, -0.35, 0.60, 0.60),
                _ellipse(-0.42, 0.02, 0.38, 0.34),
                _ellipse(0.42, 0.02, 0.38, 0.34),
            ),
        ),
    ),
    "snowman": (
        Part("body", (0.60, 0.05, 0.97), (_ellipse(0.0, 0.48, 0.52, 0.46), _ellipse(0.0, -0.18, 0.37, 0.34))),
        Part("hat", (0.70, 0.30, 0.14), (_box(-0.42, -0.54, 0.42, -0.42), _box(-0.25, -0.95, 0.25, -0.48))),
        Part("scarf", (0.33, 0.90, 0.70), (_box(-0.36, 0.02, 0.36, 0.17), _box(0.12, 0.10, 0.28, 0.45))),
        Part("nose", (0.07, 0.95, 0.98), (((-0.02, -0.26), (0.34, -0.18), (-0.02, -0.12)),)),
    ),
    "mushroom": (
        Part("stem", (0.13, 0.20, 0.95), (((-0.20, 0.0), (0.20, 0.0), (0.30, 0.90), (-0.30, 0.90)),)),
        Part("cap", (0.95, 0.88, 0.72), (_ellipse(0.0, 0.08, 0.95, 0.88, 180, 360),)),
        Part(
            "spot",
            (0.50, 0.06, 0.99),
            (
                _ellipse(-0.45, -0.22, 0.16, 0.14),
                _ellipse(0.10, -0.48, 0.18, 0.15),
                _ellipse(0.52, -0.16, 0.14, 0.12),
            ),
        ),
    ),
}
"""Class name -> parts. Names and order equal the label set ``partworld`` (label id = position + 1)."""
