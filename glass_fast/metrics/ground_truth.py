"""Ground-truth label maps of one picture under one protocol: overlaps, crowds, void, crop, renumbering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glass_fast.errors import DataError
from glass_fast.metrics.protocols import Protocol


@dataclass(frozen=True)
class GroundTruth:
    """Label maps at the protocol's resolution.

    Attributes:
        instances: int32 ``(resolution, resolution)``, 0 = background, 1.. = instance segments without gaps.
        classes: int32, same shape, 0 = background, 1.. = class segments without gaps.
        valid: bool, same shape; False where the protocol ignores the pixel.
        instance_classes: class label of each instance segment; index 0 belongs to the background segment and
            is 0 unless renumbering made an object the background.
        class_labels: class label of each class segment, likewise.
    """

    instances: NDArray[np.int32]
    classes: NDArray[np.int32]
    valid: NDArray[np.bool_]
    instance_classes: NDArray[np.int32]
    class_labels: NDArray[np.int32]


def resize_indices(source: int, scaled: int, rule: str) -> NDArray[np.int64]:
    """Source index that each of ``scaled`` nearest-neighbour samples reads from ``source`` pixels.

    Where a position falls on a pixel border, rounding decides; so the two rules are evaluated in the order of
    operations of the libraries they name: Pillow adds the step again and again, OpenCV multiplies by the
    reciprocal of the scale.
    """
    if rule == "centre":
        steps = np.full(scaled, source / scaled)
        steps[0] *= 0.5
        positions = np.add.accumulate(steps)
    else:
        positions = np.arange(scaled) * (1.0 / (scaled / source))
    return np.minimum(np.floor(positions).astype(np.int64), source - 1)


def crop_indices(height: int, width: int, protocol: Protocol) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the original picture that make the protocol's square (resize and crop in one step).

    Returns:
        Two int64 arrays of length ``protocol.resolution``.
    """
    side = protocol.resolution
    short, long = min(height, width), max(height, width)
    # The two expressions round differently in floating point; each is the one its script evaluates.
    rounded = round(long * (side / short)) if protocol.long_side == "round" else int(side * long / short)
    long_side = max(side, rounded)
    margin = long_side - side
    offset = margin // 2 if protocol.crop_offset == "floor" else round(margin / 2)
    short_index = resize_indices(short, side, protocol.mask_sampling)
    long_index = resize_indices(long, long_side, protocol.mask_sampling)[offset : offset + side]
    return (short_index, long_index) if height <= width else (long_index, short_index)


def _paint(
    annotations: Sequence[Any], shape: tuple[int, int], protocol: Protocol
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_], NDArray[np.int32]]:
    """Annotations -> instances, classes, overlaps, class of each instance id; at original resolution."""
    instances = np.zeros(shape, dtype=np.int32)
    classes = np.zeros(shape, dtype=np.int32)
    cover = np.zeros(shape, dtype=np.int32)
    categories = np.zeros(len(annotations) + 1, dtype=np.int32)
    for number, annotation in enumerate(annotations, start=1):
        # the GLASS script skips crowd and `ignore` annotations alike, SPOT's looks at neither flag
        if protocol.crowd == "background" and (annotation.crowd or getattr(annotation, "ignore", False)):
            continue
        mask = np.asarray(annotation.mask, dtype=bool)
        if mask.shape != shape:
            raise DataError(
                "GF-EVAL-012",
                f"annotation {number} has a mask of shape {mask.shape}, its picture has {shape}",
            )
        cover += mask
        free = mask if protocol.overwrite == "last" else mask & (instances == 0)
        instances[free] = number
        classes[free] = annotation.category
        categories[number] = annotation.category
    return instances, classes, cover > 1, categories


def _compact(labels: NDArray[np.int32], renumber: bool) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Gap-free labels in sorted order, and the original label of each.

    With ``renumber`` the lowest label present becomes 0 even when it is an object (the released script's
    behaviour); without it 0 stays reserved for the background.
    """
    seen = np.bincount(labels.ravel(), minlength=1) > 0
    seen[0] |= not renumber
    table = (np.cumsum(seen) - 1).astype(np.int32)
    return table[labels], np.flatnonzero(seen).astype(np.int32)


def _ready_maps(
    record: Any, shape: tuple[int, int]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_], NDArray[np.int32]]:
    """The record's own label maps (last annotation on top, crowds not drawn), void pixels cleared."""
    instances = np.array(record.instances, dtype=np.int32)
    classes = np.array(record.classes, dtype=np.int32)
    if instances.shape != shape or classes.shape != shape:
        raise DataError(
            "GF-EVAL-012",
            f"record {record.id!r}: label maps have shapes {instances.shape} and {classes.shape}, "
            f"its picture has {shape}",
        )
    void = _flag(record, "ignore", shape)
    instances[void] = 0
    classes[void] = 0
    return instances, classes, _flag(record, "overlap", shape), _classes_of(instances, classes)


def build_ground_truth(record: Any, protocol: Protocol) -> GroundTruth:
    """Label maps of a data-set record under ``protocol``.

    Args:
        record: :class:`glass_fast.data.datasets.Record`. Its ready label maps follow the rules "last
            annotation on top, crowds not drawn"; other rules are painted anew from its annotations. A
            record without annotations is taken by its label maps.
        protocol: the rules.

    Raises:
        DataError: a mask has another size than the picture.
    """
    shape = (int(record.image.shape[0]), int(record.image.shape[1]))
    ready = protocol.overwrite == "last" and protocol.crowd == "background"
    if ready or not record.annotations:
        instances, classes, overlap, categories = _ready_maps(record, shape)
    else:
        instances, classes, overlap, categories = _paint(record.annotations, shape, protocol)
    ignored = np.zeros(shape, dtype=bool)
    if protocol.overlaps == "ignored":
        ignored |= overlap
    if protocol.void == "ignored":
        ignored |= _flag(record, "ignore", shape)
    # renumber what is seen at its own resolution, then repeat pixels: small pictures are enlarged a lot
    rows, columns = crop_indices(shape[0], shape[1], protocol)
    (own_rows, repeat_rows), (own_columns, repeat_columns) = (
        np.unique(index, return_inverse=True) for index in (rows, columns)
    )
    pick, spread = np.ix_(own_rows, own_columns), np.ix_(repeat_rows, repeat_columns)
    instance_map, instance_ids = _compact(instances[pick], protocol.renumber)
    class_map, class_labels = _compact(classes[pick], protocol.renumber)
    return GroundTruth(
        instances=instance_map[spread],
        classes=class_map[spread],
        valid=~ignored[pick][spread],
        instance_classes=categories[instance_ids],
        class_labels=class_labels,
    )


def _flag(record: Any, name: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    value = getattr(record, name, None)
    return np.zeros(shape, dtype=bool) if value is None else np.asarray(value, dtype=bool)


def _classes_of(instances: NDArray[np.int32], classes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Class of each instance id by majority of its pixels (ids are table indices; 0 -> 0)."""
    highest = int(instances.max(initial=0))
    width = int(classes.max(initial=0)) + 1
    counts = np.bincount(
        (instances.astype(np.int64) * width + classes).ravel(), minlength=(highest + 1) * width
    )
    table = counts.reshape(highest + 1, width).argmax(axis=1).astype(np.int32)
    table[0] = 0
    return table
