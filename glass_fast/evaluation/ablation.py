"""Comparison of training arms over seeds: ``ablation.json`` and its table for the terminal.

Schema of ``ablation.json`` (all metrics and gains are fractions; None where a value is missing):

* ``schema`` (1), ``kind`` ("ablation"), ``dataset`` (from the evaluations), ``protocol`` (the protocol of the
  gains), ``protocol_label``, ``reference`` (arm gains refer to), ``candidate`` (arm they are stated for);
* ``arms``: arm -> ``{"seeds": [...], "metrics": {metric: {"mean", "std", "values"}},
  "relative": {metric: gain of the mean over the reference's mean}, "protocols": {name: {metric: {...}}}}``.
  ``metrics`` belong to ``protocol``; ``std`` is the sample deviation over seeds (None for one seed);
* ``relative_gain``: candidate over reference in ``miou_i``, background as ``protocol`` counts it;
* ``relative_gain_foreground``: ``{"miou_i": ..., "mbo_i": ...}`` with the background excluded
  (metrics ``miou_i_fg`` and ``mbo_i_fg``);
* ``relative_gain_per_seed``: the three gains seed by seed, for seeds that both arms have;
* ``fg_ari``: ``{"reference", "candidate", "difference", "relative"}``.

``relative_gain`` alone proves nothing: a guidance that puts every object into one slot and the background
into another raises it. Judge by ``relative_gain_foreground`` and ``fg_ari``.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from glass_fast.errors import DataError

SCHEMA = 1
GAIN_METRIC = "miou_i"
FOREGROUND_GAIN_METRICS = {"miou_i": "miou_i_fg", "mbo_i": "mbo_i_fg"}
TABLE_COLUMNS = {
    "miou_i": "mIoU_i",
    "miou_i_fg": "mIoU_i fg",
    "mbo_i_fg": "mBO_i fg",
    "mbo_c_fg": "mBO_c fg",
    "fg_ari": "FG-ARI",
}
"""Metrics of the terminal table and their headings."""
_GAIN_COLUMNS = ("miou_i", "miou_i_fg", "mbo_i_fg")


def relative_gain(value: float | None, reference: float | None) -> float | None:
    """``value / reference - 1``; None when a value is missing or the reference is not positive."""
    if value is None or reference is None or reference <= 0:
        return None
    return value / reference - 1.0


def _protocols_of(result: Mapping[str, Any], protocol: str) -> dict[str, dict[str, float | None]]:
    """Metrics per protocol of an evaluation record, or of a bare metric dict (taken as ``protocol``)."""
    if "protocols" in result:
        return {name: dict(part["metrics"]) for name, part in result["protocols"].items()}
    return {
        protocol: {name: value for name, value in result.items() if name not in ("seed", "training_seed")}
    }


def _seed(result: Mapping[str, Any]) -> int | None:
    """Training seed of a result, else the seed it was evaluated with."""
    known = result.get("training_seed")
    return result.get("seed") if known is None else known


def _statistics(runs: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    out = {}
    for metric in dict.fromkeys(name for run in runs for name in run):
        values = [run.get(metric) for run in runs]
        known = [value for value in values if value is not None]
        out[metric] = {
            "mean": statistics.fmean(known) if known else None,
            "std": statistics.stdev(known) if len(known) > 1 else None,
            "values": values,
        }
    return out


def ablation_table(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    reference: str = "unguided",
    candidate: str = "glass",
    protocol: str = "glass",
) -> dict[str, Any]:
    """Absolute values and gains of every arm; the content of ``ablation.json``.

    Args:
        results: arm -> one entry per seed: what :func:`glass_fast.evaluation.evaluate.evaluate` returns, or a
            bare dict metric -> value (with an optional ``seed``).
        reference: arm that gains refer to.
        candidate: arm that the headline gains are stated for.
        protocol: protocol of the gains.

    Raises:
        DataError: an arm has no result, a result lacks ``protocol``, or data sets differ.
    """
    arms: dict[str, dict[str, Any]] = {}
    datasets: list[dict[str, Any]] = []
    labels: list[str] = []
    for arm, runs in results.items():
        if not runs:
            raise DataError("GF-EVAL-030", f"arm {arm!r} has no result; expected one per seed")
        per_run = [_protocols_of(run, protocol) for run in runs]
        if any(protocol not in run for run in per_run):
            raise DataError(
                "GF-EVAL-030",
                f"a result of arm {arm!r} lacks protocol {protocol!r}",
                "evaluate all arms under the same protocols",
            )
        datasets += [dict(run["dataset"]) for run in runs if run.get("dataset")]
        labels += [run["protocols"][protocol]["label"] for run in runs if "protocols" in run]
        names = dict.fromkeys(name for run in per_run for name in run)
        table = {name: _statistics([run[name] for run in per_run if name in run]) for name in names}
        arms[arm] = {
            "seeds": [_seed(run) for run in runs],
            "metrics": table[protocol],
            "protocols": table,
        }
    if any(dataset != datasets[0] for dataset in datasets):
        raise DataError(
            "GF-EVAL-031",
            "the arms were evaluated on different data sets",
            "compare results of one data set only",
        )
    base = arms.get(reference, {"metrics": {}})["metrics"]
    for entry in arms.values():
        entry["relative"] = {
            metric: relative_gain(values["mean"], base.get(metric, {}).get("mean"))
            for metric, values in entry["metrics"].items()
        }
    gains = arms.get(candidate, {"relative": {}})["relative"] if reference in arms else {}
    return {
        "schema": SCHEMA,
        "kind": "ablation",
        "dataset": datasets[0] if datasets else {},
        "protocol": protocol,
        "protocol_label": labels[0] if labels else "",
        "reference": reference,
        "candidate": candidate,
        "arms": arms,
        "relative_gain": gains.get(GAIN_METRIC),
        "relative_gain_foreground": {name: gains.get(key) for name, key in FOREGROUND_GAIN_METRICS.items()},
        "relative_gain_per_seed": _per_seed(arms.get(reference), arms.get(candidate)),
        "fg_ari": _rand_index(arms.get(reference), arms.get(candidate)),
    }


def _per_seed(reference: dict[str, Any] | None, candidate: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Gains of the runs that share a seed; nothing when a seed is unknown or not unique."""
    if reference is None or candidate is None:
        return []
    if len(set(reference["seeds"])) != len(reference["seeds"]):
        return []
    rows = []
    for index, seed in enumerate(candidate["seeds"]):
        if seed is None or seed not in reference["seeds"]:
            continue
        other = reference["seeds"].index(seed)
        row: dict[str, Any] = {"seed": seed}
        for metric in _GAIN_COLUMNS:
            new, old = (arm["metrics"].get(metric) for arm in (candidate, reference))
            row[metric] = relative_gain(new["values"][index], old["values"][other]) if new and old else None
        rows.append(row)
    return rows


