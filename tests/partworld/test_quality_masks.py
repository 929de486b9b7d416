"""The table of mask quality: scores by hand, settings, means of captured maps, ranges of one run, files."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glass_fast.config.load import load_config
from glass_fast.config.schema import MasksConfig
from glass_fast.partworld.quality import masks as table
from glass_fast.partworld.quality.generated_masks import RangeCapture, measure_generated
from glass_fast.partworld.quality.mask_plot import plot
from glass_fast.partworld.quality.mask_scores import THRESHOLDS, Curve, Scores, best_classes
from glass_fast.partworld.quality.mask_settings import Setting, find_blocks, preset_setting, settings, short
from glass_fast.progress import Progress, StopToken
from glass_fast.synthesis.batches import BatchRunner, Request
from glass_fast.synthesis.capture import AttentionMaps
from glass_fast.synthesis.masks import class_maps, mask_from_maps


@pytest.fixture(scope="module")
def config() -> Any:
    return load_config("demo", [], []).config


@pytest.fixture(scope="module")
def generator() -> Any:
    from glass_fast.models.loading import load_generator

    return load_generator("partworld:generator", torch.device("cpu"), "float32")


def test_scores_by_hand() -> None:
    truth = np.zeros((2, 4, 4), np.uint8)
    truth[0, :2], truth[0, 3] = 1, 2
    truth[1, 0] = 3
    found = np.zeros_like(truth)
    found[0, 0], found[0, 1], found[0, 3] = 1, 2, 2
    present = np.zeros((2, 11), bool)
    present[0, [0, 1, 2]] = present[1, 3] = True
    scores = Scores()
    scores.add(found, truth, present)
    # picture 1: class 1 has 4 of 8, class 2 has 4 of 8; picture 2: nothing of class 3
    assert scores.mean() == pytest.approx((0.5 + 0.0) / 2)
    row = scores.row()
    assert row["pictures"] == 2 and row["standard_error"] == pytest.approx(0.25 / math.sqrt(2), abs=1e-4)
    # background: all 4 of picture 1; 12 of 16 of picture 2
    assert row["background_iou"] == pytest.approx((1.0 + 0.75) / 2)
    assert row["attribution"] == pytest.approx(8 / 12, abs=1e-4), "picture 1 only: it alone has two classes"


def test_unknown_pixels_and_absent_classes_do_not_count() -> None:
    truth = np.zeros((1, 4, 4), np.uint8)
    truth[0, 0], truth[0, 1] = 1, 5
    found = np.where(truth == 1, 1, 0).astype(np.uint8)
    found[0, 1] = 1
    present = np.zeros((1, 11), bool)
    present[0, 1] = True
    scores = Scores()
    scores.add(found, truth, present, truth != 5)
    assert scores.mean() == 1.0 and scores.row()["background_iou"] == 1.0
    scores.add(found, truth, np.zeros((1, 11), bool))
    assert scores.row()["pictures"] == 1, "a picture without a class to score has no score"


@pytest.mark.parametrize("side", [16, 64])
def test_a_mask_of_any_threshold_is_the_stage_s(side: int) -> None:
    draw = torch.Generator().manual_seed(0)
    soft = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=draw)
    best, label = best_classes(soft, torch.tensor([[4, 0, 9]]), (64, 64))
    assert not (label == 0).any(), "a map that does not compete wins nothing"
    for threshold in (0.3, 0.7):
        mask = mask_from_maps(soft[0], [4, 0, 9], (64, 64), threshold, threshold)
        # bicubic values of two implementations may fall on either side of the threshold
        assert (np.where(best[0] >= np.float32(threshold), label[0], 0) != mask).sum() <= 2


def test_curve_names_the_best_threshold() -> None:
    truth = np.zeros((1, 64, 64), np.uint8)
    truth[0, :32] = 2
    soft = torch.from_numpy(np.where(truth == 2, 120, 100).astype(np.uint8))[:, None]  # 0.47 and 0.39
    present = np.zeros((1, 11), bool)
    present[0, 2] = True
    curve = Curve(0.2)
    curve.add(soft, torch.tensor([[2]]), truth, present)
    row = curve.row()
    assert (row["class_miou"], row["best_threshold"], row["best_class_miou"]) == (0.5, 0.4, 1.0)


def test_every_factor_is_varied_alone(config: Any, generator: Any) -> None:
    blocks = find_blocks(generator.unet, config.synthesis.capture)
    base, *varied = settings(config.synthesis, blocks)
    assert base == preset_setting(config.synthesis, blocks) and base.masks == config.synthesis.masks
    assert {short(name): side for name, side in blocks.sides.items()} == {
        "down 0.0": 16, "down 1.0": 8, "mid 0": 8, "up 0.0": 8, "up 0.1": 8, "up 1.0": 16, "up 1.1": 16,
    }  # fmt: skip
    for setting in varied:
        changed = [
            name
            for name in ("times", "cross", "self_", "masks")
            if getattr(setting, name) != getattr(base, name)
        ]
        allowed = 2 if setting.factor == "resolution" else 1
        assert len(changed) <= allowed, (setting.factor, setting.value)
        assert setting.timesteps, (setting.factor, setting.value)
    factors = {setting.factor: 0 for setting in varied}
    for setting in varied:
        factors[setting.factor] += 1
    assert factors["tau"] == 9 and factors["timestep"] == 10 and factors["resolution"] == 3
    assert {s.masks.refine for s in varied} == {"none", "pamr"}
    alone = {s.value: s.masks for s in varied if s.factor == "options"}
    assert (alone["none"].refine, alone["none"].floor, alone["none"].competition) == ("none", 0.0, 0.0)
    assert (
        alone["all three"].refine == "pamr"
        and alone["floor"].floor > 0
        and alone["pamr + floor"].competition == 0
    )
    pairs = [(s.factor, s.value) for s in varied]
    assert len(set(pairs)) == len(pairs)


def test_means_of_timesteps_and_blocks() -> None:
    draw = torch.Generator().manual_seed(1)

    def maps(side: int) -> AttentionMaps:
        tokens = side * side
        return AttentionMaps(
            torch.rand(2, 3, side, side, generator=draw),
            torch.rand(2, tokens, tokens, generator=draw),
            (side, side),
        )

    captured = {t: {"a": maps(4), "b": maps(4), "c": maps(2)} for t in (50, 150, 250)}
    found = table.mean_maps(captured, Setting("", "", (100, 300), ("a", "c"), ("b",), MasksConfig()))
    crosses = [
        (captured[t]["a"].cross + F.interpolate(captured[t]["c"].cross, size=(4, 4), mode="bicubic")) / 2
        for t in (150, 250)
    ]
    # means of 4 float32 numbers in another order
    torch.testing.assert_close(found.cross, (crosses[0] + crosses[1]) / 2, rtol=1e-6, atol=1e-6)
    expected = (captured[150]["b"].self_ + captured[250]["b"].self_) / 2
    torch.testing.assert_close(found.self_, expected, rtol=1e-6, atol=1e-6)
    assert found.self_size == (4, 4)


def requests(runner: BatchRunner, generator: Any, count: int) -> list[Request]:
    from glass_fast.data.prompts import Prompt
    from glass_fast.synthesis.text import text_row

    prompt = Prompt("p", "", ("car", "tree"), "a photo of a car and a tree; car tree", "car tree", 0, "", "")
    text = text_row(generator.tokenizer, runner.length, prompt, "class_prompt")
    return [Request(seed, text) for seed in range(count)]


def test_one_run_gives_the_maps_of_every_range(config: Any, generator: Any) -> None:
    """As two runs of the stage, each capturing one range, give them."""
    small = config.synthesis.model_copy(update={"steps": 4, "batch_size": 2, "masks": MasksConfig(tau=1)})
    ranges = ((0, 300), (300, 1000), (300, 400))

    def runner(times: tuple[int, int]) -> BatchRunner:
        capture = small.capture.model_copy(update={"timestep_min": times[0], "timestep_max": times[1]})
        return BatchRunner(generator, small.model_copy(update={"capture": capture}), 2)

    whole = runner((0, 1000))
    capture = whole.capture = RangeCapture(whole.capture, ranges)  # type: ignore[assignment]
    images = [made.image for made in whole.run(requests(whole, generator, 2))]
    assert capture.means[2] is None, "no step of four lies in it"
    for times, means in zip(ranges[:2], capture.means, strict=False):
        assert means is not None
        alone = runner(times)
        made = alone.run(requests(alone, generator, 2))
        raw = class_maps(means, 1)
        for row in range(2):
            assert (made[row].image == images[row]).all(), "watching does not change the picture"
            # float32 sums in another order
            assert raw[row].amax(dim=(1, 2)).tolist() == pytest.approx(made[row].peaks, rel=1e-4)


def test_rows_of_noised_renders_and_of_generated_pictures(config: Any, generator: Any) -> None:
    rows = table.measure_noised(generator, config.synthesis, "tuning", 2, only_preset=True)
    assert [row["factor"] for row in rows[:2]] == ["preset", "ceiling"]
    assert {row["factor"] for row in rows[2:]} == {"threshold"} and len(rows) == 2 + len(THRESHOLDS)
    assert all(set(row) == set(table.FIELDS) for row in rows)
    again = {row["threshold"]: row["class_miou"] for row in rows[2:]}
    assert rows[0]["best_class_miou"] == max(again.values()) == again[rows[0]["best_threshold"]]
    assert rows[1]["class_miou"] > 0.5 and rows[0]["pictures"] == 2

    def both(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A judge that sees every class everywhere: label 1 in the left half, background in the right one."""
        labels = np.zeros(images.shape[:3], np.uint8)
        labels[:, :, :32] = 1
        return labels, np.ones((len(images), 10), np.float32)

    small = config.synthesis.model_copy(update={"batch_size": 2})
    made = measure_generated(generator, small, SimpleNamespace(both=both), "tuning", 3, steps=(2,))  # type: ignore[arg-type]
    assert all(set(row) == set(table.FIELDS) for row in made)
    assert made[0]["steps"] == 2 and made[0]["factor"] == "steps"


