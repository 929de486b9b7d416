"""Masks -> one label a token: the segments that semantic guidance matches slots to (method notes 5.2, 5.3).

Everything is cut to the centred square that the encoder sees, then brought to the token grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from glass_fast.errors import DataError

UNCERTAIN = 255


def centre_square(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Centred square of the last two axes."""
    height, width = array.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return array[..., top : top + side, left : left + side]


def labels_by_area(mask: NDArray[np.generic], grid: tuple[int, int]) -> NDArray[np.int32]:
    """Label that covers most of each cell of the grid; ties go to the lowest label.

    Args:
        mask: integer ``(height, width)``.
        grid: token rows and columns.

    Returns:
        int32 ``(rows, columns)``.
    """
    square = centre_square(mask)
    values = np.unique(square)
    planes = torch.from_numpy(np.stack([square == value for value in values])).float()[None]
    # area interpolation = share of the cell that the label covers
    shares = functional.interpolate(planes, size=grid, mode="area")[0]
    return values.astype(np.int32)[shares.argmax(0).numpy()]


def labels_from_maps(
    maps: NDArray[np.uint8],
    label_ids: Sequence[int],
    grid: tuple[int, int],
    threshold: float,
    uncertain_threshold: float,
    size: tuple[int, int] | None = None,
) -> NDArray[np.int32]:
    """Re-threshold stored soft maps at the token grid (rule of method notes 2.1, item 7).

    ``m = max_k``, ``a = argmax_k``; ``m >= threshold`` -> label of ``a``; ``m >= uncertain_threshold`` ->
    255; else 0. Maps are reduced by area means, or enlarged bicubically.

    Args:
        maps: uint8 ``(K, h, w)``, 255 = 1.0.
        label_ids: label of each map; 0: dropped, does not compete.
        grid: token rows and columns.
        threshold: from here on a token belongs to its best class.
        uncertain_threshold: from here to ``threshold`` it is uncertain.
        size: rows and columns of the image; needed when it is not square.

    Returns:
        int32 ``(rows, columns)``.

    Raises:
        DataError: not one label a map.
    """
    if maps.ndim != 3 or len(label_ids) != maps.shape[0]:
        raise DataError(
            "GF-TRAIN-001",
            f"soft maps of shape {maps.shape} with {len(label_ids)} labels; expected one label a map",
            "the sample was not written by `glass-fast synthesize`",
        )
    kept = [k for k, label in enumerate(label_ids) if label]
    if not kept:
        return np.zeros(grid, np.int32)
    soft = torch.from_numpy(np.ascontiguousarray(maps[kept])).float()[None] / 255.0
    if size is not None and size[0] != size[1]:
        soft = functional.interpolate(soft, size=size, mode="bicubic", align_corners=False)
        soft = torch.from_numpy(np.ascontiguousarray(centre_square(soft.numpy())))
    if soft.shape[2] >= grid[0] and soft.shape[3] >= grid[1]:
        soft = functional.interpolate(soft, size=grid, mode="area")
    else:
        soft = functional.interpolate(soft, size=grid, mode="bicubic", align_corners=False)
    best, which = soft[0].max(0)
    labels = np.asarray([label_ids[k] for k in kept], np.int32)[which.numpy()]
    # compare in steps of the stored byte, so that a map stored as 153 is 0.6 and not 0.59999999
    labels[best.numpy() < threshold - 1e-6] = UNCERTAIN
    labels[best.numpy() < uncertain_threshold - 1e-6] = 0
    return labels


def split_components(labels: NDArray[np.int32], min_tokens: int) -> NDArray[np.int32]:
    """Give every connected piece of a class its own label: the "components of M_gen" of method notes 5.1.

    Pieces are 8-connected, and uncertain tokens connect: parts of one object whose attention is weak in between
    (a roof and a door) stay together. Pieces smaller than ``min_tokens`` become uncertain.

    Args:
        labels: int32 ``(rows, columns)``: 0 background, 255 uncertain, else class label.
        min_tokens: size of the smallest piece that is kept.

    Returns:
        int32 ``(rows, columns)``: 0, 255, and 1, 2, ... for the pieces, by class label and position.
    """
    from scipy import ndimage

    uncertain = labels == UNCERTAIN
    pieces = np.where(uncertain, UNCERTAIN, 0).astype(np.int32)
    number = 0
    for value in np.unique(labels[(labels != 0) & ~uncertain]):
        inside = labels == value
        regions, _ = ndimage.label(inside | uncertain, structure=np.ones((3, 3)))
        for region in np.unique(regions[inside]):
            piece = inside & (regions == region)
            if piece.sum() < min_tokens:
                pieces[piece] = UNCERTAIN
                continue
            number += 2 if number + 1 == UNCERTAIN else 1
            pieces[piece] = number
    return pieces


def segment_table(
    labels: NDArray[np.int32], slots: int, background: bool
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Which labels of each image are segments: the ``slots`` largest, largest first, ties by lower label.

    Args:
        labels: int32 ``(images, tokens)``: 0 background, 255 or negative excluded.
        slots: number of slots, which limits the segments.
        background: whether background is a segment.

    Returns:
        ids ``(images, slots)`` (-1 beyond the count) and counts ``(images,)``.
    """
    ids = np.full((len(labels), slots), -1, np.int32)
    counts = np.zeros(len(labels), np.int64)
    for row, image in enumerate(labels):
        values, areas = np.unique(image, return_counts=True)
        keep = (values > 0 if not background else values >= 0) & (values != UNCERTAIN)
        values, areas = values[keep], areas[keep]
        order = np.lexsort((values, -areas))[:slots]
        counts[row] = len(order)
        ids[row, : len(order)] = values[order]
    return ids, counts