def _rand_index(
    reference: dict[str, Any] | None, candidate: dict[str, Any] | None
) -> dict[str, float | None]:
    old, new = (
        arm["metrics"].get("fg_ari", {}).get("mean") if arm else None for arm in (reference, candidate)
    )
    return {
        "reference": old,
        "candidate": new,
        "difference": None if old is None or new is None else new - old,
        "relative": relative_gain(new, old),
    }


def ablation_text(table: Mapping[str, Any], columns: Mapping[str, str] = TABLE_COLUMNS) -> str:
    """Plain text for the terminal: percent, deviation over seeds, gains over the reference.

    Args:
        table: result of :func:`ablation_table`.
        columns: metric -> heading.
    """
    header = ["arm", "seeds", *columns.values()]
    rows = []
    for name, arm in table["arms"].items():
        cells = [name, str(len(arm["seeds"]))]
        for metric in columns:
            entry = arm["metrics"].get(metric)
            cells.append(_cell(entry, arm["relative"].get(metric) if name != table["reference"] else None))
        rows.append(cells)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([first, *rest])

    lines = [line(header), line(["-" * width for width in widths]), *(line(row) for row in rows), ""]
    foreground = table["relative_gain_foreground"]
    lines += [
        f"{table['candidate']} over {table['reference']}: mIoU_i {_percent(table['relative_gain'])} "
        f"as the protocol counts it, {_percent(foreground['miou_i'])} without background; "
        f"mBO_i without background {_percent(foreground['mbo_i'])}; "
        f"FG-ARI {_points(table['fg_ari']['difference'])}",
        f"in percent, +- deviation over seeds, [gain over {table['reference']}]; fg = background excluded",
    ]
    if table["protocol_label"]:
        lines.append(f"protocol {table['protocol_label']}")
    return "\n".join(lines)


def _cell(entry: Mapping[str, Any] | None, gain: float | None) -> str:
    if entry is None or entry["mean"] is None:
        return "-"
    text = f"{100 * entry['mean']:.1f}"
    if entry["std"] is not None:
        text += f" +-{100 * entry['std']:.1f}"
    return text if gain is None else f"{text} [{100 * gain:+.0f}%]"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:+.1f} %"


def _points(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:+.1f} points"
