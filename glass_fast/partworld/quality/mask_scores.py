"""Scores of label masks against the truth, at one threshold and at many.

Class mIoU: mean over the classes present of the IoU of the class mask, then over pictures. Attribution: share of the
pixels of pictures with two or more classes on which mask and truth both see an object and agree on the class.
Uncertain pixels count as background.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from glass_fast.partworld.quality.judge import NUM_CLASSES

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7)


def best_classes(
    soft: Tensor, labels: Tensor, size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Greatest soft value of each pixel and the label of its map: a mask of any threshold follows from these.

    Args:
        soft: (B, K, h, w) uint8 stored maps.
        labels: (B, K) label of each map, 0 = does not compete.
        size: rows and columns of the masks.

    Returns:
        float32 and uint8 (B, H, W).
    """
    values = soft.to(torch.float32) / 255.0
    if tuple(values.shape[2:]) != size:
        values = F.interpolate(values, size=size, mode="bicubic", align_corners=False)
    values = values.masked_fill((labels == 0)[:, :, None, None], -1.0)
    best, which = values.max(dim=1)
    label = labels.gather(1, which.flatten(1)).view_as(which)
    return best.numpy(), label.to(torch.uint8).numpy()


@dataclass
class Scores:
    """Scores of pictures, one entry a picture; NaN where a picture has no such score."""

    classes: list[NDArray[np.float64]] = field(default_factory=list)
    background: list[NDArray[np.float64]] = field(default_factory=list)
    right: float = 0.0
    both: float = 0.0

    def add(
        self,
        found: NDArray[np.uint8],
        truth: NDArray[np.uint8],
        present: NDArray[np.bool_],
        known: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count pictures.

        Args:
            found: (B, H, W) labels, 0 background.
            truth: (B, H, W) labels.
            present: (B, 11): the classes that are scored.
            known: (B, H, W): pixels that count; default all.
        """
        labels, count = NUM_CLASSES + 1, len(found)
        cells = (np.arange(count).reshape(-1, 1, 1) * labels + truth) * labels + found
        if known is not None:
            cells = np.where(known, cells, count * labels * labels)
        joint = np.bincount(cells.ravel(), minlength=count * labels * labels + 1)[:-1]
        joint = joint.reshape(count, labels, labels)
        inside = np.einsum("nii->ni", joint)
        union = joint.sum(axis=1) + joint.sum(axis=2) - inside
        iou = inside / np.maximum(union, 1)
        present = present.copy()
        present[:, 0] = False
        number = present.sum(axis=1)
        mean = np.where(number > 0, (iou * present).sum(axis=1) / np.maximum(number, 1), np.nan)
        self.classes.append(mean)
        self.background.append(np.where(union[:, 0] > 0, iou[:, 0], np.nan))
        several = number > 1
        self.right += float(inside[several, 1:].sum())
        self.both += float(joint[several][:, 1:, 1:].sum())

    def mean(self) -> float:
        """Class mIoU."""
        return float(np.nanmean(np.concatenate(self.classes)))

    def row(self) -> dict[str, Any]:
        """The scores as columns of the table."""
        classes = np.concatenate(self.classes)
        count = int(np.isfinite(classes).sum())
        return {
            "pictures": count,
            "class_miou": round(self.mean(), 4),
            "standard_error": round(float(np.nanstd(classes) / np.sqrt(count)), 4),
            "background_iou": round(float(np.nanmean(np.concatenate(self.background))), 4),
            "attribution": round(self.right / max(self.both, 1.0), 4),
        }


@dataclass
class Curve:
    """Scores of one setting at its own threshold and at :data:`THRESHOLDS`."""

    threshold: float
    by: dict[float, Scores] = field(default_factory=dict)

    def add(
        self,
        soft: Tensor,
        labels: Tensor,
        truth: NDArray[np.uint8],
        present: NDArray[np.bool_],
        known: Any = None,
    ) -> None:
        best, label = best_classes(soft, labels, (truth.shape[1], truth.shape[2]))
        for threshold in dict.fromkeys((self.threshold, *THRESHOLDS)):
            found = np.where(best >= np.float32(threshold), label, 0).astype(np.uint8)
            self.by.setdefault(threshold, Scores()).add(found, truth, present, known)

    def row(self) -> dict[str, Any]:
        best = max(THRESHOLDS, key=lambda threshold: self.by[threshold].mean())
        extra = {"best_threshold": best, "best_class_miou": round(self.by[best].mean(), 4)}
        return {**self.by[self.threshold].row(), **extra}
