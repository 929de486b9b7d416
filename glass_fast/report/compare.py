"""Figures of several methods side by side: means and spreads, relative gains, and what they allow to say."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glass_fast.report.collect import Score
from glass_fast.report.palette import method_order

REFERENCE = "unguided"
GUIDED = ("glass", "semantic")
"""Guided methods in the order in which one is chosen for the headline."""
FOREGROUND: Mapping[str, str] = {
    "miou_i_fg": "mIoU_i",
    "mbo_i_fg": "mBO_i",
    "fg_ari": "FG-ARI",
    "fg_ari_multi": "FG-ARI (≥ 2 objects)",
    "miou_c_fg": "mIoU_c",
    "mbo_c_fg": "mBO_c",
    "object_recovery_fg": "recovery",
    "corloc_fg": "CorLoc",
}
"""Metrics of objects only, in the order of the columns."""
COUNTED: Mapping[str, str] = {
    "miou_i_bg": "mIoU_i",
    "mbo_i_bg": "mBO_i",
    "ari": "ARI",
    "miou_c_bg": "mIoU_c",
    "mbo_c_bg": "mBO_c",
    "object_recovery_bg": "recovery",
    "corloc_bg": "CorLoc",
}
"""Metrics in which background is one more segment."""
JUDGED = ("miou_i_fg", "mbo_i_fg", "fg_ari")

_ALIASES = {
    "miou": "miou_i",
    "mbo": "mbo_i",
    "cor_loc": "corloc",
    "fgari": "fg_ari",
    "recovery": "object_recovery",
}
_SWITCHES = {
    "miou": "background_miou",
    "mbo": "background_mbo",
    "object": "background_recovery",
    "corloc": "background_corloc",
}


@dataclass(frozen=True)
class Cell:
    """One metric of one method.

    Attributes:
        values: one per seed, fractions.
        mean: over the seeds.
        spread: sample standard deviation over seeds; with one seed the standard error over images; or None.
        gain: relative to the unguided row; None for that row itself.
        best: highest of the column, upper bound left out.
    """

    values: tuple[float, ...]
    mean: float
    spread: float | None
    gain: float | None
    best: bool = False


@dataclass(frozen=True)
class Table:
    """All methods under one protocol on one data set; ``rows`` maps method -> canonical metric -> cell."""

    dataset: str
    protocol: str
    label: str
    fields: dict[str, Any]
    images: int | None
    rows: dict[str, dict[str, Cell]]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Canonical metrics that any method has: objects only, then background counted, then unknown ones."""
        present = {metric for row in self.rows.values() for metric in row}
        known = [*FOREGROUND, *COUNTED]
        return tuple([m for m in known if m in present] + sorted(present - set(known)))

    def mean(self, method: str, metric: str) -> float | None:
        """Mean of a metric over the seeds of a method, or ``None`` when it was not measured."""
        cell = self.rows.get(method, {}).get(metric)
        return None if cell is None else cell.mean

    def seeds(self, method: str) -> int:
        """Number of runs behind a method's figures."""
        return max((len(cell.values) for cell in self.rows.get(method, {}).values()), default=0)

    def guided(self) -> str | None:
        """The guided method of the headline, or ``None`` when no guided model was scored."""
        return next((method for method in GUIDED if method in self.rows), None)


@dataclass(frozen=True)
class Judgement:
    """What the foreground figures and FG-ARI allow to say; ``level`` is good, mixed, bad or unknown."""

    level: str
    headline: str
    reasons: tuple[str, ...]


def metric_label(metric: str) -> str:
    """Column heading of a canonical metric key."""
    return FOREGROUND.get(metric) or COUNTED.get(metric) or metric.replace("_", " ")


def canonical(metrics: Mapping[str, float], fields: Mapping[str, Any]) -> dict[str, float]:
    """Metrics under keys that say whether background counts.

    Args:
        metrics: as written: ``miou_i`` follows the protocol, ``miou_i_fg`` never counts background.
        fields: fields of the protocol; its ``background_*`` switches decide.

    Returns:
        ``miou_i`` becomes ``miou_i_bg`` or ``miou_i_fg``; a metric whose switch is not known keeps its name.
    """
    out: dict[str, float] = {}
    for name, value in metrics.items():
        key = name.strip().lower().replace("-", "_").replace(" ", "_")
        key = _ALIASES.get(key, key)
        if key in FOREGROUND or key in COUNTED:
            out[key] = value
            continue
        counted = fields.get(_SWITCHES.get(key.split("_")[0], ""))
        out.setdefault(f"{key}_{'bg' if counted else 'fg'}" if isinstance(counted, bool) else key, value)
    return out


def gain(value: float | None, reference: float | None) -> float | None:
    """Relative gain of ``value`` over ``reference``; ``None`` when it has no meaning."""
    if value is None or reference is None or reference <= 0:
        return None
    return value / reference - 1.0


