"""Turns what was found in a run folder into the plain values that the template prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glass_fast.report import charts
from glass_fast.report import text as fmt
from glass_fast.report.collect import ModelRun, RunData, as_dict, flatten
from glass_fast.report.compare import COUNTED, FOREGROUND, JUDGED, REFERENCE, Judgement, Table, headline, metric_label
from glass_fast.report.palette import label_colour, method_colour, method_label, method_order
from glass_fast.report.samples import ShardSummary

MAX_ROWS = 200
ACCENT = "#0072b2"
_NO_CURVE = {"step", "time", "seconds", "elapsed", "elapsed_s", "epoch", "eta", "eta_s", "timestamp", "wall_s"}
_STAGE_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#7a5195", "#5f6b7a", "#9aa4b2")


def comparison(tables: Sequence[Table], judgement: Judgement) -> dict[str, Any] | None:
    """Charts and tables of all data sets and protocols; the first protocol of each data set stands open."""
    if not tables:
        return None
    groups: list[dict[str, Any]] = []
    for dataset in dict.fromkeys(table.dataset for table in tables):
        own = [table for table in tables if table.dataset == dataset]
        shown = headline(own) or own[0]
        pictured = [metric for metric in (*JUDGED, "miou_i_bg") if metric in shown.metrics]
        groups.append(
            {
                "dataset": fmt.clean(dataset, 60),
                "images": shown.images,
                "charts": [_method_chart(shown, metric) for metric in pictured],
                "open": _protocol(shown),
                "folded": [_protocol(table) for table in own if table is not shown],
            }
        )
    has_bound = any("upper_bound" in table.rows for table in tables)
    return {"judgement": judgement, "groups": groups, "has_bound": has_bound}


def _method_chart(table: Table, metric: str) -> Any:
    bars = []
    for method, row in table.rows.items():
        cell = row.get(metric)
        if cell is not None:
            note = fmt.signed_percent(cell.gain, 0) if cell.gain is not None else ""
            bars.append(charts.Bar(method_label(method), cell.mean, method_colour(method), cell.values, note))
    where = "" if metric == "fg_ari" else ", background counted" if metric in COUNTED else ", objects only"
    return charts.bar_chart(bars, f"{metric_label(metric)}{where}", scale=100)


def _protocol(table: Table) -> dict[str, Any]:
    """One protocol: a table of objects only, one with background counted, one of whatever else was measured."""
    known = {**FOREGROUND, **COUNTED}
    blocks = (
        ("Objects only: background is left out", [m for m in table.metrics if m in FOREGROUND]),
        ("Background counted as one more segment", [m for m in table.metrics if m in COUNTED]),
        ("Further figures", [m for m in table.metrics if m not in known]),
    )
    return {
        "name": fmt.clean(table.protocol, 40),
        "label": fmt.clean(table.label, 400),
        "tables": [_method_table(table, title, metrics) for title, metrics in blocks if metrics],
        "fields": [(fmt.clean(key, 60), plain(value)) for key, value in flatten(table.fields)],
        "spread": _spread(table),
    }


def _spread(table: Table) -> str:
    if any(table.seeds(method) > 1 for method in table.rows):
        return "± sample standard deviation over seeds (with one seed: standard error over images)"
    has_error = any(cell.spread is not None for row in table.rows.values() for cell in row.values())
    return "± standard error over images" if has_error else ""


def _method_table(table: Table, title: str, metrics: Sequence[str]) -> dict[str, Any]:
    rows = []
    for method, row in table.rows.items():
        cells: list[dict[str, Any] | None] = []
        for metric in metrics:
            cell = row.get(metric)
            cells.append(
                None
                if cell is None
                else {
                    "mean": fmt.percent(cell.mean),
                    "spread": fmt.percent(cell.spread) if cell.spread is not None else "",
                    "gain": fmt.signed_percent(cell.gain) if cell.gain is not None else "",
                    "sign": _sign(cell.gain),
                    "best": cell.best,
                }
            )
        label = fmt.clean(method_label(method), 40)
        rows.append({"key": method, "label": label, "colour": method_colour(method), "seeds": table.seeds(method), "cells": cells})
    return {"title": title, "metrics": [fmt.clean(metric_label(metric), 40) for metric in metrics], "rows": rows}


def _sign(gain: float | None) -> str:
    """CSS class of a gain; below the printed digit it is neither up nor down."""
    if gain is None or abs(gain) < 0.0005:
        return "even"
    return "up" if gain > 0 else "down"


def result_line(tables: Sequence[Table], judgement: Judgement, shards: ShardSummary | None) -> str:
    """One sentence with the outcome of the run."""
    table = headline(tables)
    guided = table.guided() if table is not None else None
    if table is not None and guided is not None:
        overlap, ari = (table.rows[guided].get(metric) for metric in ("miou_i_fg", "fg_ari"))
        if overlap is not None and ari is not None:
            change = f" ({fmt.signed_percent(overlap.gain)} against unguided)" if overlap.gain is not None else ""
            return (
                f"{method_label(guided).capitalize()} slots on {fmt.clean(table.dataset, 60)}: mIoU_i without background "
                f"{fmt.percent(overlap.mean)}{change}, FG-ARI {fmt.percent(ari.mean)} "
                f"(unguided {fmt.percent(table.mean(REFERENCE, 'fg_ari'))}). {judgement.headline}."
            )
    if tables:
        methods, sets = len({m for t in tables for m in t.rows}), len({t.dataset for t in tables})
        return f"Evaluated {methods} method{'s' * (methods > 1)} on {sets} data set{'s' * (sets > 1)}. {judgement.headline}."
    if shards is not None:
        return f"{shards.total:,} pictures with masks were made; nothing was evaluated yet."
    return "This run has not produced results yet."


def facts(data: RunData, tables: Sequence[Table], shards: ShardSummary | None) -> list[dict[str, str]]:
    """The few figures at the top of the page."""
    out: list[dict[str, str]] = []
    if shards is not None:
        kept = shards.total - shards.rejected
        note = f"{kept:,} kept for training ({fmt.percent(kept / shards.total)} %)" if shards.total else ""
        out.append({"label": "Pictures with masks", "value": fmt.count(shards.total), "note": note})
    table = headline(tables) or (tables[0] if tables else None)
    for metric in ("miou_i_fg", "fg_ari") if table is not None else ():
        assert table is not None
        method = next((m for m in (table.guided(), REFERENCE) if m and table.mean(m, metric) is not None), None)
        if method is None:
            continue
        where = " without background" if metric == "miou_i_fg" else ""
        reference = table.mean(REFERENCE, metric)
        note = method_label(method)
        if method != REFERENCE and reference is not None:
            note += f"; unguided {fmt.percent(reference)}"
        out.append({"label": f"{metric_label(metric)}{where}", "value": fmt.percent(table.mean(method, metric)), "note": note})
    if data.models:
        names = dict.fromkeys(method_label(m.method) for m in data.models)
        out.append({"label": "Models trained", "value": str(len(data.models)), "note": fmt.clean(", ".join(names), 90)})
    total = sum(row["seconds"] for row in stages(data) if row["seconds"] is not None)
    if total > 0:
        device = fmt.clean(data.environment.get("device") or data.config.get("device") or "", 30)
        out.append({"label": "Time of all stages", "value": fmt.seconds(total), "note": f"device: {device}" if device else ""})
    return out


def funnel(data: RunData, shards: ShardSummary | None, reject: Sequence[str]) -> dict[str, Any] | None:
    """Prompts -> planned -> made -> kept, and the flags behind the difference."""
    prompts = data.prompts.total if data.prompts is not None else None
    planned = _planned(data, shards)
    steps: list[tuple[str, int | None]] = [("prompts", prompts), ("planned", planned)]
    if shards is not None:
        steps += [("made", shards.total), ("kept", shards.total - shards.rejected), ("without any flag", shards.unflagged)]
    bars = [charts.Bar(label, float(value), ACCENT) for label, value in steps if value is not None]
    if not bars or (shards is None and prompts is None):
        return None
    text = []
    if data.prompts is not None and data.prompts.total:
        sources = ", ".join(f"{fmt.clean(name, 40)} {fmt.count(n)}" for name, n in data.prompts.sources.most_common(6))
        text.append(f"Prompts by source: {sources or 'not stated'}; {fmt.count(data.prompts.without_class)} without a class.")
    if shards is not None and shards.scanned:
        text.append(
            f"Over {fmt.count(shards.scanned)} masks: {fmt.percent(shards.background_share)} % of the pixels are background, "
            f"{fmt.percent(shards.uncertain_share)} % uncertain."
        )
    if shards is not None and not shards.complete:
        text.append("Synthesis is not finished: only committed shards are counted.")
    flags = []
    for name, number in shards.flags.most_common(MAX_ROWS) if shards is not None else []:
        effect = "dropped before training" if name in reject else "kept, counted"
        share = f"{fmt.percent(number / shards.total)} %" if shards is not None and shards.total else fmt.DASH
        flags.append({"name": fmt.clean(name, 40), "count": number, "share": share, "effect": effect})
    chart = charts.bar_chart(bars, "Prompts and pictures", digits=0)
    return {"chart": chart, "flags": flags, "made": shards.total if shards is not None else 0, "text": " ".join(text)}


def _planned(data: RunData, shards: ShardSummary | None) -> int | None:
    plan = as_dict(shards.manifest.get("plan")) if shards is not None else {}
    for value in (plan.get("num"), as_dict(data.config.get("synthesis")).get("num")):
        if fmt.is_number(value):
            return int(value)
    return None


def classes(data: RunData, shards: ShardSummary | None) -> dict[str, Any] | None:
    """Prompted against obtained, mask area, and the evaluation's figures per class."""
    prompted = shards.prompted if shards is not None else data.prompts.per_class if data.prompts is not None else None
    scored = _class_scores(data)
    if not prompted and not scored:
        return None
    order = list(shards.labels) if shards is not None and shards.labels else []
    names = [n for n in order if (prompted and n in prompted) or n in {c for v in scored.values() for c in v}]
    names += sorted({*(prompted or {}), *(c for v in scored.values() for c in v)} - set(names))
    heads = ["Prompted"] if prompted else []
    scanned = shards is not None and shards.scanned > 0
    if scanned:
        heads += ["Obtained", "Mean area"]
    heads += list(scored)
    rows = []
    for name in names[:MAX_ROWS]:
        cells = [fmt.count(prompted.get(name, 0))] if prompted else []
        if scanned and shards is not None:
            asked = shards.scanned_prompted[name]
            cells.append(f"{fmt.percent(shards.scanned_obtained[name] / asked)} %" if asked else fmt.DASH)
            got = shards.scanned_obtained[name]
            cells.append(f"{fmt.percent(shards.scanned_area[name] / got)} %" if got else fmt.DASH)
        cells += [fmt.percent(values.get(name)) for values in scored.values()]
        colour = label_colour(order.index(name) + 1) if name in order else ""
        rows.append({"name": fmt.clean(name, 40), "colour": colour, "cells": cells})
    caption = []
    if prompted:
        caption.append("Prompted: pictures whose prompt names the class.")
    if scanned and shards is not None:
        caption.append(
            f"Obtained: share of those whose mask contains it; area: mean share of the picture where obtained "
            f"({fmt.count(shards.scanned)} of {fmt.count(shards.total)} masks read)."
        )
    if scored:
        caption.append("mBO: best overlap of the objects of the class in the evaluation, percent points, mean over seeds.")
    if len(names) > MAX_ROWS:
        caption.append(f"The first {MAX_ROWS} of {len(names)} classes are shown.")
    return {"caption": " ".join(caption), "heads": heads, "rows": rows}


