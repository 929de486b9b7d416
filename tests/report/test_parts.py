"""Text, charts, colours, comparison and thumbnails of the report."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glass_fast.report import charts, compare, gallery, palette
from glass_fast.report import text as fmt
from glass_fast.report.collect import Score, split_method
from glass_fast.report.samples import confidence, spread

# --- text -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=400), st.integers(1, 80))
def test_cleaned_text_is_printable_encodable_and_short(text: str, limit: int) -> None:
    out = fmt.clean(text, limit)
    out.encode("utf-8")
    assert "\n" not in out and "\u202e" not in out and "\x00" not in out
    assert len(out) <= max(limit, 1)


def test_clean_keeps_letters_and_shows_directional_controls() -> None:
    assert fmt.clean("a\tb\n c") == "a b c"
    assert fmt.clean("\u202egpj.exe") == "<U+202E>gpj.exe"
    assert fmt.clean("שלום مرحبا") == "שלום مرحبا"
    assert fmt.clean("\ud800") == "\ufffd"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.05, "0.05 s"),
        (3, "3.0 s"),
        (59.4, "59 s"),
        (75, "1 min 15 s"),
        (3720, "1 h 02 min"),
        (None, fmt.DASH),
        (float("nan"), fmt.DASH),
    ],
)
def test_seconds(value: Any, expected: str) -> None:
    assert fmt.seconds(value) == expected


def test_numbers() -> None:
    assert fmt.percent(0.5583) == "55.8"
    assert fmt.signed_percent(-0.034) == "−3.4 %"
    assert fmt.number(2e-5) == "2e-05"
    assert fmt.number(0.00012) == "0.00012"
    assert fmt.number(12345) == "12,345"
    assert fmt.number(float("inf")) == "not finite"
    assert fmt.size(10 * 2**20) == "10.0 MiB"


# --- colours ----------------------------------------------------------------------------------


def test_voc_palette_has_the_official_first_colours() -> None:
    official = [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (128, 0, 128),
        (0, 128, 128),
        (128, 128, 128),
        (64, 0, 0),
    ]
    found = palette.voc_palette()
    assert [tuple(row) for row in found[: len(official)].tolist()] == official
    assert tuple(found[255].tolist()) == (224, 224, 192)
    assert len({tuple(row) for row in found.tolist()}) == 256


def test_methods_are_ordered_and_coloured_apart() -> None:
    names = {"zeta", "glass", "kmeans", "unguided", "upper_bound", "semantic"}
    assert palette.method_order(names) == ["kmeans", "unguided", "semantic", "glass", "upper_bound", "zeta"]
    assert len({palette.method_colour(name) for name in names}) == len(names)


# --- charts -----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 10))
def test_ticks_lie_inside_and_are_evenly_spaced(low: float, width: float, target: int) -> None:
    high = low + width
    if high <= low:
        return
    ticks = charts.nice_ticks(low, high, target)
    tolerance = 1e-6 * (high - low)  # ticks are whole multiples of a step of at least a tenth of the width
    assert all(low - tolerance <= tick <= high + tolerance for tick in ticks)
    assert len(ticks) <= target + 2
    gaps = np.diff(ticks)
    assert len(ticks) < 2 or np.allclose(gaps, gaps[0], rtol=1e-6, atol=1e-9 * max(abs(low), abs(high)))


def test_ticks_refuse_unordered_bounds() -> None:
    with pytest.raises(ValueError, match="ordered"):
        charts.nice_ticks(2.0, 1.0)


def test_thinning_keeps_the_mean_and_drops_what_is_not_finite() -> None:
    ys = [float(i) for i in range(1000)] + [math.nan, math.inf]
    xs, out = charts.thin([float(i) for i in range(1002)], ys, 100)
    assert len(xs) == len(out) == 100
    assert sum(out) / 100 == pytest.approx(499.5)  # equal runs of 10, so the mean is exact up to rounding


def test_charts_escape_and_describe() -> None:
    bars = [charts.Bar("<b>&", 0.5, "#000000", (0.4, 0.6)), charts.Bar("none", float("nan"), "#000000")]
    drawing = str(charts.bar_chart(bars, "A <title>", scale=100))
    assert "<b>" not in drawing and "&lt;b&gt;&amp;" in drawing and "A &lt;title&gt;" in drawing
    assert "<desc>&lt;b&gt;&amp; 50.0; none –.</desc>" in drawing
    assert drawing.count("<circle") == 2
    lines = [charts.Series("x<", [0, 1, 2], [1.0, math.nan, 3.0], "#123456")]
    drawing = str(charts.line_chart(lines, "loss", "step"))
    assert 'stroke="#123456"' in drawing and "x&lt; ends at 3" in drawing
    assert charts.line_chart([charts.Series("x", [0.0], [math.nan], "#000")], "t", "s") == ""
    assert charts.bar_chart([], "t") == "" and charts.share_bar([("a", 0.0, "#000")], "t") == ""


def test_bar_lengths_are_proportional() -> None:
    import re

    drawing = str(charts.bar_chart([charts.Bar("a", 0.2, "#111111"), charts.Bar("b", 0.4, "#222222")], "t"))
    widths = [float(w) for w in re.findall(r'<rect x="\d+" y="[\d.]+" width="([\d.]+)"', drawing)]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.1)  # printed with one decimal


# --- comparison -------------------------------------------------------------------------------


def scored(
    method: str, overlap: float, ari: float, counted: float, seed: int = 0, error: float | None = None
) -> Score:
    switches = dict.fromkeys(("background_miou", "background_mbo"), True)
    metrics = {"miou_i": counted, "miou_i_fg": overlap, "mbo_i_fg": overlap, "fg_ari": ari}
    errors = {} if error is None else dict.fromkeys(metrics, error)
    return Score("set", method, seed, "glass", switches, metrics, {}, errors)


@pytest.mark.parametrize(
    ("guided", "level", "word"),
    [
        ((0.55, 0.50, 0.6), "good", "every foreground figure"),
        ((0.55, 0.30, 0.7), "mixed", "separates them less well"),
        ((0.36, 0.05, 0.54), "bad", "does not find objects better"),  # the broken guidance of plain BCE
        ((0.36, 0.05, 0.30), "bad", "not better than unguided"),
    ],
)
def test_judgement_follows_the_foreground(guided: tuple[float, float, float], level: str, word: str) -> None:
    found = compare.tables([scored("unguided", 0.45, 0.45, 0.42), scored("glass", *guided)])
    judgement = compare.judge(found)
    assert judgement.level == level and word in judgement.headline
    assert any("one seed" in reason.lower() for reason in judgement.reasons)


def test_background_counted_alone_never_decides() -> None:
    """A huge gain with background counted and a loss on objects is called bad, and why is said."""
    found = compare.tables([scored("unguided", 0.45, 0.5, 0.40), scored("glass", 0.44, 0.5, 0.80)])
    judgement = compare.judge(found)
    assert judgement.level == "bad"
    assert "gathers objects in one slot" in judgement.reasons[-1]


def test_no_pair_no_judgement() -> None:
    assert compare.judge(compare.tables([scored("glass", 0.5, 0.5, 0.5)])).level == "unknown"
    assert compare.judge([]).level == "unknown"


def test_cells_hold_mean_deviation_and_gain() -> None:
    values = {"unguided": (0.40, 0.44), "glass": (0.50, 0.56), "upper_bound": (0.7, 0.7)}
    found = compare.tables(
        [scored(m, v, 0.5, 0.5, seed) for m, pair in values.items() for seed, v in enumerate(pair)]
    )
    cell = found[0].rows["glass"]["miou_i_fg"]
    assert cell.mean == pytest.approx(0.53)
    assert cell.spread == pytest.approx(0.06 / math.sqrt(2))  # sample deviation of two values
    assert cell.gain == pytest.approx(0.53 / 0.42 - 1)
    assert cell.best and not found[0].rows["upper_bound"]["miou_i_fg"].best
    assert found[0].rows["unguided"]["miou_i_fg"].gain is None


def test_one_seed_shows_the_error_over_images() -> None:
    found = compare.tables([scored("glass", 0.5, 0.5, 0.5, error=0.02)])
    assert found[0].rows["glass"]["miou_i_fg"].spread == 0.02


def test_canonical_names_say_whether_background_counts() -> None:
    metrics = {"mIoU-i": 0.1, "mbo_c": 0.2, "miou_i_fg": 0.3, "cor_loc": 0.4, "FG-ARI": 0.5, "own": 0.6}
    fields = {"background_miou": True, "background_mbo": False}
    assert compare.canonical(metrics, fields) == {
        "miou_i_bg": 0.1,
        "mbo_c_fg": 0.2,
        "miou_i_fg": 0.3,
        "corloc": 0.4,
        "fg_ari": 0.5,
        "own": 0.6,
    }


def test_metrics_and_headings_exist_for_everything_the_evaluation_writes() -> None:
    scores = pytest.importorskip("glass_fast.evaluation.scores")
    from glass_fast.metrics.protocols import get_protocol

    names = (*scores.METRICS, *scores.FOREGROUND_METRICS, scores.MULTI_OBJECT_METRIC)
    for protocol in ("glass", "spot"):
        found = compare.canonical(dict.fromkeys(names, 0.5), get_protocol(protocol).fields())
        assert set(found) <= {*compare.FOREGROUND, *compare.COUNTED}, protocol
    assert set(compare.JUDGED) <= set(found)


def test_split_method() -> None:
    assert split_method("upper_bound-seed12") == ("upper_bound", 12)
    assert split_method("kmeans") == ("kmeans", None)


# --- samples and thumbnails -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (None, None),
        (0.5, 0.5),
        ({"foreground": 0.1, "confidence": 0.8}, 0.8),
        ([("confidence", 0.7), ("x", 0.1)], 0.7),
        ('{"confidence": 0.25}', 0.25),
        ([0.2, 0.4], pytest.approx(0.3)),
        ("text", None),
        ({"confidence": math.nan}, None),
    ],
)
def test_confidence_from_any_cell(cell: Any, expected: float | None) -> None:
    assert confidence(cell) == expected


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5000), st.integers(1, 300))
def test_spread_is_even_and_bounded(total: int, limit: int) -> None:
    chosen = spread(total, limit)
    assert len(chosen) == min(total, limit) and chosen == sorted(set(chosen))
    assert all(0 <= index < total for index in chosen)


def opened(picture: gallery.Picture) -> np.ndarray:
    kind, data = picture.uri.split(";base64,")
    assert kind in ("data:image/jpeg", "data:image/png")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (picture.width, picture.height)
    return np.asarray(image.convert("RGB"))


def test_thumbnails_shrink_and_never_grow() -> None:
    image = np.full((300, 600, 3), 77, dtype=np.uint8)
    out = opened(gallery.picture(image, "x", side=120))
    assert out.shape == (60, 120, 3)
    assert np.abs(out.astype(int) - 77).max() <= 2  # JPEG of a flat picture
    assert opened(gallery.picture(image[:20, :30], "x", side=120)).shape == (20, 30, 3)


def test_overlay_tints_labels_in_the_palette_colour() -> None:
    image = np.full((96, 96, 3), 128, dtype=np.uint8)
    mask = np.zeros((96, 96), dtype=np.uint8)
    mask[:, 48:] = 2  # green in the VOC palette
    mask[60:, :40] = 255
    out = opened(gallery.mask_overlay(image, mask, "x", side=96)).astype(int)
    red, green, blue = out[20, 80]
    assert green > red + 30 and green > blue + 30
    plain = out[10, 10]
    assert plain.max() - plain.min() <= 6  # background stays grey
    assert out[70:90, 5:35].std() > 15  # hatched


def test_slot_map_colours_every_slot_and_greys_the_background() -> None:
    slots = np.zeros((64, 64), dtype=np.uint8)
    slots[:, 32:] = 1
    out = opened(gallery.slot_map(slots, None, "x", side=64))
    assert out[30, 10].tolist() == [128, 0, 0] and out[30, 50].tolist() == [0, 128, 0]
    out = opened(gallery.slot_map(slots, 1, "x", side=64))
    assert out[30, 10].tolist() == [128, 0, 0] and out[30, 50].min() > 220


def test_soft_map_is_ordered_dark_to_light() -> None:
    ramp = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))
    out = opened(gallery.soft_map(ramp, "x")).astype(int).sum(axis=2)[0]
    assert (np.diff(out) >= 0).all() and out[-1] > 700 > 100 > out[0]
