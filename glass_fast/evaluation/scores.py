"""Running sums of one protocol over a data set: metrics, foreground variants, per-class table, counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glass_fast.metrics.ground_truth import GroundTruth
from glass_fast.metrics.objects import HistogramScores, joint_histogram, score_histogram
from glass_fast.metrics.protocols import Protocol

METRICS = (
    "miou_i",
    "mbo_i",
    "mbo_c",
    "miou_c",
    "fg_ari",
    "ari",
    "object_recovery",
    "corloc",
)
"""Headline metrics, with the background as the protocol says (``_i`` instance, ``_c`` class masks)."""
FOREGROUND_METRICS = ("miou_i_fg", "mbo_i_fg", "mbo_c_fg", "miou_c_fg", "object_recovery_fg", "corloc_fg")
"""The same with the background excluded, whatever the protocol says."""
MULTI_OBJECT_METRIC = "fg_ari_multi"
"""FG-ARI over images with at least two objects; with one object it is 1 or about 0 and says little."""


@dataclass
class _Mean:
    """Mean and standard error over images; NaN entries are images that do not count."""

    total: float = 0.0
    squares: float = 0.0
    count: int = 0

    def add(self, values: NDArray[np.float64]) -> None:
        kept = values[~np.isnan(values)]
        self.total += float(kept.sum())
        self.squares += float((kept**2).sum())
        self.count += int(kept.size)

    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def error(self) -> float | None:
        if self.count < 2:
            return None
        variance = max(self.squares - self.total**2 / self.count, 0.0) / (self.count - 1)
        return float((variance / self.count) ** 0.5)


class ProtocolScores:
    """Scores of one predictor under one protocol.

    Args:
        protocol: the rules.
        num_slots: slots of the predictor.
        class_names: name of label id ``i + 1`` at position ``i``, for the per-class table.
    """

    def __init__(self, protocol: Protocol, num_slots: int, class_names: Sequence[str] = ()) -> None:
        self.protocol, self.num_slots, self.class_names = protocol, num_slots, tuple(class_names)
        self._means = {name: _Mean() for name in (*METRICS, *FOREGROUND_METRICS, MULTI_OBJECT_METRIC)}
        self._objects = {"miou_i_fg": _Mean(), "mbo_i_fg": _Mean(), "object_recovery_fg": _Mean()}
        self._classes: dict[int, dict[str, _Mean]] = {}
        self.images = 0
        self.images_without_object = 0
        self.objects = 0

    def add(self, labels: NDArray[np.integer], truths: Sequence[GroundTruth]) -> None:
        """Count a batch.

        Args:
            labels: slot index of each pixel at the protocol's resolution, ``(batch, side, side)``.
            truths: the ground truth of each image.
        """
        stacked = np.stack([truth.valid for truth in truths])
        valid = None if stacked.all() else stacked
        instance = self._histogram(labels, [truth.instances for truth in truths], valid)
        semantic = self._histogram(labels, [truth.classes for truth in truths], valid)
        with_background = score_histogram(instance, True), score_histogram(semantic, True)
        foreground = score_histogram(instance, False), score_histogram(semantic, False)
        self._add_means(with_background, foreground)
        self._add_objects(foreground, truths)
        self.images += len(truths)
        self.images_without_object += int((foreground[0].segments == 0).sum())
        self.objects += int(foreground[0].segments.sum())

    def _histogram(
        self, labels: NDArray[np.integer], targets: list[NDArray[np.int32]], valid: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        target = np.stack(targets)
        return joint_histogram(labels, target, self.num_slots, int(target.max(initial=0)) + 1, valid)

    def _add_means(
        self,
        counted: tuple[HistogramScores, HistogramScores],
        foreground: tuple[HistogramScores, HistogramScores],
    ) -> None:
        protocol = self.protocol

        def pick(background: bool, level: int) -> HistogramScores:
            return counted[level] if background else foreground[level]

        values = {
            "miou_i": pick(protocol.background_miou, 0).miou,
            "miou_c": pick(protocol.background_miou, 1).miou,
            "mbo_i": pick(protocol.background_mbo, 0).mbo,
            "mbo_c": pick(protocol.background_mbo, 1).mbo,
            "object_recovery": pick(protocol.background_recovery, 0).recovery,
            "corloc": pick(protocol.background_corloc, 0).corloc,
            "fg_ari": foreground[0].ari,
            "ari": counted[1].ari,
            "miou_i_fg": foreground[0].miou,
            "miou_c_fg": foreground[1].miou,
            "mbo_i_fg": foreground[0].mbo,
            "mbo_c_fg": foreground[1].mbo,
            "object_recovery_fg": foreground[0].recovery,
            "corloc_fg": foreground[0].corloc,
            MULTI_OBJECT_METRIC: np.where(foreground[0].segments >= 2, foreground[0].ari, np.nan),
        }
        for name, value in values.items():
            self._means[name].add(value)

    def _add_objects(
        self, foreground: tuple[HistogramScores, HistogramScores], truths: Sequence[GroundTruth]
    ) -> None:
        instance, semantic = foreground
        present = instance.present
        self._objects["miou_i_fg"].add(instance.matched[present])
        self._objects["mbo_i_fg"].add(instance.best[present])
        self._objects["object_recovery_fg"].add((instance.best[present] > 0.5).astype(np.float64))
        for index, truth in enumerate(truths):
            for segment in np.flatnonzero(instance.present[index]):
                row = self._class_row(int(truth.instance_classes[segment]))
                best = instance.best[index, segment]
                row["mbo_i"].add(np.array([best]))
                row["object_recovery"].add(np.array([float(best > 0.5)]))
            for segment in np.flatnonzero(semantic.present[index]):
                row = self._class_row(int(truth.class_labels[segment]))
                row["mbo_c"].add(np.array([semantic.best[index, segment]]))

    def _class_row(self, label: int) -> dict[str, _Mean]:
        return self._classes.setdefault(
            label, {"mbo_i": _Mean(), "object_recovery": _Mean(), "mbo_c": _Mean()}
        )

    def _class_name(self, label: int) -> str:
        return self.class_names[label - 1] if 1 <= label <= len(self.class_names) else f"class {label}"

    def result(self) -> dict[str, Any]:
        """JSON-able result; metrics are fractions, None where no image counts.

        ``per_object`` holds means over all objects of the data set (not per image first); ``per_class`` holds
        for each class the number of objects and of images that show it, its best overlaps averaged over
        these objects (``mbo_i``, ``object_recovery``) and over these images (``mbo_c``). Both exclude the
        background.
        """
        return {
            "label": self.protocol.label(),
            "fields": self.protocol.fields(),
            "metrics": {name: mean.mean() for name, mean in self._means.items()},
            "standard_error": {name: mean.error() for name, mean in self._means.items()},
            "per_object": {name: mean.mean() for name, mean in self._objects.items()},
            "per_class": {
                self._class_name(label): {
                    "objects": row["mbo_i"].count,
                    "images": row["mbo_c"].count,
                    **{name: mean.mean() for name, mean in row.items()},
                }
                for label, row in sorted(self._classes.items())
            },
            "images": self.images,
            "images_without_object": self.images_without_object,
            "objects": self.objects,
        }