def _class_scores(data: RunData) -> dict[str, dict[str, float]]:
    """Column heading -> class -> best overlap (instance masks, else class masks), mean over seeds, first data set."""
    scores = [s for s in data.scores if s.per_class and s.method in (REFERENCE, "semantic", "glass", "upper_bound")]
    if not scores:
        return {}
    chosen = (scores[0].dataset, scores[0].protocol)
    scores = [s for s in scores if (s.dataset, s.protocol) == chosen]
    figures = [v for s in scores for v in s.per_class.values() if isinstance(v, dict)]
    key, label = next(((k, n) for k, n in (("mbo_i", "mBO_i"), ("mbo_c", "mBO_c")) if any(fmt.is_number(f.get(k)) for f in figures)), ("", ""))
    found: dict[str, dict[str, list[float]]] = {}
    for method in method_order({s.method for s in scores}):
        row = found.setdefault(f"{label} {method_label(method)}", {})
        for score in (s for s in scores if s.method == method):
            for name, value in score.per_class.items():
                if fmt.is_number(as_dict(value).get(key)):
                    row.setdefault(str(name), []).append(float(value[key]))
    return {head: {name: sum(v) / len(v) for name, v in row.items()} for head, row in found.items() if row}


def training(models: Sequence[ModelRun]) -> dict[str, Any] | None:
    """Curves of every numeric log field, one chart each, and a table of the trained models."""
    if not models:
        return None
    keys: dict[str, None] = {}
    for model in models:
        for entry in (*model.log[:50], *model.log[-1:]):
            keys.update({k: None for k, v in entry.items() if fmt.is_number(v) and k.lower() not in _NO_CURVE})
    ranked = sorted(keys, key=lambda k: (not k.startswith("loss"), k != "loss", list(keys).index(k)))
    pictures = []
    for key in ranked[:9]:
        series = []
        for model in models:
            points = [
                (float(e.get("step", i)), float(e[key])) for i, e in enumerate(model.log) if fmt.is_number(e.get(key)) and fmt.is_number(e.get("step", i))
            ]
            if points:
                xs, ys = zip(*points, strict=True)
                series.append(charts.Series(fmt.clean(model.folder, 40), xs, ys, method_colour(model.method)))
        values = [v for s in series for v in s.ys]
        spread = values and min(values) > 0 and max(values) / min(values) > 30
        chart = charts.line_chart(series, fmt.clean(key.replace("_", " "), 40), "step", log_y=bool(spread))
        if chart:
            pictures.append(chart)
    wanted = (("steps", ("steps", "step")), ("learning rate", ("learning_rate",)), ("time", ("seconds", "elapsed_s", "train_seconds")))
    heads, rows = [], []
    for head, names in wanted:
        if any(_find(m.record, names) is not None for m in models):
            heads.append(head)
    for model in models:
        cells = []
        for head, names in wanted:
            if head in heads:
                value = _find(model.record, names)
                cells.append(fmt.seconds(value) if head == "time" else fmt.number(value) if value is not None else fmt.DASH)
        last = next((e.get("loss") for e in reversed(model.log) if fmt.is_number(e.get("loss"))), None)
        cells.append(fmt.number(last) if last is not None else fmt.DASH)
        rows.append({"name": fmt.clean(model.folder, 60), "colour": method_colour(model.method), "cells": cells})
    legend = [(fmt.clean(method_label(m), 40), method_colour(m)) for m in method_order({model.method for model in models})]
    return {"charts": pictures, "legend": legend, "heads": [*heads, "last loss"], "rows": rows[:MAX_ROWS]}


