"""Inline SVG charts without scripts: every text is escaped, every picture has a title and a description."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from glass_fast.report import text as fmt

INK = "#1b2432"
MUTED = "#667184"
RULE = "#e4e8ef"
_FONT = 'font-family="inherit"'


@dataclass(frozen=True)
class Series:
    """One line of a line chart; the legend stands outside, because several charts share it."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str


@dataclass(frozen=True)
class Bar:
    """One bar: its value, the single runs behind it (drawn as dots) and a note printed after the value."""

    label: str
    value: float
    colour: str
    points: Sequence[float] = field(default_factory=tuple)
    note: str = ""


def nice_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Round tick positions (1, 2, 2.5 or 5 times a power of ten) that lie within ``[low, high]``.

    Raises:
        ValueError: a bound is not finite or ``low > high``.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ValueError(f"ticks need finite ordered bounds, got {low} and {high}")
    if low == high:
        return [low]
    raw = (high - low) / max(target, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def thin(xs: Sequence[float], ys: Sequence[float], limit: int = 300) -> tuple[list[float], list[float]]:
    """Finite points only, averaged in ``limit`` equal runs, so that a long log stays a small picture."""
    pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(pairs) <= limit:
        return [x for x, _ in pairs], [y for _, y in pairs]
    out_x: list[float] = []
    out_y: list[float] = []
    for index in range(limit):
        part = pairs[index * len(pairs) // limit : (index + 1) * len(pairs) // limit]
        out_x.append(sum(x for x, _ in part) / len(part))
        out_y.append(sum(y for _, y in part) / len(part))
    return out_x, out_y


def _text(
    x: float,
    y: float,
    content: str,
    *,
    size: int = 11,
    anchor: str = "start",
    colour: str = MUTED,
    bold: bool = False,
) -> Markup:
    weight = Markup(' font-weight="600"') if bold else Markup("")
    return Markup('<text x="{:.1f}" y="{:.1f}" font-size="{}" text-anchor="{}" fill="{}"{}>{}</text>').format(
        x, y, size, anchor, colour, weight, content
    )


def _open(width: int, height: int, title: str, description: str) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {}" width="{}" role="img" ' + _FONT + "><title>{}</title><desc>{}</desc>"
    ).format(width, height, width, title, description)


def line_chart(
    series: Sequence[Series],
    title: str,
    x_label: str,
    *,
    width: int = 380,
    height: int = 220,
    log_y: bool = False,
) -> Markup:
    """Lines over a common x axis.

    Args:
        series: lines; non-finite points are left out, long ones are thinned to 300 points.
        title: printed above the picture and read by screen readers.
        x_label: printed under the x axis.
        width: of the view box, in CSS pixels.
        height: of the view box, in CSS pixels.
        log_y: logarithmic y axis; used only when every value is positive.

    Returns:
        The SVG element, or empty markup when no finite point exists.
    """
    lines = [(s, *thin(s.xs, s.ys)) for s in series]
    lines = [(s, xs, ys) for s, xs, ys in lines if xs]
    if not lines:
        return Markup("")
    low_x, high_x = min(min(xs) for _, xs, _ in lines), max(max(xs) for _, xs, _ in lines)
    low_y, high_y = min(min(ys) for _, _, ys in lines), max(max(ys) for _, _, ys in lines)
    log_y = log_y and low_y > 0
    if high_x == low_x:
        high_x = low_x + 1
    to_axis = math.log10 if log_y else float
    bottom, top = to_axis(low_y), to_axis(high_y)
    margin = 0.06 * (top - bottom) or max(abs(top) * 0.05, 0.5)
    bottom, top = bottom - margin, top + margin
    left, right, head, foot = 52, 14, 30, 40

    def at_x(value: float) -> float:
        return left + (value - low_x) / (high_x - low_x) * (width - left - right)

    def at_y(value: float) -> float:
        return head + (top - to_axis(value)) / (top - bottom) * (height - head - foot)

    ends = "; ".join(f"{s.name} ends at {fmt.number(ys[-1])}" for s, _, ys in lines[:12])
    out = [
        _open(width, height, title, f"Lines over {x_label}: {ends}."),
        _text(left, 16, title, size=13, colour=INK, bold=True),
    ]
    for tick in nice_ticks(bottom, top, 4):
        value = 10**tick if log_y else tick
        out.append(
            Markup('<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}" stroke="{}"/>').format(
                left, width - right, at_y(value), at_y(value), RULE
            )
        )
        out.append(_text(left - 6, at_y(value) + 4, fmt.number(round(value, 10), 3), anchor="end"))
    for tick in nice_ticks(low_x, high_x, 5):
        out.append(
            _text(
                at_x(tick),
                height - foot + 16,
                fmt.number(int(tick) if tick == int(tick) else tick),
                anchor="middle",
            )
        )
    out.append(_text((left + width - right) / 2, height - 6, x_label, anchor="middle"))
    for line, xs, ys in lines:
        points = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in zip(xs, ys, strict=True))
        if len(xs) == 1:
            out.append(
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>').format(
                    at_x(xs[0]), at_y(ys[0]), line.colour
                )
            )
        else:
            out.append(
                Markup(
                    '<polyline fill="none" stroke="{}" stroke-width="1.6" stroke-linejoin="round" '
                    'stroke-opacity="0.85" points="{}"/>'
                ).format(line.colour, points)
            )
    out.append(Markup("</svg>"))
    return Markup("").join(out)


