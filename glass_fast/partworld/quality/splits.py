"""Part-whole failure on label maps: objects cut into parts, segments that hold several objects.

Definitions, for an object of at least ``MIN_OBJECT`` visible pixels:

* **split**: two or more segments hold at least ``PIECE`` (20 %) of its pixels each (asked of objects with two or
  more parts);
* **whole**: one segment holds at least ``WHOLE`` (80 %) of its pixels;
* **agreement with parts**: adjusted Rand index (Hubert & Arabie 1985) and normalised mutual information between
  segments and true parts over the object's pixels. Any two cuts of a compact object agree a little, so chance is
  measured by straight cuts: the object's pixels are cut across 16 directions into pieces of exactly the sizes that
  its segments have. A split object is **split along parts** when its index is above the mean of its straight cuts,
  and **clearly** so when it is above every one of them.

A segment **covers** an object when it holds at least half of its pixels; it is **merged** when it covers two or more.
An object is **lost** when the segment that covers it lies mostly (more than half) on background.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glass_fast.errors import DataError
from glass_fast.metrics.objects import adjusted_rand_index
from glass_fast.partworld.quality.shares import share

MIN_OBJECT = 40
MIN_PART = 4
"""Visible pixels of a part that counts when parts are counted."""
PIECE = 0.20
WHOLE = 0.80
COVER = 0.50
DIRECTIONS = 16


def part_whole(
    segments: NDArray[np.integer], instances: NDArray[np.integer], parts: NDArray[np.integer]
) -> dict[str, Any]:
    """Split, whole, merged and lost objects of predicted segments.

    Args:
        segments: (N, H, W), segment of each pixel, 0 or more.
        instances: (N, H, W), true object of each pixel, 0 = background.
        parts: (N, H, W), true part of each pixel, 0 = background; a number belongs to one object of its scene.

    Returns:
        Shares with counts and intervals (``split``, ``split_along_parts``, ``split_clearly_along_parts``, ``whole``,
        ``merged``, ``shared``, ``lost``), and means over split objects (``rand_index``, ``chance_rand_index``,
        ``mutual_information``, ``pieces``). ``split_along_parts`` is a share of all objects with parts; divide its
        count by that of ``split`` for the share among split ones.

    Raises:
        DataError: GF-QUAL-202, shapes differ.
    """
    segments, instances, parts = (np.asarray(a).astype(np.int64) for a in (segments, instances, parts))
    if segments.ndim != 3 or not segments.shape == instances.shape == parts.shape:
        raise DataError(
            "GF-QUAL-202",
            f"segments {segments.shape}, instances {instances.shape}, parts {parts.shape}; expected three equal "
            "(images, height, width)",
        )
    table, pixels = _object_table(segments, instances, parts)
    areas = table.sum(axis=(1, 2))
    large = areas >= MIN_OBJECT
    jointed = large & ((table.sum(axis=1) >= MIN_PART).sum(axis=1) >= 2)
    held = table.sum(axis=2) / np.maximum(areas, 1)[:, None]
    pieces = (held >= PIECE).sum(axis=1)
    split = jointed & (pieces >= 2)
    index = adjusted_rand_index(table)
    chance = straight_cuts(table, pixels)
    along = split & (index > chance.mean(axis=0))
    clearly = split & (index > chance.max(axis=0))

    def mean(values: NDArray[np.float64]) -> float | None:
        return round(float(values[split].mean()), 4) if split.any() else None

    count = int(jointed.sum())
    return {
        "images": len(segments),
        "objects": int(large.sum()),
        "objects_with_parts": count,
        "split": share(int(split.sum()), count),
        "split_along_parts": share(int(along.sum()), count),
        "split_clearly_along_parts": share(int(clearly.sum()), count),
        "whole": share(int((jointed & (held.max(axis=1, initial=0) >= WHOLE)).sum()), count),
        "rand_index": mean(index),
        "chance_rand_index": mean(chance.mean(axis=0)),
        "mutual_information": mean(normalised_mutual_information(table)),
        "pieces": mean(pieces.astype(np.float64)),
        **_covering(segments, instances),
    }


Pixels = tuple[
    NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]
]
"""Foreground pixels: object, segment, part, row, column; each (M,)."""


def _object_table(
    segments: NDArray[np.int64], instances: NDArray[np.int64], parts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Pixels]:
    """Pixels of every (object, segment, part), int64 (O, S, P), objects in the order of image and number."""
    image, row, column = np.nonzero(instances)
    numbers = instances[image, row, column]
    _, objects = np.unique(image * (instances.max(initial=0) + 1) + numbers, return_inverse=True)
    count = int(objects.max(initial=-1)) + 1
    s, p = int(segments.max(initial=0)) + 1, int(parts.max(initial=0)) + 1
    segment, part = segments[image, row, column], parts[image, row, column]
    flat = np.bincount((objects * s + segment) * p + part, minlength=count * s * p)
    pixels = (objects, segment, part, row.astype(np.float64), column.astype(np.float64))
    return flat.reshape(count, s, p), pixels


def straight_cuts(
    table: NDArray[np.int64], pixels: Pixels, directions: int = DIRECTIONS
) -> NDArray[np.float64]:
    """Rand index with the parts of straight cuts into pieces of the segments' sizes, float64 (directions, O).

    For a direction the pixels of an object are ordered along it and dealt out to its segments, the segment that lies
    first receiving the first pixels.

    Args:
        table: (O, S, P) from the object's pixels.
        pixels: those pixels.
        directions: evenly spread over half a turn.
    """
    objects, segment, part, row, column = pixels
    count, s, p = table.shape
    sizes = table.sum(axis=2)
    starts = np.concatenate([[0], np.cumsum(sizes.sum(axis=1))])[:-1]
    result = np.zeros((directions, count))
    for number in range(directions):
        angle = np.pi * number / directions
        along = column * np.cos(angle) + row * np.sin(angle)
        total = np.bincount(objects * s + segment, weights=along, minlength=count * s).reshape(count, s)
        centre = np.where(sizes > 0, total / np.maximum(sizes, 1), np.inf)
        ends = np.take_along_axis(sizes, centre.argsort(axis=1, kind="stable"), axis=1).cumsum(axis=1)
        order = np.lexsort((along, objects))
        place = np.empty(len(objects), np.int64)
        place[order] = np.arange(len(objects)) - starts[objects[order]]
        piece = (place[:, None] >= ends[objects]).sum(axis=1)
        flat = np.bincount((objects * s + piece) * p + part, minlength=count * s * p)
        result[number] = adjusted_rand_index(flat.reshape(count, s, p))
    return result


def normalised_mutual_information(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mutual information of segments and parts over the mean of their entropies, per object; 0 where both are 0.

    Args:
        table: (O, S, P) pixel counts.
    """
    joint = table / np.maximum(table.sum(axis=(1, 2), keepdims=True), 1)
    first, second = joint.sum(axis=2), joint.sum(axis=1)

    def entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
        return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1)

    one, two = entropy(first), entropy(second)
    both = entropy(joint.reshape(len(joint), joint.shape[1] * joint.shape[2]))
    mean = (one + two) / 2
    shared: NDArray[np.float64] = np.where(mean > 0, (one + two - both) / np.where(mean > 0, mean, 1.0), 0.0)
    return shared


