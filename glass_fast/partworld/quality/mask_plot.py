"""Mask quality as one picture of small charts: a panel a factor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import escape

from glass_fast.data.atomic import make_directory, write_bytes
from glass_fast.report.charts import Bar, Series, bar_chart, line_chart

_WIDTH, _HEIGHT, _HEAD = 400, 250, 78
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_ONE, _OTHER = _COLOURS[:2]
_LINES = (
    ("timestep", "timestep of the noise"),
    ("tau", "tau (power of the self-attention)"),
    ("threshold", "threshold"),
    ("refine iterations", "passes of the refinement"),
)
_BARS = (
    "timestep range",
    "cross layers",
    "self layers",
    "resolution",
    "options",
    "refine size",
    "refine weight",
)


def write_plot(path: Path, masks: dict[str, Any]) -> None:
    """Write the SVG.

    Args:
        path: of the picture.
        masks: what :func:`glass_fast.partworld.quality.masks.measure_masks` returned.
    """
    make_directory(Path(path).parent)
    write_bytes(path, plot(masks["rows"]).encode())


def plot(rows: Sequence[dict[str, Any]], columns: int = 3) -> str:
    """All panels as one SVG text.

    Blue: at the threshold of the preset. Orange: at the best threshold (hindsight). Panels without rows are left out.
    """
    noised = [row for row in rows if row["source"].startswith("noised")]
    charts = [
        chart
        for chart in (
            *(_line_panel(noised, factor, label) for factor, label in _LINES),
            _grid_panel(noised),
            *(_bar_panel(noised, factor) for factor in _BARS),
            _steps_panel([row for row in rows if row["factor"] == "steps"]),
        )
        if chart
    ]
    width, height = columns * _WIDTH, _HEAD + -(-len(charts) // columns) * _HEIGHT
    size = f'width="{width}" height="{height}"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size} font-family="sans-serif">',
        f'<title>Quality of captured masks</title><rect {size} fill="#fff"/>',
        f'<text x="10" y="22" font-size="16" font-weight="600" fill="#1b2432">{escape(_title(noised))}</text>',
        _legend(rows),
    ]
    for index, chart in enumerate(charts):
        x, y = index % columns * _WIDTH, _HEAD + index // columns * _HEIGHT
        # charts are inline elements of a page; in a picture of their own they need a place
        place = f'<svg x="{x + 6}" y="{y}" height="{_HEIGHT - 14}" preserveAspectRatio="xMinYMin" '
        out.append(chart.replace("<svg ", place, 1))
    return "\n".join([*out, "</svg>", ""])


def _title(noised: Sequence[dict[str, Any]]) -> str:
    found = {row["factor"]: row for row in reversed(noised)}
    said = "Class mIoU of captured masks on noised renders"
    if "preset" in found:
        said += f": preset {found['preset']['class_miou']:.3f} of {found['preset']['pictures']} scenes"
    if "ceiling" in found:
        said += f", {found['ceiling']['value']} {found['ceiling']['class_miou']:.3f}"
    return said


def _legend(rows: Sequence[dict[str, Any]]) -> str:
    entries = [(_ONE, "at the preset's threshold"), (_OTHER, "at the best threshold (hindsight)")]
    x, parts = 10, []
    for colour, name in entries:
        parts.append(f'<rect x="{x}" y="34" width="12" height="12" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="44" font-size="12" fill="#667184">{escape(name)}</text>')
        x += 40 + 7 * len(name)
    x = 10
    for names, title in ((_taus(rows), "tau"), (_ranges(rows), "steps: t")):
        for colour, name in zip(_COLOURS, names, strict=False):
            label = f"{title} {name}"
            parts.append(f'<rect x="{x}" y="58" width="12" height="3" fill="{colour}"/>')
            parts.append(f'<text x="{x + 16}" y="64" font-size="11" fill="#667184">{escape(label)}</text>')
            x += 32 + int(6.4 * len(label))
    return "".join(parts)


def _line_panel(rows: Sequence[dict[str, Any]], factor: str, label: str) -> str:
    chosen = sorted((row for row in rows if row["factor"] == factor), key=lambda row: float(row["value"]))
    if not chosen:
        return ""
    xs = [float(row["value"]) for row in chosen]
    series = [Series("preset's threshold", xs, [row["class_miou"] for row in chosen], _ONE)]
    if all(row["best_class_miou"] is not None for row in chosen):
        series.append(Series("best threshold", xs, [row["best_class_miou"] for row in chosen], _OTHER))
    return str(line_chart(series, factor, label, width=_WIDTH - 20, height=_HEIGHT - 20))


def _taus(rows: Sequence[dict[str, Any]]) -> list[str]:
    found = dict.fromkeys(str(row["tau"]) for row in rows if row["factor"] == "tau x threshold")
    return [tau for tau in found if tau in ("0", "1", "2", "4", "8")]


def _grid_panel(rows: Sequence[dict[str, Any]]) -> str:
    series = []
    for colour, tau in zip(_COLOURS, _taus(rows), strict=False):
        chosen = [row for row in rows if row["factor"] == "tau x threshold" and str(row["tau"]) == tau]
        xs = [float(row["threshold"]) for row in chosen]
        series.append(Series(f"tau {tau}", xs, [row["class_miou"] for row in chosen], colour))
    return str(line_chart(series, "tau x threshold", "threshold", width=_WIDTH - 20, height=_HEIGHT - 20))


def _bar_panel(rows: Sequence[dict[str, Any]], factor: str) -> str:
    chosen = [row for row in rows if row["factor"] == factor]
    bars = []
    for row in chosen:
        bars.append(Bar(row["value"], row["class_miou"], _ONE))
        if len(chosen) <= 7:
            bars.append(Bar("", row["best_class_miou"], _OTHER))
    step = min(25, (_HEIGHT - 50) // max(len(bars), 1))
    return str(bar_chart(bars, factor, digits=3, high=1.0, width=_WIDTH - 20, label_width=120, row=step))


def _ranges(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["timesteps"] for row in rows if row["factor"] == "steps"))


def _steps_panel(rows: Sequence[dict[str, Any]]) -> str:
    series = []
    for colour, times in zip(_COLOURS, _ranges(rows), strict=False):
        chosen = [row for row in rows if row["timesteps"] == times]
        xs = [float(row["steps"]) for row in chosen]
        series.append(Series(times, xs, [row["class_miou"] for row in chosen], colour))
    return str(
        line_chart(
            series, "steps, on generated pictures", "denoising steps", width=_WIDTH - 20, height=_HEIGHT - 20
        )
    )
