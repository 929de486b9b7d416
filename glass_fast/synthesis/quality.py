"""Flags and scores of a synthetic sample. Flagged samples are kept and counted, never dropped in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glass_fast.config.schema import QualityConfig
from glass_fast.synthesis.masks import UNCERTAIN

FLAGS = ("black", "empty", "class_missing", "nonfinite")


@dataclass(frozen=True)
class Assessment:
    """Flags and scores of one sample.

    Attributes:
        flags: raised flags in the order of :data:`FLAGS`.
        scores: ``image_std`` (grey levels), ``foreground`` and ``uncertain`` (shares of the mask), ``confidence``
            (mean soft value over the classes that won cells).
        areas: share of the mask of each prompted class.
        confidences: mean soft value of the cells that each class won; 0 where it won none.
    """

    flags: tuple[str, ...]
    scores: dict[str, float]
    areas: tuple[float, ...]
    confidences: tuple[float, ...]


def assess(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    maps: NDArray[np.uint8],
    label_ids: Sequence[int],
    prompted: Sequence[int],
    threshold: float,
    finite: bool,
    config: QualityConfig,
) -> Assessment:
    """Judge one sample.

    Args:
        image: (H, W, 3).
        mask: (H, W), 255 = uncertain.
        maps: (K, h, w) soft maps.
        label_ids: label id of each map, 0 where the absence guard dropped the class.
        prompted: label id that each class has in the label set.
        threshold: threshold that made the mask.
        finite: False when latents, maps or image were not finite even in float32.
        config: limits.
    """
    deviation = float(image.reshape(-1, image.shape[-1]).std(axis=0, dtype=np.float64).max())
    counts = np.bincount(mask.ravel(), minlength=256)
    shares = counts / mask.size
    areas = [float(shares[label]) for label in prompted]
    foreground = float(shares[1:UNCERTAIN].sum())
    confidences = _confidences(maps, label_ids, threshold)
    found = [value for value in confidences if value > 0]
    raised = {
        "black": deviation < config.black_level,
        "empty": foreground == 0.0,
        "class_missing": any(area < config.min_area or area == 0.0 for area in areas),
        "nonfinite": not finite,
    }
    scores = {
        "image_std": round(deviation, 4),
        "foreground": round(foreground, 6),
        "uncertain": round(float(shares[UNCERTAIN]), 6),
        "confidence": round(float(np.mean(found)), 6) if found else 0.0,
    }
    return Assessment(
        tuple(flag for flag in FLAGS if raised[flag]),
        scores,
        tuple(round(area, 6) for area in areas),
        tuple(round(value, 6) for value in confidences),
    )


def _confidences(maps: NDArray[np.uint8], label_ids: Sequence[int], threshold: float) -> list[float]:
    """Mean soft value of the cells that each map wins at or above the threshold; 0 where it wins none."""
    if not len(label_ids):
        return []
    soft = maps.astype(np.float64) / 255.0
    soft[[index for index, label in enumerate(label_ids) if label == 0]] = -1.0
    best = soft.argmax(axis=0)
    values = []
    for index in range(len(label_ids)):
        won = soft[index][(best == index) & (soft[index] >= threshold)]
        values.append(float(won.mean()) if won.size else 0.0)
    return values


def is_rejected(flags: Sequence[str], config: QualityConfig) -> bool:
    """Whether training skips a sample with these flags; a non-finite one is always skipped."""
    return "nonfinite" in flags or any(flag in config.reject for flag in flags)
