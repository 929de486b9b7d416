"""Object metrics of slot models, all derived from one joint label histogram per image.

The histogram ``n[s, k]`` counts the pixels that slot ``s`` and ground-truth segment ``k`` share. Its entries
are the intersections, its row and column sums the areas, and unions follow; no mask is compared twice. All of
it is exact integer counting followed by float64 arithmetic.

Definitions (released GLASS evaluation script and the object-centric-learning framework it builds on):

* a segment is a ground-truth label with at least one valid pixel; label 0 is the background;
* **mIoU**: one-to-one matching of slots and segments that maximises the sum of IoU; an unmatched segment
  counts 0; mean over the segments of an image;
* **mBO**: best IoU of each segment over all slots (a slot may serve several segments); mean over segments;
* **object recovery**: share of segments whose best IoU exceeds 0.5;
* **CorLoc**: 1 when the image has such a segment, else 0;
* **ARI**: adjusted Rand index over all valid pixels; **FG-ARI**: over pixels whose label is not 0.
  A degenerate index (denominator not positive, for instance no pixel at all) is 1 by definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from glass_fast.errors import DataError

RECOVERY_THRESHOLD = 0.5
"""A segment is recovered when its best IoU is strictly larger than this."""


def joint_histogram(
    prediction: NDArray[np.integer],
    target: NDArray[np.integer],
    num_slots: int,
    num_segments: int,
    valid: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Count the pixels of every (slot, segment) pair of every image.

    Args:
        prediction: slot index of each pixel, ``(batch, height, width)``, in ``[0, num_slots)``.
        target: segment index of each pixel, same shape, in ``[0, num_segments)``.
        num_slots: number of slots S.
        num_segments: number of segment labels K (the largest of the batch; absent labels count nothing).
        valid: pixels that count, same shape; None: all of them. Labels of other pixels are not looked at.

    Returns:
        int64 ``(batch, num_slots, num_segments)``.

    Raises:
        DataError: shapes differ, or a counted label lies outside its range.
    """
    prediction, target = np.asarray(prediction), np.asarray(target)
    if prediction.ndim != 3 or prediction.shape != target.shape:
        raise DataError(
            "GF-EVAL-010",
            f"prediction has shape {prediction.shape}, target {target.shape}; "
            "expected two equal (batch, height, width)",
            "resize both to the protocol's resolution first",
        )
    if valid is not None and np.shape(valid) != target.shape:
        raise DataError("GF-EVAL-010", f"valid has shape {np.shape(valid)}, expected {target.shape}")
    batch = prediction.shape[0]
    images = np.broadcast_to(np.arange(batch).reshape(-1, 1, 1), target.shape)
    if valid is not None:
        images, prediction, target = images[valid], prediction[valid], target[valid]
    for name, labels, count in (("prediction", prediction, num_slots), ("target", target, num_segments)):
        if labels.size and (labels.min() < 0 or labels.max() >= count):
            raise DataError(
                "GF-EVAL-011", f"{name} holds labels {labels.min()}..{labels.max()}, expected 0..{count - 1}"
            )
    flat = (images.astype(np.int64) * num_slots + prediction) * num_segments + target
    counts = np.bincount(flat.ravel(), minlength=batch * num_slots * num_segments)
    return counts.astype(np.int64, copy=False).reshape(batch, num_slots, num_segments)