def _find(record: dict[str, Any], names: Sequence[str]) -> Any:
    """First number stored under one of ``names``, at the top or one level below ``config`` or ``training``."""
    for part in (record, as_dict(record.get("training")), as_dict(record.get("config"))):
        for name in names:
            if fmt.is_number(part.get(name)):
                return part[name]
    return None


def stages(data: RunData) -> list[dict[str, Any]]:
    """Events of the run log folded to one row per stage, in order of appearance; the last state counts."""
    rows: dict[str, dict[str, Any]] = {}
    for event in data.events:
        name = event.get("stage")
        if not isinstance(name, str):
            continue
        row = rows.setdefault(name, {"stage": name, "state": "", "seconds": None, "items": None, "rate": None, "unit": "", "details": {}})
        row["state"] = str(event.get("event", row["state"]))
        if fmt.is_number(event.get("seconds")):
            # A resumed stage has several attempts; its time is the sum of them.
            row["seconds"] = (row["seconds"] or 0.0) + float(event["seconds"])
        stats = {**as_dict(event.get("stats")), **as_dict(event.get("details")), **event}
        for target, names in (("items", ("items", "count", "samples", "images", "made", "num")), ("rate", ("rate", "per_second", "images_per_second"))):
            value = next((stats[n] for n in names if fmt.is_number(stats.get(n))), None)
            row[target] = value if value is not None else row[target]
        row["unit"] = str(stats.get("unit", row["unit"]))
        skip = {"stage", "event", "seconds", "time", "stats", "details", "items", "rate", "unit", "timestamp", "host", "pid"}
        row["details"].update({k: v for k, v in stats.items() if k not in skip and (fmt.is_number(v) or isinstance(v, str | bool))})
    return list(rows.values())


