"""The absence guard measured: which named classes were not painted, and which rule finds them.

Truth: the judge's classifier does not see the class and its segmenter gives it next to no area. Where the two
disagree the case is unclear and left out (and counted). A rule gives each named class a score that is high where
the class was painted; below the rule's limit the class is called absent. Limits are chosen on one half of the
prompts for the best F1 of finding absent classes and reported on the other half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glass_fast.config.schema import SynthesisConfig
from glass_fast.partworld.quality.generated import MIN_AREA, NAMES, Pictures
from glass_fast.partworld.quality.judge import class_areas
from glass_fast.partworld.quality.shares import share

RATIOS = tuple(round(0.1 + 0.05 * step, 2) for step in range(25))
"""Values of ``synthesis.masks.absence_ratio`` of the curve: 0.1 to 1.3."""
COMBINED = ("peak_ratio", "relative_ratio", "peakedness", "distinctness")
"""Scores that the combined rule weighs."""


@dataclass(frozen=True)
class Cases:
    """One row per picture and named class.

    Attributes:
        absent: bool (C,), the judge does not see the class.
        clear: bool (C,), classifier and segmenter agree.
        dropped: bool (C,), the guard of the job dropped it.
        flagged: bool (C,), dropped, or too small in the mask (the flag ``class_missing`` of the quality gate).
        chosen: bool (C,), row of the half on which limits are chosen.
        scores: rule -> float64 (C,), high where the class was painted.
    """

    absent: NDArray[np.bool_]
    clear: NDArray[np.bool_]
    dropped: NDArray[np.bool_]
    flagged: NDArray[np.bool_]
    chosen: NDArray[np.bool_]
    scores: dict[str, NDArray[np.float64]]


def collect_cases(pictures: Pictures, config: SynthesisConfig, usual: dict[str, float]) -> Cases:
    """Cases of all pictures.

    Scores: ``peak_ratio`` raw peak over the class's usual peak (what the guard uses); ``peak_share`` raw peak over
    the picture's highest; ``relative_ratio`` peak_ratio over the picture's highest; ``confidence`` mean soft value
    where the class wins; ``won_area`` share of cells that it wins; ``peakedness`` 1 - mean of the soft map;
    ``low_entropy`` 1 - entropy of the soft map over its largest possible; ``distinctness`` 1 - largest correlation
    with another class's soft map (1 when alone).

    Args:
        pictures: judged pictures.
        config: the job's settings (thresholds, smallest area).
        usual: usual peak of every class.
    """
    areas = class_areas(pictures.labels)
    rows: list[tuple[bool, bool, bool, bool, bool]] = []
    scores: list[dict[str, float]] = []
    for index, classes in enumerate(pictures.prompted):
        maps = pictures.maps[index].astype(np.float64) / 255.0
        measured = map_scores(
            maps, pictures.peaks[index], [usual[NAMES[c]] for c in classes], config.masks.threshold
        )
        mask_shares = np.bincount(pictures.masks[index].ravel(), minlength=256) / pictures.masks[index].size
        for place, number in enumerate(classes):
            found, painted = bool(pictures.found[index, number]), bool(areas[index, number] >= MIN_AREA)
            dropped = number in pictures.dropped[index]
            small = mask_shares[number + 1] < config.quality.min_area or mask_shares[number + 1] == 0.0
            half = bool(pictures.prompt[index] % 2 == 0)
            rows.append((not found and not painted, found == painted, dropped, bool(dropped or small), half))
            scores.append(measured[place])
    table = np.array(rows, bool).reshape(-1, 5)
    names = list(scores[0]) if scores else []
    return Cases(
        absent=table[:, 0],
        clear=table[:, 1],
        dropped=table[:, 2],
        flagged=table[:, 3],
        chosen=table[:, 4],
        scores={name: np.array([row[name] for row in scores], np.float64) for name in names},
    )


def map_scores(
    maps: NDArray[np.float64], peaks: tuple[float, ...], usual: list[float], threshold: float
) -> list[dict[str, float]]:
    """Scores of each class of one picture; ``maps`` (K, h, w) in [0, 1]."""
    ratios = np.array([peak / max(level, 1e-9) for peak, level in zip(peaks, usual, strict=True)])
    best = maps.argmax(axis=0)
    flat = maps.reshape(len(maps), -1)
    centred = flat - flat.mean(axis=1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    alike = centred @ centred.T
    np.fill_diagonal(alike, -np.inf)
    result = []
    for place in range(len(maps)):
        won = (best == place) & (maps[place] >= threshold)
        mass = flat[place] / max(flat[place].sum(), 1e-9)
        entropy = float(-(mass * np.log(np.maximum(mass, 1e-12))).sum() / np.log(mass.size))
        result.append(
            {
                "peak_ratio": float(ratios[place]),
                "peak_share": peaks[place] / max(*peaks, 1e-9),
                "relative_ratio": float(ratios[place] / max(ratios.max(), 1e-9)),
                "confidence": float(maps[place][won].mean()) if won.any() else 0.0,
                "won_area": float(won.mean()),
                "peakedness": 1.0 - float(flat[place].mean()),
                "low_entropy": 1.0 - entropy,
                "distinctness": 1.0 - max(float(alike[place].max()), 0.0) if len(maps) > 1 else 1.0,
            }
        )
    return result


def detection(absent: NDArray[np.bool_], called: NDArray[np.bool_]) -> dict[str, Any]:
    """Precision, recall and F1 of calling classes absent, with counts."""
    right, calls, truth = int((absent & called).sum()), int(called.sum()), int(absent.sum())
    return {
        "cases": len(absent),
        "absent": truth,
        "called": calls,
        "right": right,
        "precision": share(right, calls),
        "recall": share(right, truth),
        "f1": round(2 * right / (calls + truth), 4) if calls + truth else None,
    }


def area_under_curve(absent: NDArray[np.bool_], score: NDArray[np.float64]) -> float | None:
    """Chance that a painted class scores higher than an absent one (ties count half); None without both kinds."""
    low, high = np.sort(score[absent]), score[~absent]
    if not len(low) or not len(high):
        return None
    below = np.searchsorted(low, high, side="left") + np.searchsorted(low, high, side="right")
    return round(float(below.mean() / 2 / len(low)), 4)


def best_limit(absent: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Limit below which a class is called absent, with the best F1; between two neighbouring scores.

    The lowest of equals, so that nothing is called absent where that gains nothing.
    """
    values = np.unique(score)
    if not len(values):
        return 0.0
    limits = np.concatenate([[values[0]], (values[1:] + values[:-1]) / 2, [values[-1] + 1e-6]])
    called = score[None] < limits[:, None]
    right = (called & absent).sum(axis=1)
    f1 = 2 * right / np.maximum(called.sum(axis=1) + absent.sum(), 1)
    return float(limits[int(f1.argmax())])


