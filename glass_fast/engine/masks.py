"""Soft slot masks at the token grid -> label map, objects and scores at the picture's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK_BYTES = 64 * 2**20


def _axis(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Neighbours of each output position and the weight of the upper one (half-pixel centres)."""
    position = (np.arange(target, dtype=np.float64) + 0.5) * (source / target) - 0.5
    position = position.clip(0, source - 1)
    lower = np.floor(position).astype(np.int64)
    upper = np.minimum(lower + 1, source - 1)
    return lower, upper, (position - lower).astype(np.float32)


def upsample_labels(
    masks: NDArray[np.float32], height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Bilinear upsampling and arg-max over slots, in strips of rows so that memory stays bounded.

    Args:
        masks: soft masks of one picture, ``(slots, rows, columns)``, at most 256 slots.
        height: of the picture in pixels.
        width: of the picture in pixels.

    Returns:
        uint8 ``(height, width)`` slot of each pixel, and float64 ``(slots,)``: the mean soft mask of each
        slot inside its own pixels (0 for a slot without any).
    """
    slots = masks.shape[0]
    top, bottom, down = _axis(masks.shape[1], height)
    left, right, across = _axis(masks.shape[2], width)
    labels = np.empty((height, width), dtype=np.uint8)
    totals = np.zeros(slots)
    counts = np.zeros(slots, dtype=np.int64)
    step = max(1, _CHUNK_BYTES // (4 * slots * width))
    for start in range(0, height, step):
        part = slice(start, min(start + step, height))
        weight = down[part, None]
        rows = masks[:, top[part]] * (1 - weight) + masks[:, bottom[part]] * weight
        values = rows[:, :, left] * (1 - across) + rows[:, :, right] * across
        winner = values.argmax(axis=0)
        labels[part] = winner
        flat = winner.ravel()
        counts += np.bincount(flat, minlength=slots)
        totals += np.bincount(flat, weights=values.max(axis=0).ravel(), minlength=slots)
    return labels, totals / np.maximum(counts, 1)


def border_slot(labels: NDArray[np.uint8]) -> tuple[int, float]:
    """The slot that holds most of the picture's border, and its share: the guess at the background.

    Background surrounds objects, so the slot behind the frame of the picture is the best guess that needs no
    labels. It is wrong for a picture that one object fills.
    """
    frame = np.concatenate([labels[0], labels[-1], labels[1:-1, 0], labels[1:-1, -1]])
    counts = np.bincount(frame)
    slot = int(counts.argmax())
    return slot, float(counts[slot] / frame.size)


@dataclass(frozen=True)
class DiscoveredObject:
    """One slot's segment in a picture.

    Attributes:
        slot: slot index, the segment's value in the label map.
        background: this slot is the guessed background.
        area: pixels.
        box: tight box ``(x, y, width, height)`` in pixels.
        score: mean soft mask inside the segment, in (0, 1].
        rle: COCO run-length encoding ``{"size": [height, width], "counts": text}``.
    """

    slot: int
    background: bool
    area: int
    box: tuple[int, int, int, int]
    score: float
    rle: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, one entry of ``objects`` in ``objects.jsonl``."""
        return {
            "slot": self.slot,
            "background": self.background,
            "area": self.area,
            "box": list(self.box),
            "score": round(self.score, 6),
            "rle": self.rle,
        }


@dataclass(frozen=True)
class Discovery:
    """What was found in one picture.

    Attributes:
        name: file path as given, or ``image-<number>``.
        objects: segments of at least the smallest area, largest first, the guessed background among them.
        label_map: uint8 ``(height, width)``, slot index of every pixel of the whole picture.
        soft_masks: float32 ``(slots, rows, columns)`` at the token grid; they sum to one over slots.
        background_slot: slot of the guessed background.
        border_share: share of the picture's border that this slot holds.
    """

    name: str
    objects: tuple[DiscoveredObject, ...]
    label_map: NDArray[np.uint8]
    soft_masks: NDArray[np.float32]
    background_slot: int
    border_share: float

    @property
    def foreground(self) -> tuple[DiscoveredObject, ...]:
        """The objects without the guessed background."""
        return tuple(item for item in self.objects if not item.background)

    def mask(self, slot: int) -> NDArray[np.bool_]:
        """Bool ``(height, width)`` mask of one slot."""
        return self.label_map == slot


def find_objects(
    name: str, masks: NDArray[np.float32], height: int, width: int, min_area: float
) -> Discovery:
    """Segments of one picture.

    Args:
        name: of the picture.
        masks: soft masks ``(slots, rows, columns)``.
        height: of the picture in pixels.
        width: of the picture in pixels.
        min_area: segments below this share of the picture are not listed (the label map keeps them).
    """
    from glass_fast.data import rle

    labels, scores = upsample_labels(masks, height, width)
    background, share = border_slot(labels)
    areas = np.bincount(labels.ravel(), minlength=masks.shape[0])
    found = []
    for slot in np.flatnonzero(areas >= max(1, min_area * labels.size)):
        mask = labels == slot
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        found.append(
            DiscoveredObject(
                slot=int(slot),
                background=int(slot) == background,
                area=int(areas[slot]),
                box=(
                    int(columns[0]),
                    int(rows[0]),
                    int(columns[-1] - columns[0] + 1),
                    int(rows[-1] - rows[0] + 1),
                ),
                score=float(scores[slot]),
                rle=rle.encode(mask),
            )
        )
    found.sort(key=lambda item: (-item.area, item.slot))
    return Discovery(name, tuple(found), labels, masks, background, share)