def speed(data: RunData) -> dict[str, Any] | None:
    """Time and rate of every stage."""
    found = stages(data)
    if not found:
        return None
    rows = []
    for row in found[:MAX_ROWS]:
        rate = row["rate"]
        if rate is None and fmt.is_number(row["items"]) and row["seconds"]:
            rate = row["items"] / row["seconds"]
        unit = f" {fmt.clean(row['unit'], 16)}" if row["unit"] else ""
        details = "; ".join(f"{fmt.clean(k, 40)} {plain(v, 60)}" for k, v in list(row["details"].items())[:8])
        rows.append(
            {
                "stage": fmt.clean(row["stage"], 60),
                "state": fmt.clean(row["state"], 40),
                "time": fmt.seconds(row["seconds"]),
                "items": fmt.count(row["items"]) + (unit if row["items"] is not None else ""),
                "rate": f"{fmt.number(float(rate), 3)}/s" if rate is not None else fmt.DASH,
                "details": details,
            }
        )
    parts = [(r["stage"], r["seconds"] or 0.0, _STAGE_COLOURS[i % len(_STAGE_COLOURS)]) for i, r in enumerate(found)]
    chart = charts.share_bar([(fmt.clean(a, 40), b, c) for a, b, c in parts], "Share of the time per stage")
    return {"rows": rows, "chart": chart, "caption": "Wall time from run.jsonl, summed over restarts. Figures of this machine, see Environment."}