def guard_report(pictures: Pictures, config: SynthesisConfig, usual: dict[str, float]) -> dict[str, Any]:
    """The guard as the job ran it, the curve over its ratio, and other rules on what is stored.

    Args:
        pictures: judged pictures of single classes and pairs.
        config: the job's settings.
        usual: usual raw peak of every class (:func:`~glass_fast.partworld.quality.generated.reference_peaks`).

    Returns:
        ``cases`` (all, clear, absent), ``as_run`` (dropped, flagged: on all clear cases), ``curve`` (rows of
        absence_ratio with ``usual``, on all clear cases), ``rules`` (per rule: limit chosen on one half of the
        prompts, ``chosen_on`` and ``reported_on`` figures, area under the curve on all), ``best`` (the rule with the
        best F1 on the half on which limits are chosen).
    """
    cases = collect_cases(pictures, config, usual)
    clear, absent = cases.clear, cases.absent
    scores = dict(cases.scores)
    if scores:
        combined = _combined(cases)
        if combined is not None:
            scores["combined"] = combined["score"]
    rules: dict[str, Any] = {}
    first, second = clear & cases.chosen, clear & ~cases.chosen
    for name, score in scores.items():
        limit = best_limit(absent[first], score[first])
        rules[name] = {
            "limit": round(limit, 4),
            "area_under_curve": area_under_curve(absent[clear], score[clear]),
            "chosen_on": detection(absent[first], score[first] < limit),
            "reported_on": detection(absent[second], score[second] < limit),
        }
    if "combined" in rules and combined is not None:
        rules["combined"]["weights"] = combined["weights"]
    ratio = scores.get("peak_ratio", np.zeros(0))
    return {
        "cases": {"all": len(absent), "clear": int(clear.sum()), "absent": int((absent & clear).sum())},
        "as_run": {
            "absence_ratio": config.masks.absence_ratio,
            "dropped": detection(absent[clear], cases.dropped[clear]),
            "flagged": detection(absent[clear], cases.flagged[clear]),
        },
        "usual_peaks": usual,
        "curve": [
            {"absence_ratio": value} | detection(absent[clear], ratio[clear] < value) for value in RATIOS
        ],
        "rules": rules,
        "best": max(rules, key=lambda name: rules[name]["chosen_on"]["f1"] or 0.0) if rules else None,
    }


def _combined(cases: Cases) -> dict[str, Any] | None:
    """A logistic regression of :data:`COMBINED` fitted on the chosen half; None where that half has one kind only."""
    from glass_fast.partworld.quality.probe import logistic_regression

    rows = cases.clear & cases.chosen
    inputs = np.stack([cases.scores[name] for name in COMBINED], axis=1)
    if len(np.unique(cases.absent[rows])) < 2:
        return None
    model = logistic_regression(inputs[rows], (~cases.absent[rows]).astype(np.int64))
    weights = dict(zip(COMBINED, model[-1].coef_[0].round(3).tolist(), strict=True))
    return {"score": model.decision_function(inputs).astype(np.float64), "weights": weights}
