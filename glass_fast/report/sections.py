"""Sections about data and results: what was found in a run folder as plain values for the template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glass_fast.report import charts
from glass_fast.report import text as fmt
from glass_fast.report.collect import RunData, as_dict, flatten
from glass_fast.report.compare import (
    COUNTED,
    FOREGROUND,
    JUDGED,
    REFERENCE,
    Judgement,
    Table,
    headline,
    metric_label,
)
from glass_fast.report.palette import label_colour, method_colour, method_label, method_order
from glass_fast.report.run_sections import MAX_ROWS, device_name, plain, stages
from glass_fast.report.samples import ShardSummary

ACCENT = "#0072b2"


def comparison(tables: Sequence[Table], judgement: Judgement) -> dict[str, Any] | None:
    """Charts and tables of all data sets and protocols; the first protocol of each data set stands open."""
    if not tables:
        return None
    groups: list[dict[str, Any]] = []
    for dataset in dict.fromkeys(table.dataset for table in tables):
        own = [table for table in tables if table.dataset == dataset]
        shown = headline(own) or own[0]
        pictured = [metric for metric in JUDGED if metric in shown.metrics]
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
    """One protocol: tables of objects only, of background counted, of whatever else was measured."""
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
        rows.append(
            {
                "key": method,
                "label": label,
                "colour": method_colour(method),
                "seeds": table.seeds(method),
                "cells": cells,
            }
        )
    return {
        "title": title,
        "metrics": [fmt.clean(metric_label(metric), 40) for metric in metrics],
        "rows": rows,
    }


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
            change = (
                f" ({fmt.signed_percent(overlap.gain)} against unguided)" if overlap.gain is not None else ""
            )
            return (
                f"{method_label(guided).capitalize()} slots on {fmt.clean(table.dataset, 60)}: "
                f"mIoU_i without background {fmt.percent(overlap.mean)}{change}, "
                f"FG-ARI {fmt.percent(ari.mean)} "
                f"(unguided {fmt.percent(table.mean(REFERENCE, 'fg_ari'))}). {judgement.headline}."
            )
    if tables:
        methods, sets = len({m for t in tables for m in t.rows}), len({t.dataset for t in tables})
        counted = f"{methods} method{'s' * (methods > 1)} on {sets} data set{'s' * (sets > 1)}"
        return f"Evaluated {counted}. {judgement.headline}."
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
        method = next(
            (m for m in (table.guided(), REFERENCE) if m and table.mean(m, metric) is not None), None
        )
        if method is None:
            continue
        where = " without background" if metric == "miou_i_fg" else ""
        reference = table.mean(REFERENCE, metric)
        note = method_label(method)
        if method != REFERENCE and reference is not None:
            note += f"; unguided {fmt.percent(reference)}"
        out.append(
            {
                "label": f"{metric_label(metric)}{where}",
                "value": fmt.percent(table.mean(method, metric)),
                "note": note,
            }
        )
    if data.models:
        names = dict.fromkeys(method_label(m.method) for m in data.models)
        out.append(
            {
                "label": "Models trained",
                "value": str(len(data.models)),
                "note": fmt.clean(", ".join(names), 90),
            }
        )
    total = sum(row["seconds"] for row in stages(data) if row["seconds"] is not None)
    if total > 0:
        out.append({"label": "Time of all stages", "value": fmt.seconds(total), "note": device_name(data)})
    return out


def funnel(data: RunData, shards: ShardSummary | None, reject: Sequence[str]) -> dict[str, Any] | None:
    """Prompts -> planned -> made -> kept, and the flags behind the difference."""
    prompts = data.prompts.total if data.prompts is not None else None
    planned = _planned(data, shards)
    inputs = prompts + len(data.rejects) if prompts is not None and data.rejects else None
    steps: list[tuple[str, int | None]] = [("inputs", inputs), ("prompts", prompts), ("planned", planned)]
    if shards is not None:
        steps += [
            ("made", shards.total),
            ("kept", shards.total - shards.rejected),
            ("unflagged", shards.unflagged),
        ]
    bars = [charts.Bar(label, float(value), ACCENT) for label, value in steps if value is not None]
    if not bars or (shards is None and prompts is None):
        return None
    text = []
    if data.prompts is not None and data.prompts.total:
        sources = ", ".join(
            f"{fmt.clean(name, 40)} {fmt.count(n)}" for name, n in data.prompts.sources.most_common(6)
        )
        text.append(
            f"Prompts by source: {sources or 'not stated'}; "
            f"{fmt.count(data.prompts.without_class)} without a class."
        )
    if shards is not None and shards.scanned:
        text.append(
            f"Over {fmt.count(shards.scanned)} masks: {fmt.percent(shards.background_share)} % of the pixels "
            f"are background, {fmt.percent(shards.uncertain_share)} % uncertain."
        )
    if shards is not None and not shards.complete:
        text.append("Synthesis is not finished: only committed shards are counted.")
    flags = []
    for name, number in shards.flags.most_common(MAX_ROWS) if shards is not None else []:
        effect = "dropped before training" if name in reject else "kept, counted"
        share = f"{fmt.percent(number / shards.total)} %" if shards is not None and shards.total else fmt.DASH
        flags.append({"name": fmt.clean(name, 40), "count": number, "share": share, "effect": effect})
    chart = charts.bar_chart(bars, "Prompts and pictures", digits=0)
    return {
        "chart": chart,
        "flags": flags,
        "made": shards.total if shards is not None else 0,
        "text": " ".join(text),
    }


def _planned(data: RunData, shards: ShardSummary | None) -> int | None:
    plan = as_dict(shards.manifest.get("plan")) if shards is not None else {}
    for value in (plan.get("num"), as_dict(data.config.get("synthesis")).get("num")):
        if fmt.is_number(value):
            return int(value)
    return None


def classes(data: RunData, shards: ShardSummary | None) -> dict[str, Any] | None:
    """Prompted against obtained, mask area, and the evaluation's figures per class."""
    prompted = (
        shards.prompted
        if shards is not None
        else data.prompts.per_class
        if data.prompts is not None
        else None
    )
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
            f"Obtained: share of those whose mask contains it; area: mean share of the picture there "
            f"({fmt.count(shards.scanned)} of {fmt.count(shards.total)} masks read)."
        )
    if scored:
        caption.append("mBO: best overlap of the objects of the class, percent points, mean over seeds.")
    if len(names) > MAX_ROWS:
        caption.append(f"The first {MAX_ROWS} of {len(names)} classes are shown.")
    return {"caption": " ".join(caption), "heads": heads, "rows": rows}