def failures(data: RunData, shards: ShardSummary | None) -> dict[str, Any]:
    """Quarantined inputs, error events, and artefacts that could not be read."""
    rows = []
    for record in data.quarantine[:MAX_ROWS]:
        name = record.get("file") or record.get("image") or record.get("path") or record.get("id") or ""
        # Only the file name: a report is passed on, folders of its maker are nobody's business.
        name = str(name).replace("\\", "/").rsplit("/", 1)[-1]
        reason = record.get("reason") or record.get("message") or record.get("error") or ""
        rows.append({"name": fmt.clean(name, 120), "code": fmt.clean(record.get("code"), 20), "reason": fmt.clean(reason, 240)})
    errors = [
        fmt.clean(f"evaluation of {f.get('method')} on {f.get('dataset')}: {f.get('id', '')}: {f.get('reason', '')}", 300)
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
        "more": max(len(data.quarantine) - MAX_ROWS, 0),
        "errors": errors[:MAX_ROWS],
        "notes": notes[:MAX_ROWS] + ([f"and {more:,} more"] if more > 0 else []),
        "none": none,
    }


def configuration(data: RunData) -> dict[str, Any] | None:
    """Values with their origins; defaults are folded away."""
    entries = [(key, value) for key, value in flatten(data.config)]
    if not entries:
        return None
    changed, rest = [], []
    for key, value in entries[:5000]:
        origin = data.origins.get(key) or next((data.origins[p] for p in _parents(key) if p in data.origins), "")
        row = {"key": fmt.clean(key, 100), "value": plain(value), "origin": fmt.clean(origin, 80)}
        (changed if origin and origin != "default" else rest).append(row)
    if not data.origins:
        return {"changed": [], "rest": rest, "rest_title": f"All {len(rest)} values", "intro": ""}
    intro = f"{len(changed)} values were set; everything else has its default."
    return {"changed": changed, "rest": rest, "rest_title": f"{len(rest)} values at their default", "intro": intro}


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def pairs(value: dict[str, Any]) -> list[tuple[str, str]]:
    """Flattened keys and printable values of a record."""
    return [(fmt.clean(key, 80), plain(inner)) for key, inner in list(flatten(value))[:MAX_ROWS]]


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
        return fmt.clean("; ".join(f"{k}: {plain(v, limit)}" for k, v in list(value.items())[:60]), limit) or "(empty)"
    return fmt.clean(value, limit) or '""'