def _covering(segments: NDArray[np.int64], instances: NDArray[np.int64]) -> dict[str, Any]:
    """Which segments cover several objects, and which objects lie in a segment of background."""
    count, s, k = len(segments), int(segments.max(initial=0)) + 1, int(instances.max(initial=0)) + 1
    image = np.arange(count).reshape(-1, 1, 1)
    flat = np.bincount(((image * s + segments) * k + instances).ravel(), minlength=count * s * k)
    joint = flat.reshape(count, s, k)
    background, objects = joint[:, :, 0], joint[:, :, 1:]
    areas = objects.sum(axis=1)
    large = areas >= MIN_OBJECT
    covers = (objects >= COVER * np.maximum(areas, 1)[:, None]) & large[:, None]
    covered = covers.sum(axis=2)
    on_background = background > 0.5 * joint.sum(axis=2)
    several = large.sum(axis=1) >= 2
    neighbours = (covers & (covered >= 2)[:, :, None]).any(axis=1) & several[:, None]
    lost = (covers & on_background[:, :, None]).any(axis=1)
    return {
        "merged": share(int((covered >= 2).sum()), int((covered >= 1).sum())),
        "shared": share(int((neighbours & large).sum()), int((large & several[:, None]).sum())),
        "lost": share(int((lost & large).sum()), int(large.sum())),
    }