def _class_scores(data: RunData) -> dict[str, dict[str, float]]:
    """Column heading -> class -> best overlap (instance, else class masks), over seeds, first data set."""
    scores = [
        s for s in data.scores if s.per_class and s.method in (REFERENCE, "semantic", "glass", "upper_bound")
    ]
    if not scores:
        return {}
    chosen = (scores[0].dataset, scores[0].protocol)
    scores = [s for s in scores if (s.dataset, s.protocol) == chosen]
    figures = [v for s in scores for v in s.per_class.values() if isinstance(v, dict)]
    key, label = next(
        (
            (k, n)
            for k, n in (("mbo_i", "mBO_i"), ("mbo_c", "mBO_c"))
            if any(fmt.is_number(f.get(k)) for f in figures)
        ),
        ("", ""),
    )
    found: dict[str, dict[str, list[float]]] = {}
    for method in method_order({s.method for s in scores}):
        row = found.setdefault(f"{label} {method_label(method)}", {})
        for score in (s for s in scores if s.method == method):
            for name, value in score.per_class.items():
                if fmt.is_number(as_dict(value).get(key)):
                    row.setdefault(str(name), []).append(float(value[key]))
    return {head: {name: sum(v) / len(v) for name, v in row.items()} for head, row in found.items() if row}
