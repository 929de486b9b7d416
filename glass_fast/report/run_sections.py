"""Sections about the run itself: training, time, failures, configuration and machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glass_fast.report import charts
from glass_fast.report import text as fmt
from glass_fast.report.collect import ModelRun, RunData, as_dict, flatten
from glass_fast.report.palette import method_colour, method_label, method_order
from glass_fast.report.samples import ShardSummary

MAX_ROWS = 200
_NO_CURVE = {
    "step",
    "time",
    "seconds",
    "elapsed",
    "elapsed_s",
    "epoch",
    "eta",
    "eta_s",
    "timestamp",
    "wall_s",
}
_STAGE_COLOURS = (
    "#0072b2",
    "#56b4e9",
    "#009e73",
    "#e69f00",
    "#d55e00",
    "#cc79a7",
    "#7a5195",
    "#5f6b7a",
    "#9aa4b2",
)


def training(models: Sequence[ModelRun]) -> dict[str, Any] | None:
    """Curves of every numeric log field, one chart each, and a table of the trained models."""
    if not models:
        return None
    keys: dict[str, None] = {}
    for model in models:
        for entry in (*model.log[:50], *model.log[-1:]):
            keys.update(
                {k: None for k, v in entry.items() if fmt.is_number(v) and k.lower() not in _NO_CURVE}
            )
    ranked = sorted(keys, key=lambda k: (not k.startswith("loss"), k != "loss", list(keys).index(k)))
    pictures = []
    for key in ranked[:9]:
        series = []
        for model in models:
            points = [
                (float(e.get("step", i)), float(e[key]))
                for i, e in enumerate(model.log)
                if fmt.is_number(e.get(key)) and fmt.is_number(e.get("step", i))
            ]
            if points:
                xs, ys = zip(*points, strict=True)
                series.append(charts.Series(fmt.clean(model.folder, 40), xs, ys, method_colour(model.method)))
        values = [v for s in series for v in s.ys]
        spread = values and min(values) > 0 and max(values) / min(values) > 30
        chart = charts.line_chart(series, fmt.clean(key.replace("_", " "), 40), "step", log_y=bool(spread))
        if chart:
            pictures.append(chart)
    wanted = (
        ("steps", ("steps", "step")),
        ("learning rate", ("learning_rate",)),
        ("time", ("seconds", "elapsed_s", "train_seconds")),
    )
    heads, rows = [], []
    for head, names in wanted:
        if any(_find(m.record, names) is not None for m in models):
            heads.append(head)
    for model in models:
        cells = []
        for head, names in wanted:
            if head in heads:
                value = _find(model.record, names)
                cells.append(
                    fmt.seconds(value)
                    if head == "time"
                    else fmt.number(value)
                    if value is not None
                    else fmt.DASH
                )
        last = next((e.get("loss") for e in reversed(model.log) if fmt.is_number(e.get("loss"))), None)
        cells.append(fmt.number(last) if last is not None else fmt.DASH)
        rows.append(
            {"name": fmt.clean(model.folder, 60), "colour": method_colour(model.method), "cells": cells}
        )
    legend = [
        (fmt.clean(method_label(m), 40), method_colour(m))
        for m in method_order({model.method for model in models})
    ]
    return {"charts": pictures, "legend": legend, "heads": [*heads, "last loss"], "rows": rows[:MAX_ROWS]}


def _find(record: dict[str, Any], names: Sequence[str]) -> Any:
    """First number stored under one of ``names``: at the top, in ``training`` or in ``config``."""
    for part in (record, as_dict(record.get("training")), as_dict(record.get("config"))):
        for name in names:
            if fmt.is_number(part.get(name)):
                return part[name]
    return None


def stages(data: RunData) -> list[dict[str, Any]]:
    """Events of the run log folded to one row per stage name, in order of appearance.

    A stage that was interrupted and run again appears once; its time is the sum of its attempts. A later run
    that found it complete does not change its state.
    """
    rows: dict[str, dict[str, Any]] = {}
    for event in data.events:
        name, what = event.get("stage"), str(event.get("event", ""))
        if not isinstance(name, str):
            continue
        row = rows.setdefault(name, {"stage": name, "state": "", "seconds": None, "details": {}})
        if what in ("end", "done", "finish"):
            row["state"] = "done"
        elif what == "skipped":
            row["state"] = row["state"] or "already complete"
        elif what == "start":
            row["state"] = "not finished"
        else:
            row["state"] = what or row["state"]
        if fmt.is_number(event.get("seconds")):
            row["seconds"] = (row["seconds"] or 0.0) + float(event["seconds"])
        result = as_dict(event.get("result"))
        row["details"].update(
            {
                k: v
                for k, v in result.items()
                if fmt.is_number(v) or isinstance(v, bool) or (isinstance(v, str) and "/" not in v)
            }
        )
    return list(rows.values())


def speed(data: RunData) -> dict[str, Any] | None:
    """Time of every stage; jobs of one kind (``train/glass-seed0``) are summed in chart and table."""
    found = stages(data)
    if not found:
        return None
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        kinds.setdefault(row["stage"].split("/", 1)[0], []).append(row)
    rows, parts = [], []
    for index, (kind, members) in enumerate(kinds.items()):
        known = [m["seconds"] for m in members if m["seconds"] is not None]
        total = sum(known) if known else None
        states = dict.fromkeys(m["state"] for m in members)
        details = members[0]["details"] if len(members) == 1 else {}
        rate = next(
            (
                details[k]
                for k in ("rate", "per_second", "images_per_second")
                if fmt.is_number(details.get(k))
            ),
            None,
        )
        left_out = {"rate", "seconds", "out", "path"}
        rows.append(
            {
                "stage": fmt.clean(kind, 60),
                "jobs": str(len(members)),
                "state": fmt.clean(", ".join(states), 80),
                "time": fmt.seconds(total),
                "rate": f"{fmt.number(float(rate), 3)}/s" if rate else fmt.DASH,
                "details": "; ".join(
                    f"{fmt.clean(k, 40)} {plain(v, 60)}"
                    for k, v in list(details.items())[:8]
                    if k not in left_out
                ),
            }
        )
        parts.append((fmt.clean(kind, 40), total or 0.0, _STAGE_COLOURS[index % len(_STAGE_COLOURS)]))
    single = [
        {
            "stage": fmt.clean(r["stage"], 80),
            "state": fmt.clean(r["state"], 40),
            "time": fmt.seconds(r["seconds"]),
        }
        for r in found
    ]
    return {
        "rows": rows[:MAX_ROWS],
        "single": single[:MAX_ROWS] if len(single) > len(rows) else [],
        "chart": charts.share_bar(parts, "Share of the time per stage"),
        "caption": "Wall time from run.jsonl, summed over restarts, on the machine under Environment.",
    }


def environment(data: RunData) -> list[dict[str, Any]]:
    """Groups of the machine record; folders are shortened, because a report is passed on."""
    groups: list[dict[str, Any]] = []
    loose: dict[str, Any] = {}
    for name, part in data.environment.items():
        if not isinstance(part, dict):
            loose[name] = part
            continue
        if name == "packages":
            part = {
                k: v["installed"] if isinstance(v, dict) else v
                for k, v in part.items()
                if not isinstance(v, dict) or v.get("installed")
            }
        elif name == "ops":
            part = {op: as_dict(entry).get("chosen", entry) for op, entry in part.items()}
        rows = [(fmt.clean(k, 80), _unfoldered(v)) for k, v in flatten(part) if k != "prefix"]
        if rows:
            title = {"ops": "operators: chosen backend", "gpu": "GPU", "glass_fast": "glass-fast"}.get(
                name, name.replace("_", " ")
            )
            groups.append({"title": fmt.clean(title, 60), "rows": rows[:MAX_ROWS]})
    if loose:
        groups.insert(
            0,
            {
                "title": "",
                "rows": [(fmt.clean(k, 80), _unfoldered(v)) for k, v in list(loose.items())[:MAX_ROWS]],
            },
        )
    return groups


def _unfoldered(value: Any) -> str:
    """A printable value; of an absolute path only the last part."""
    if isinstance(value, str) and value.startswith(("/", "~")) and " " not in value:
        return "…/" + fmt.clean(value.rstrip("/").rsplit("/", 1)[-1], 80)
    return plain(value)


def device_name(data: RunData) -> str:
    """The first GPU of the machine record, ``CPU`` without one, else what the configuration asked for."""
    gpu = as_dict(data.environment.get("gpu"))
    if gpu and data.config.get("device") != "cpu":
        names = [as_dict(device).get("name") for device in gpu.get("devices") or ()]
        return fmt.clean(names[0], 40) if names else "CPU"
    return fmt.clean(str(data.config.get("device") or ""), 30).replace("cpu", "CPU")


def failures(data: RunData, shards: ShardSummary | None) -> dict[str, Any]:
    """Quarantined inputs, error events, and artefacts that could not be read."""
    rows = []
    refused = [("discover", r) for r in data.quarantine] + [("captions", r) for r in data.rejects]
    for stage, record in refused[:MAX_ROWS]:
        name = record.get("file") or record.get("image") or record.get("path") or record.get("id") or ""
        # Only the file name: a report is passed on, folders of its maker are nobody's business.
        folder, _, name = str(name).replace("\\", "/").rpartition("/")
        reason = str(record.get("reason") or record.get("message") or record.get("error") or "")
        reason = reason.replace(f"{folder}/", "") if folder else reason
        rows.append(
            {
                "stage": stage,
                "name": fmt.clean(name, 120),
                "code": fmt.clean(record.get("code"), 20),
                "reason": fmt.clean(reason, 240),
            }
        )
    errors = [
        fmt.clean(
            f"evaluation, {f.get('method')}, {f.get('dataset')}: {f.get('id', '')}: {f.get('reason', '')}",
            300,
        )
        for f in data.evaluation_failures
    ]
    for event in data.events:
        if event.get("event") in ("error", "failed", "failure"):
            what = event.get("error") or event.get("message") or event.get("reason") or "no message"
            errors.append(fmt.clean(f"{event.get('stage', 'run')}: {what}", 300))
    parts = []
    if data.events:
        parts.append("no stage failed")
    if (data.folder / "discover").is_dir():
        parts.append("no input was quarantined")
    if shards is not None:
        parts.append("every shard could be read")
    none = (", ".join(parts).capitalize() or "No log was found, so nothing can be said") + "."
    notes = list(dict.fromkeys(data.notes))
    more = len(notes) - MAX_ROWS
    return {
        "quarantine": rows,
        "more": max(len(refused) - MAX_ROWS, 0),
        "errors": errors[:MAX_ROWS],
        "notes": notes[:MAX_ROWS] + ([f"and {more:,} more"] if more > 0 else []),
        "none": none,
    }


def configuration(data: RunData) -> dict[str, Any] | None:
    """Values with their origins; defaults are folded away."""
    entries = [(key, value) for key, value in flatten(data.config)]
    if not entries:
        return None
    changed: list[dict[str, str]] = []
    rest: list[dict[str, str]] = []
    for key, value in entries[:5000]:
        origin = data.origins.get(key) or next(
            (data.origins[p] for p in _parents(key) if p in data.origins), ""
        )
        row = {"key": fmt.clean(key, 100), "value": plain(value), "origin": fmt.clean(origin, 80)}
        (changed if origin and origin != "default" else rest).append(row)
    if not data.origins:
        return {"changed": [], "rest": rest, "rest_title": f"All {len(rest)} values", "intro": ""}
    intro = f"{len(changed)} values were set; everything else has its default."
    return {
        "changed": changed,
        "rest": rest,
        "rest_title": f"{len(rest)} values at their default",
        "intro": intro,
    }


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def plain(value: Any, limit: int = 200) -> str:
    """A short printable form of a JSON value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return fmt.number(value, 6)
    if isinstance(value, list | tuple):
        return fmt.clean(", ".join(plain(v, limit) for v in value[:60]), limit) or "(empty)"
    if isinstance(value, dict):
        return (
            fmt.clean("; ".join(f"{k}: {plain(v, limit)}" for k, v in list(value.items())[:60]), limit)
            or "(empty)"
        )
    return fmt.clean(value, limit) or '""'