def bar_chart(
    bars: Sequence[Bar],
    title: str,
    *,
    scale: float = 1.0,
    digits: int = 1,
    high: float | None = None,
    width: int = 380,
    label_width: int = 104,
    row: int = 25,
) -> Markup:
    """Horizontal bars from zero, with a dot per single run.

    Args:
        bars: rows from top to bottom; a non-finite value gives a row without a bar.
        title: printed above the bars; an empty one leaves no room for it.
        scale: factor before printing (100 shows fractions as points).
        digits: decimals of the printed value.
        high: value at the right end; default: the largest value and dot.
        width: of the view box, in CSS pixels.
        label_width: room for the labels, in CSS pixels.
        row: height of a bar with its gap, in CSS pixels.

    Returns:
        The SVG element, or empty markup without bars.
    """
    if not bars:
        return Markup("")
    values = [v for bar in bars for v in (bar.value, *bar.points) if fmt.is_number(v)]
    top = high if high is not None else max([*values, 0.0])
    top = top if top > 0 else 1.0
    head = 30 if title else 4
    height = head + row * len(bars) + 4
    room = width - label_width - max(64, 7 * max(len(bar.note) for bar in bars) + 58)

    def shown(value: float) -> str:
        return f"{value * scale:,.{digits}f}" if fmt.is_number(value) else fmt.DASH

    said = "; ".join(f"{bar.label} {shown(bar.value)}{' ' + bar.note if bar.note else ''}" for bar in bars)
    out = [_open(width, height, title or "Bars", said + ".")]
    if title:
        out.append(_text(0, 16, title, size=13, colour=INK, bold=True))
    for index, bar in enumerate(bars):
        y = head + index * row
        out.append(_text(label_width - 8, y + row / 2 + 4, bar.label, anchor="end", size=12, colour=INK))
        length = 0.0
        if fmt.is_number(bar.value):
            length = max(0.0, min(bar.value / top, 1.0)) * room
            out.append(
                Markup('<rect x="{}" y="{:.1f}" width="{:.1f}" height="{}" rx="2" fill="{}"/>').format(
                    label_width, y + 4, max(length, 1.0), row - 8, bar.colour
                )
            )
        for point in bar.points if len(bar.points) > 1 else ():
            if fmt.is_number(point):
                out.append(
                    Markup(
                        '<circle cx="{:.1f}" cy="{:.1f}" r="2.6" fill="#fff" stroke="{}" stroke-width="1.2"/>'
                    ).format(label_width + max(0.0, min(point / top, 1.0)) * room, y + row / 2, INK)
                )
        furthest = max(
            [
                length,
                *(min(p / top, 1.0) * room for p in bar.points if fmt.is_number(p) and len(bar.points) > 1),
            ]
        )
        out.append(
            _text(
                label_width + furthest + 8, y + row / 2 + 4, shown(bar.value), size=12, colour=INK, bold=True
            )
        )
        if bar.note:
            out.append(_text(width, y + row / 2 + 4, bar.note, anchor="end", size=11))
    out.append(Markup("</svg>"))
    return Markup("").join(out)


def share_bar(
    parts: Sequence[tuple[str, float, str]], title: str, *, width: int = 960, height: int = 46
) -> Markup:
    """One stacked bar of ``(label, amount, colour)``; labels that do not fit are only in the description."""
    parts = [
        (label, amount, colour) for label, amount, colour in parts if fmt.is_number(amount) and amount > 0
    ]
    total = sum(amount for _, amount, _ in parts)
    if total <= 0:
        return Markup("")
    said = "; ".join(f"{label} {100 * amount / total:.1f} %" for label, amount, _ in parts)
    out = [_open(width, height, title, said + ".")]
    x = 0.0
    for label, amount, colour in parts:
        length = amount / total * width
        out.append(
            Markup('<rect x="{:.1f}" y="0" width="{:.1f}" height="22" fill="{}"/>').format(
                x, max(length - 1.5, 0.5), colour
            )
        )
        if length > 8 + 6.6 * len(label):
            out.append(_text(x + 1, 38, label, colour=INK))
        x += length
    out.append(Markup("</svg>"))
    return Markup("").join(out)