def fake_rows(seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    config = load_config("demo", [], []).config.synthesis
    from glass_fast.partworld.quality.mask_settings import Blocks, columns

    names = (
        "down_blocks.0.attentions.0.transformer_blocks.0",
        "up_blocks.1.attentions.0.transformer_blocks.0",
    )
    blocks = Blocks(
        dict.fromkeys(names, 16) | {"mid_block.attentions.0.transformer_blocks.0": 8}, names, names[1:]
    )
    score = {"pictures": 2, "standard_error": 0.1, "background_iou": 0.9, "attribution": 0.9}
    rows = []
    for setting in settings(config, blocks):
        values = {
            "class_miou": float(draw.random()),
            "best_threshold": 0.2,
            "best_class_miou": float(draw.random()),
        }
        rows.append({"source": "noised test", **columns(setting), **score, **values})
    for tau in (0, 1, 2):
        for threshold in THRESHOLDS:
            values = {"threshold": threshold, "class_miou": float(draw.random()), "best_class_miou": None}
            rows.append({**rows[0], "factor": "tau x threshold", "value": "x", "tau": tau, **values})
    for steps in (5, 10):
        for times in ("0-1000", "150-800"):
            row = {**rows[0], "source": "generated test", "factor": "steps", "value": f"{steps}, {times}"}
            rows.append({**row, "steps": steps, "timesteps": times})
    return rows


def test_the_plot_is_one_well_formed_picture_with_a_panel_a_factor(tmp_path: Path) -> None:
    rows = fake_rows()
    table.write_plot(tmp_path / "sub" / "mask_quality.svg", {"rows": rows})
    text = (tmp_path / "sub" / "mask_quality.svg").read_text()
    root = ElementTree.fromstring(text)
    panels = root.findall("{http://www.w3.org/2000/svg}svg")
    titles = [panel.find("{http://www.w3.org/2000/svg}title").text for panel in panels]  # type: ignore[union-attr]
    assert {
        "timestep",
        "tau",
        "tau x threshold",
        "resolution",
        "options",
        "steps, on generated pictures",
    } <= set(titles)
    assert "nan" not in text.lower() and "script" not in text
    places = [(panel.get("x"), panel.get("y")) for panel in panels]
    assert len(set(places)) == len(places)
    bottom = max(float(panel.get("y", 0)) + float(panel.get("height", 0)) for panel in panels)
    assert bottom <= float(root.get("height", 0))
    assert plot([row for row in rows if row["factor"] in ("preset", "tau")]).count("<svg") == 2


def test_the_table_is_csv_below_a_comment(tmp_path: Path) -> None:
    rows = fake_rows()
    table.write_table(tmp_path / "t.csv", rows, "what and where")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0] == "# what and where"
    read = list(csv.DictReader(lines[1:]))
    assert len(read) == len(rows) and tuple(read[0]) == table.FIELDS
    assert read[-1]["steps"] == "10" and read[0]["steps"] == ""


def test_a_finished_half_is_kept_until_an_option_changes(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noised(generator: Any, *rest: Any) -> list[dict[str, Any]]:
        calls.append("noised")
        return fake_rows()[:2]

    monkeypatch.setattr(table, "measure_noised", noised)
    monkeypatch.setattr("glass_fast.models.loading.load_generator", lambda *a: None)

    def run(chosen: Any) -> dict[str, Any]:
        return table.measure_masks(chosen, None, tmp_path, 2, Progress(), StopToken())

    first, again = run(config), run(config)
    assert first == again and calls == ["noised"]
    assert set(first) == {"preset", "ceiling", "rows"} and first["preset"] == first["rows"][0]
    masks = config.synthesis.masks.model_copy(update={"tau": 3})
    run(config.model_copy(update={"synthesis": config.synthesis.model_copy(update={"masks": masks})}))
    assert calls == ["noised", "noised"]