def pairwise_iou(histogram: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union of every slot with every segment; 0 where both are empty.

    Args:
        histogram: ``(batch, slots, segments)`` from :func:`joint_histogram`. It must hold all segments,
            background included, because slot areas are its row sums.

    Returns:
        float64 ``(batch, slots, segments)``.
    """
    slot_area = histogram.sum(axis=2, keepdims=True)
    segment_area = histogram.sum(axis=1, keepdims=True)
    union = slot_area + segment_area - histogram
    return histogram / np.maximum(union, 1)


def hungarian_iou(iou: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU of each segment with the slot it is matched to by the assignment of largest total IoU.

    Args:
        iou: ``(batch, slots, segments)``.
        present: segments that take part, ``(batch, segments)``.

    Returns:
        float64 ``(batch, segments)``; 0 for absent segments and for those left without a slot.
    """
    matched = np.zeros(present.shape, dtype=np.float64)
    for index in range(iou.shape[0]):
        columns = np.flatnonzero(present[index])
        scores = iou[index][:, columns]
        slots, segments = linear_sum_assignment(scores, maximize=True)
        matched[index, columns[segments]] = scores[slots, segments]
    return matched


def adjusted_rand_index(histogram: NDArray[np.int64]) -> NDArray[np.float64]:
    """Adjusted Rand index of each image from its contingency table (Hubert & Arabie 1985).

    Args:
        histogram: ``(batch, slots, segments)``; drop column 0 for the foreground index.

    Returns:
        float64 ``(batch,)``; 1 where the index is undefined (at most one pixel, or both partitions trivial).
    """
    table = histogram.astype(np.float64)
    segments, slots = table.sum(axis=1), table.sum(axis=2)
    points = segments.sum(axis=1)
    together = (table * (table - 1)).sum(axis=(1, 2))
    in_segments = (segments * (segments - 1)).sum(axis=1)
    in_slots = (slots * (slots - 1)).sum(axis=1)
    expected = in_segments * in_slots / np.maximum(points * (points - 1), 1)
    denominator = (in_segments + in_slots) / 2 - expected
    defined = denominator > 0
    return np.where(defined, (together - expected) / np.where(defined, denominator, 1.0), 1.0)


@dataclass(frozen=True)
class HistogramScores:
    """Scores of a batch of images; every array has the batch as first dimension.

    Attributes:
        miou, mbo, recovery, corloc: float64 ``(batch,)``; NaN where the image has no segment that counts.
        ari: float64 ``(batch,)``, over all segments when the background counts, else the foreground ARI.
        segments: int64 ``(batch,)``, segments that count.
        matched: float64 ``(batch, segments)``, IoU with the matched slot.
        best: float64 ``(batch, segments)``, best IoU over slots.
        present: bool ``(batch, segments)``; with the background excluded column 0 is False.
    """

    miou: NDArray[np.float64]
    mbo: NDArray[np.float64]
    recovery: NDArray[np.float64]
    corloc: NDArray[np.float64]
    ari: NDArray[np.float64]
    segments: NDArray[np.int64]
    matched: NDArray[np.float64]
    best: NDArray[np.float64]
    present: NDArray[np.bool_]


def score_histogram(
    histogram: NDArray[np.int64], background: bool, threshold: float = RECOVERY_THRESHOLD
) -> HistogramScores:
    """All metrics of a batch of images.

    Args:
        histogram: int64 ``(batch, slots, segments)`` with column 0 = background.
        background: whether segment 0 counts as a segment (and its pixels in the Rand index).
        threshold: a segment is recovered when its best IoU is strictly larger.
    """
    iou = pairwise_iou(histogram)
    present = histogram.sum(axis=1) > 0
    if not background:
        present = present.copy()
        present[:, 0] = False
    best = np.where(present, iou.max(axis=1), 0.0)
    matched = hungarian_iou(iou, present)
    recovered = present & (best > threshold)
    segments = present.sum(axis=1)
    some = segments > 0

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(some, values.sum(axis=1) / np.maximum(segments, 1), np.nan)

    return HistogramScores(
        miou=mean(matched),
        mbo=mean(best),
        recovery=mean(recovered.astype(np.float64)),
        corloc=np.where(some, recovered.any(axis=1).astype(np.float64), np.nan),
        ari=adjusted_rand_index(histogram if background else histogram[:, :, 1:]),
        segments=segments.astype(np.int64),
        matched=matched,
        best=best,
        present=present,
    )
