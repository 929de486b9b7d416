"""The PartWorld renderer: index -> scene, a pure function of (split, seed, index).

A scene is a 64x64 picture of one to three objects on a textured background, with its caption and
class, instance and part masks. Training code sees image and caption only; masks are for evaluation
and for the upper bound.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from PIL import Image, ImageDraw

from glass_fast.errors import ConfigError
from glass_fast.partworld.shapes import CLASSES

SIZE = 64
_SCALE = 4
SPLITS = {"train": 0, "tuning": 1, "test": 2}
"""Disjoint random streams; recipes are chosen on ``tuning``, numbers are reported on ``test``."""

_NAMES = tuple(CLASSES)
_REPEAT = 0.12
_NUMBER_WORDS = {1: "a", 2: "two", 3: "three"}


@dataclass(frozen=True)
class Scene:
    """One rendered scene.

    Attributes:
        image: uint8 (64, 64, 3) RGB.
        caption: text naming every object, such as "a photo of two cars and a tree".
        classes: int32 (64, 64) class label (1-based), 0 = background.
        instances: int32 (64, 64) object number (1-based), 0 = background.
        parts: int32 (64, 64) part number, unique within the scene, 0 = background.
        labels: class label of object i + 1.
    """

    image: np.ndarray
    caption: str
    classes: np.ndarray
    instances: np.ndarray
    parts: np.ndarray
    labels: tuple[int, ...]


def plural(name: str) -> str:
    """English plural of a class name, as captions use it ("snowman" -> "snowmen")."""
    return name[:-3] + "men" if name.endswith("man") else name + "s"


def describe(names: Iterable[str]) -> str:
    """Noun phrase for objects in the order of first mention: "two cars and an umbrella"."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    phrases = []
    for name, count in counts.items():
        if count == 1:
            phrases.append(("an " if name[0] in "aeiou" else "a ") + name)
        else:
            phrases.append(f"{_NUMBER_WORDS[count]} {plural(name)}")
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(
        hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)
    )
    return round(red * 255), round(green * 255), round(blue * 255)


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Float (64, 64, 3) in [0, 255]: gradient, smooth noise, stripes or checks of two muted colours."""
    hue = rng.random()
    first = np.array(_rgb(hue, rng.uniform(0.10, 0.40), rng.uniform(0.45, 0.90)), float)
    second = np.array(
        _rgb(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.10, 0.40), rng.uniform(0.45, 0.90)), float
    )
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    kind = rng.integers(4)
    angle = rng.uniform(0, 2 * math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    if kind == 0:
        weight = (along - along.min()) / (along.max() - along.min())
    elif kind == 1:
        coarse = Image.fromarray(rng.random((5, 5)).astype(np.float32))
        weight = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).clip(0, 1)
    elif kind == 2:
        weight = 0.5 + 0.5 * np.sin(2 * math.pi * along * rng.uniform(2, 5) + rng.uniform(0, 6))
    else:
        cells = rng.uniform(3, 6)
        weight = ((np.floor(x * cells) + np.floor(y * cells)) % 2) * 0.6 + 0.2
    return first + (second - first) * weight[..., None]


def _background(rng: np.random.Generator) -> np.ndarray:
    """Float (64, 64, 3) in [0, 255]: one to three stretches of ground, each with a texture of its own.

    As in photos (sky, hill, meadow) the background is several regions that differ more than some objects do.
    """
    x = np.arange(SIZE) / SIZE
    y = x[:, None]
    picture = _texture(rng)
    for edge in {1: (), 2: (0.55,), 3: (0.36, 0.68)}[int(rng.choice([1, 2, 3], p=[0.2, 0.5, 0.3]))]:
        height = edge + rng.uniform(-0.12, 0.12) + rng.uniform(-0.25, 0.25) * (x - 0.5)
        for waves in (1, 2, 3):
            height = height + rng.normal(0, 0.05 / waves) * np.sin(2 * math.pi * (waves * x + rng.random()))
        picture = np.where((y > height)[..., None], _texture(rng), picture)
    return picture


def _layout(rng: np.random.Generator) -> list[tuple[int, float, float, float]]:
    """Objects of a scene as (class index, centre x, centre y, radius) in image units, far ones first."""
    count = int(rng.choice([1, 2, 3], p=[0.3, 0.42, 0.28]))
    picks = [int(i) for i in rng.permutation(len(_NAMES))[:count]]
    if count > 1 and rng.random() < _REPEAT * count / 2:
        picks[1] = picks[0]
    low, high = {1: (0.26, 0.38), 2: (0.21, 0.32), 3: (0.18, 0.26)}[count]
    placed: list[tuple[int, float, float, float]] = []
    spacing = 0.95
    while len(placed) < count:
        for _ in range(40):
            radius = rng.uniform(low, high)
            x, y = rng.uniform(radius * 0.9, 1 - radius * 0.9, size=2)
            if all(math.hypot(x - ox, y - oy) > spacing * (radius + other) for _, ox, oy, other in placed):
                placed.append((picks[len(placed)], float(x), float(y), float(radius)))
                break
        else:
            spacing *= 0.85
    return sorted(placed, key=lambda item: item[2] + item[3])


def render(split: str, index: int, seed: int = 0) -> Scene:
    """Scene ``index`` of a split.

    Args:
        split: train, tuning or test.
        index: scene number, 0 or more.
        seed: world seed; shipped models and committed numbers use 0.

    Raises:
        ConfigError: unknown split or negative index.
    """
    if split not in SPLITS:
        raise ConfigError(
            "GF-CONFIG-201", f"PartWorld split {split!r} is unknown; expected one of {', '.join(SPLITS)}"
        )
    if index < 0:
        raise ConfigError("GF-CONFIG-202", f"PartWorld scene index {index} is negative; expected 0 or more")
    rng = np.random.default_rng([seed, SPLITS[split], index])
    background = _background(rng).clip(0, 255).astype(np.uint8)
    large = SIZE * _SCALE
    canvas = Image.fromarray(background).resize((large, large), Image.Resampling.BILINEAR)
    part_map = Image.new("L", (large, large), 0)
    paint, mark = ImageDraw.Draw(canvas), ImageDraw.Draw(part_map)
    objects = _layout(rng)
    owner, part_class, part_id = [0], [0], 0
    for number, (class_index, cx, cy, radius) in enumerate(objects, start=1):
        angle = math.radians(rng.uniform(-14, 14))
        flip = -1.0 if rng.random() < 0.5 else 1.0
        stretch = rng.uniform(0.88, 1.14)
        hue_shift = rng.uniform(-0.035, 0.035)
        cos, sin = math.cos(angle), math.sin(angle)
        for part in CLASSES[_NAMES[class_index]]:
            hue, saturation, value = part.colour
            colour = _rgb(
                hue + hue_shift + rng.uniform(-0.012, 0.012),
                saturation * rng.uniform(0.85, 1.12),
                value * rng.uniform(0.86, 1.10),
            )
            part_id += 1
            owner.append(number)
            part_class.append(class_index + 1)
            for polygon in part.polygons:
                points = []
                for px, py in polygon:
                    sx, sy = px * flip * radius * stretch, py * radius / stretch
                    points.append(((cx + sx * cos - sy * sin) * large, (cy + sx * sin + sy * cos) * large))
                paint.polygon(points, fill=colour)
                mark.polygon(points, fill=part_id)
    small = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    image = (small + rng.normal(0, 3.0, small.shape)).clip(0, 255).astype(np.uint8)
    # Masks are picked at pixel centres of the supersampled map: a label is never an average.
    parts = np.asarray(part_map, dtype=np.int32)[_SCALE // 2 :: _SCALE, _SCALE // 2 :: _SCALE].copy()
    names = [_NAMES[item[0]] for item in objects]
    order = [names[i] for i in rng.permutation(len(names))]
    return Scene(
        image=image,
        caption="a photo of " + describe(sorted(order, key=order.index)),
        classes=np.asarray(part_class, dtype=np.int32)[parts],
        instances=np.asarray(owner, dtype=np.int32)[parts],
        parts=parts,
        labels=tuple(item[0] + 1 for item in objects),
    )


def _render_block(job: tuple[str, int, int, int]) -> tuple[np.ndarray, list[str]]:
    split, start, stop, seed = job
    scenes = [render(split, index, seed) for index in range(start, stop)]
    return np.stack([scene.image for scene in scenes]), [scene.caption for scene in scenes]


def render_pictures(split: str, count: int, seed: int = 0, workers: int = 1) -> tuple[np.ndarray, list[str]]:
    """Pictures and captions only: what training of the shipped models may see.

    Returns:
        uint8 (count, 64, 64, 3) and ``count`` captions.
    """
    jobs = [(split, start, min(start + 256, count), seed) for start in range(0, count, 256)]
    blocks: Iterator[tuple[np.ndarray, list[str]]]
    if workers <= 1:
        blocks = map(_render_block, jobs)
        images, captions = zip(*blocks, strict=True)
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
            images, captions = zip(*pool.map(_render_block, jobs), strict=True)
    return np.concatenate(images), [caption for block in captions for caption in block]