def tables(scores: Sequence[Score], protocols: Sequence[str] = ()) -> list[Table]:
    """One table for each data set and protocol, in the order of ``protocols``, others after them by name."""
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.dataset, score.protocol), []).append(score)
    rank = {name: index for index, name in enumerate(protocols)}
    keys = sorted(groups, key=lambda key: (key[0], rank.get(key[1], len(rank)), key[1]))
    return [_table(dataset, protocol, groups[dataset, protocol]) for dataset, protocol in keys]


def _table(dataset: str, protocol: str, scores: list[Score]) -> Table:
    values: dict[str, dict[str, list[float]]] = {}
    errors: dict[str, dict[str, float]] = {}
    for score in scores:
        row = values.setdefault(score.method, {})
        for name, value in canonical(score.metrics, score.fields).items():
            row.setdefault(name, []).append(value)
        errors.setdefault(score.method, {}).update(canonical(score.errors, score.fields))
    means = {method: {k: statistics.fmean(v) for k, v in row.items()} for method, row in values.items()}
    # "Best" is among the methods that a user could choose; the upper bound has read true masks.
    metrics = {k for row in means.values() for k in row}
    best = {
        k: max((row[k] for m, row in means.items() if k in row and m != "upper_bound"), default=None)
        for k in metrics
    }
    rows: dict[str, dict[str, Cell]] = {}
    for method in method_order(set(values)):
        rows[method] = {}
        for metric, found in values[method].items():
            mean = means[method][metric]
            rows[method][metric] = Cell(
                values=tuple(found),
                mean=mean,
                spread=statistics.stdev(found) if len(found) > 1 else errors[method].get(metric),
                gain=None if method == REFERENCE else gain(mean, means.get(REFERENCE, {}).get(metric)),
                best=method != "upper_bound" and mean == best[metric],
            )
    first = next((s for s in scores if s.fields), scores[0])
    images = next((s.images for s in scores if s.images is not None), None)
    return Table(dataset, protocol, first.label, first.fields, images, rows)


def headline(found: Sequence[Table]) -> Table | None:
    """The table that is judged: the first with guided and unguided rows and all figures, else any pair."""
    pairs = [t for t in found if REFERENCE in t.rows and t.guided() is not None]
    complete = [
        t
        for t in pairs
        if all(t.mean(m, k) is not None for m in (REFERENCE, t.guided() or "") for k in JUDGED)
    ]
    return next(iter(complete or pairs), None)


def judge(found: Sequence[Table]) -> Judgement:
    """Compare guided with unguided slots by the foreground figures and FG-ARI.

    mIoU with background counted is left out of the verdict on purpose: a guidance that puts every object into
    one slot and the background into another raises it although it finds no object.
    """
    table = headline(found)
    guided = table.guided() if table is not None else None
    if table is None or guided is None:
        return Judgement(
            "unknown",
            "No guided and unguided pair to compare",
            ("A judgement needs both on the same data set.",),
        )
    parts: dict[str, float] = {}
    reasons: list[str] = []
    for metric in JUDGED:
        new, old = table.mean(guided, metric), table.mean(REFERENCE, metric)
        if new is None or old is None:
            continue
        parts[metric] = new - old
        relative = gain(new, old)
        extra = f" ({100 * relative:+.1f} %)".replace("-", "−") if relative is not None else ""
        place = "" if metric == "fg_ari" else " without background"
        reasons.append(f"{metric_label(metric)}{place}: {100 * old:.1f} → {100 * new:.1f}{extra}")
    seeds = min(table.seeds(guided), table.seeds(REFERENCE))
    reasons.append(
        "One seed: the spread over training runs is unknown." if seeds < 2 else f"Means over {seeds} seeds."
    )
    return _verdict(guided, parts, table, tuple(reasons))


def _verdict(guided: str, parts: dict[str, float], table: Table, reasons: tuple[str, ...]) -> Judgement:
    overlap = [parts[m] for m in JUDGED[:2] if m in parts]
    ari = parts.get("fg_ari")
    name = guided.capitalize()
    if not overlap or ari is None:
        return Judgement("unknown", "The foreground figures are incomplete", reasons)
    if min(overlap) > 0 and ari >= 0:
        return Judgement("good", f"{name} is better than unguided on every foreground figure", reasons)
    if min(overlap) > 0:
        why = "FG-ARI fell: objects are kept whole more often, but neighbours are also merged more often."
        return Judgement(
            "mixed",
            f"{name} overlaps objects better than unguided, but separates them less well",
            (*reasons, why),
        )
    new, old = (table.mean(method, "miou_i_bg") for method in (guided, REFERENCE))
    if new is not None and old is not None and new > old:
        why = (
            f"mIoU_i with background counted rose ({100 * old:.1f} → {100 * new:.1f}) while a foreground "
            "figure fell: the mark of a guidance that gathers objects in one slot."
        )
        return Judgement("bad", f"{name} does not find objects better than unguided", (*reasons, why))
    return Judgement("bad", f"{name} is not better than unguided on the foreground figures", reasons)
