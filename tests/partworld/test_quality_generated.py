"""What is counted about generated pictures, on pictures and judgements made by hand."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from glass_fast.data.prompts import read_prompts
from glass_fast.partworld.quality import generated, guard
from glass_fast.partworld.quality.generated import NAMES, Pictures
from glass_fast.progress import Progress, StopToken

SIDE = 64


def pictures_of(prompted, labels, found=None, masks=None, maps=None, peaks=None, dropped=None) -> Pictures:
    """Pictures whose judgement is ``labels``; ``found`` defaults to what the labels show."""
    labels = np.asarray(labels, np.uint8)
    count = len(prompted)
    shown = np.array([[(label == c + 1).any() for c in range(10)] for label in labels])
    return Pictures(
        images=np.zeros((count, SIDE, SIDE, 3), np.uint8),
        masks=labels.copy() if masks is None else np.asarray(masks, np.uint8),
        maps=maps or [np.zeros((len(p), 16, 16), np.uint8) for p in prompted],
        prompted=[tuple(p) for p in prompted],
        peaks=peaks or [(0.5,) * len(p) for p in prompted],
        dropped=dropped or [()] * count,
        prompt=np.arange(count),
        texts=["a photo"] * count,
        labels=labels,
        found=shown if found is None else np.asarray(found, bool),
    )


def canvas(*boxes) -> np.ndarray:
    """Label map with boxes (label, top, left, height, width)."""
    labels = np.zeros((SIDE, SIDE), np.uint8)
    for label, top, left, height, width in boxes:
        labels[top : top + height, left : left + width] = label
    return labels


def test_prompts_of_all_classes_and_pairs() -> None:
    assert generated.entries("single") == list(NAMES)
    pairs = [tuple(entry.split(" + ")) for entry in generated.entries("pair")]
    assert len(pairs) == 45 and len({frozenset(pair) for pair in pairs}) == 45
    first = [pair[0] for pair in pairs]
    assert min(first.count(name) for name in NAMES) >= 4, (
        "every class is named first about as often as second"
    )


def test_pieces_by_hand() -> None:
    labels = canvas((1, 0, 0, 8, 8), (1, 8, 8, 8, 8), (1, 30, 30, 6, 7), (2, 40, 0, 6, 6), (2, 50, 0, 5, 8))
    # two boxes that touch at a corner are one piece; 42 pixels are an object, 36 are not, 40 are
    assert generated.count_pieces(labels[None])[0, :3].tolist() == [2, 1, 0]


def test_recognition_by_hand() -> None:
    labels = [
        canvas((1, 0, 0, 10, 10)),  # the car that was asked for
        canvas((1, 0, 0, 10, 10), (1, 30, 30, 10, 10)),  # twice
        canvas((2, 0, 0, 10, 10)),  # a boat instead
        canvas((1, 0, 0, 10, 10), (2, 30, 30, 10, 10)),  # both of a pair
        canvas((1, 0, 0, 10, 10), (5, 30, 30, 10, 10)),  # one of a pair, and an umbrella
    ]
    result = generated.recognition(pictures_of([(0,), (0,), (0,), (0, 1), (0, 1)], labels))
    assert (result["all"]["count"], result["all"]["total"]) == (3, 5)
    assert result["all_seen"]["count"] == 3
    small = generated.recognition(pictures_of([(0,)], [canvas((1, 0, 0, 5, 7))]))
    assert (small["all"]["count"], small["all_seen"]["count"]) == (1, 0), "35 pixels are no object"
    assert result["class"]["car"]["count"] == 4 and result["class"]["car"]["total"] == 5
    assert result["class"]["boat"]["count"] == 1 and result["class"]["boat"]["total"] == 2
    assert "umbrella" not in result["class"]
    assert result["extra"]["count"] == 2
    assert {k: v for k, v in result["extra_class"].items() if v} == {"boat": 1, "umbrella": 1}
    assert (result["doubled"]["count"], result["doubled"]["total"]) == (1, 5)


def test_mask_scores_by_hand() -> None:
    label = canvas((1, 0, 0, 8, 16), (2, 32, 0, 8, 16))
    mask = canvas((1, 0, 0, 8, 8), (2, 32, 0, 8, 16))
    mask[0:8, 8:12] = 255  # a quarter uncertain, a quarter missed
    mask[32:40, 0:4] = 1  # a quarter of the boat called car
    result = generated.mask_scores(pictures_of([(0, 1)], [label], masks=[mask]))
    # car: 64 right of 128 true and 32 too many: 64/160; boat: 96 right of 128
    assert result["class_iou"]["car"]["mean"] == pytest.approx(64 / 160)
    assert result["class_iou"]["boat"]["mean"] == pytest.approx(0.75)
    assert result["class_miou"] == pytest.approx((0.4 + 0.75) / 2)
    # without the 32 uncertain pixels the car has 64 of 96 + 32
    assert result["class_miou_sure"] == pytest.approx((64 / 128 + 0.75) / 2)
    assert result["token_ceiling"] == 1.0 and result["grid"] == 16, "the boxes lie on the token grid"
    coarse = generated.mask_scores(pictures_of([(0, 1)], [label], masks=[mask]), grid=4)
    # blocks of 16 x 16: each box fills half of one, and a tie goes to the background
    assert coarse["token_ceiling"] == 0.0
    assert result["attribution_pixels"] == [64 + 96, 64 + 128]
    assert result["background_iou"] == pytest.approx((4096 - 256) / (4096 - 256 + 64), abs=1e-4)


def test_absent_and_unasked_classes_do_not_count_in_masks() -> None:
    label = canvas((1, 0, 0, 8, 8), (3, 30, 0, 8, 8))
    pictures = pictures_of([(0, 1)], [label], masks=[canvas((1, 0, 0, 8, 8))])
    result = generated.mask_scores(pictures)
    assert result["class_miou"] == 1.0 and list(result["class_iou"]) == ["car"]
    assert result["background_iou"] == 1.0, "pixels of the aeroplane that nobody asked for are left out"
    assert result["attribution"] is None
    tiny = pictures_of([(0,)], [canvas((1, 0, 0, 3, 6))])
    assert not tiny.seen.any() and generated.mask_scores(tiny)["class_miou"] is None


def test_coarse_labels_by_hand() -> None:
    labels = np.zeros((1, 8, 8), np.uint8)
    labels[0, :3, :3] = 4  # 9 of 16: the majority
    labels[0, 4:, 4:6] = 2  # 8 of 16: a tie, which goes to the lower label
    labels[0, 4, :4] = 3
    coarse = generated.coarsened(labels, 2)
    assert coarse[0, :4, :4].tolist() == [[4] * 4] * 4
    assert not coarse[0, 4:].any() and not coarse[0, :4, 4:].any()


def test_reference_peaks_are_medians_of_single_classes() -> None:
    prompted = [(0,), (0,), (0,), (3,), (0, 3)]
    pictures = pictures_of(prompted, [canvas()] * 5, peaks=[(0.1,), (0.3,), (0.2004,), (0.7,), (9.0, 9.0)])
    assert generated.reference_peaks(pictures) == {"absence_peaks": {"car": 0.2, "potted plant": 0.7}}


def test_joined_pictures_keep_prompts_apart() -> None:
    one, two = pictures_of([(0,), (1,)], [canvas()] * 2), pictures_of([(2, 3)], [canvas((3, 0, 0, 9, 9))])
    both = generated.joined([one, two])
    assert both.prompt.tolist() == [0, 1, 2] and both.prompted == [(0,), (1,), (2, 3)]
    assert len(both.images) == len(both.maps) == len(both.labels) == 3
    assert all(hasattr(both, field.name) for field in dataclasses.fields(Pictures))


def test_detection_and_limits_by_hand() -> None:
    absent = np.array([1, 1, 0, 0, 0], bool)
    score = np.array([0.1, 0.4, 0.3, 0.6, 0.9])
    assert guard.area_under_curve(absent, score) == pytest.approx(5 / 6, abs=1e-4)
    # below 0.5: finds both, one false: F1 0.8; below 0.2: finds one, none false: F1 2/3
    assert guard.best_limit(absent, score) == pytest.approx(0.5)
    result = guard.detection(absent, score < 0.5)
    assert (result["right"], result["called"], result["absent"]) == (2, 3, 2) and result["f1"] == 0.8
    assert guard.best_limit(np.zeros(3, bool), score[:3]) == score[:3].min(), (
        "nothing is called absent for nothing"
    )
    assert guard.area_under_curve(np.zeros(3, bool), score[:3]) is None


def test_area_under_curve_against_an_independent_implementation() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    absent, score = rng.random(200) < 0.3, rng.integers(8, size=200) / 8
    # rounded to four digits
    assert guard.area_under_curve(absent, score) == pytest.approx(
        metrics.roc_auc_score(~absent, score), abs=6e-5
    )


def test_map_scores_by_hand() -> None:
    maps = np.zeros((2, 2, 2))
    maps[0] = [[1, 0], [0, 0]]
    maps[1] = [[0.5, 0.5], [0.5, 1]]
    first, second = guard.map_scores(maps, (0.2, 0.1), [0.4, 0.1], threshold=0.6)
    assert first["peak_ratio"] == 0.5 and second["peak_ratio"] == 1.0
    assert first["peak_share"] == 1.0 and second["peak_share"] == 0.5
    assert first["relative_ratio"] == 0.5 and second["relative_ratio"] == 1.0
    assert first["confidence"] == 1.0 and first["won_area"] == 0.25 and second["won_area"] == 0.25
    assert first["peakedness"] == 0.75 and second["peakedness"] == pytest.approx(1 - 2.5 / 4)
    assert first["low_entropy"] == pytest.approx(1.0)
    share = np.array([0.2, 0.2, 0.2, 0.4])
    assert second["low_entropy"] == pytest.approx(1 + (share * np.log(share)).sum() / np.log(4))
    assert first["distinctness"] == 1.0, "the maps are anticorrelated"
    assert guard.map_scores(maps[:1], (0.2,), [0.4], 0.6)[0]["distinctness"] == 1.0


def absence_pictures(count: int = 80) -> Pictures:
    """Pairs whose second class is missing in every third picture, which its raw peak tells."""
    rng = np.random.default_rng(0)
    labels, peaks, dropped = [], [], []
    for index in range(count):
        missing = index % 3 == 0
        labels.append(canvas((1, 0, 0, 10, 10), *([] if missing else [(2, 30, 30, 10, 10)])))
        peaks.append((0.4 + 0.02 * rng.random(), (0.03 if missing else 0.2) + 0.02 * rng.random()))
        dropped.append((1,) if index % 6 == 0 else ())
    maps = [rng.integers(0, 255, (2, 16, 16)).astype(np.uint8) for _ in range(count)]
    return pictures_of([(0, 1)] * count, labels, maps=maps, peaks=peaks, dropped=dropped)


def test_guard_report_finds_the_rule_that_tells() -> None:
    pytest.importorskip("sklearn")
    config = generated.generator_config("partworld:generator").synthesis
    report = guard.guard_report(absence_pictures(), config, {"car": 0.4, "boat": 0.2})
    assert report["cases"] == {"all": 160, "clear": 160, "absent": 27}
    assert report["as_run"]["dropped"]["right"] == 14 and report["as_run"]["dropped"]["called"] == 14
    # the mask shows what the judge sees, so a missing class has no area there and is always flagged
    assert (
        report["as_run"]["flagged"]["recall"]["share"]
        == report["as_run"]["flagged"]["precision"]["share"]
        == 1
    )
    ratio = report["rules"]["peak_ratio"]
    assert ratio["area_under_curve"] == 1.0 and 0.2 < ratio["limit"] < 1.0
    assert ratio["reported_on"]["f1"] == 1.0 and ratio["reported_on"]["absent"] in (13, 14)
    assert report["rules"]["low_entropy"]["area_under_curve"] < 0.7, "random maps tell nothing"
    assert report["rules"]["combined"]["reported_on"]["f1"] > 0.9
    assert report["rules"][report["best"]]["chosen_on"]["f1"] == 1.0
    row = next(row for row in report["curve"] if row["absence_ratio"] == 0.5)
    assert row["f1"] == 1.0 and row["called"] == 27
    json.dumps(report)


def test_unclear_cases_are_left_out() -> None:
    config = generated.generator_config("partworld:generator").synthesis
    labels = [canvas((1, 0, 0, 10, 10)), canvas()]
    found = np.zeros((2, 10), bool)
    found[1, 0] = True  # each: one of classifier and segmenter sees the car
    cases = guard.collect_cases(pictures_of([(0,), (0,)], labels, found=found), config, {"car": 1.0})
    assert not cases.clear.any()


class FakeJudge:
    """Sees a car in the upper left of everything."""

    def both(self, images):
        labels = np.repeat(canvas((1, 0, 0, 10, 10))[None], len(images), axis=0)
        shares = np.zeros((len(images), 10), np.float32)
        shares[:, 0] = 0.9
        return labels, shares


def test_pictures_from_the_real_stage(tmp_path) -> None:
    """Two steps of the shipped generator: prompts in caption language, shards, and what is read from them."""
    config = generated.generator_config(
        "partworld:generator", ["synthesis.steps=2", "synthesis.batch_size=10"]
    )
    shards = generated.make_pictures(config, "single", 1, tmp_path, Progress(), StopToken())
    prompts = read_prompts(tmp_path / "single-1" / "prompts.parquet")
    assert [prompt.caption for prompt in prompts][:5:2] == [
        "a photo of a car", "a photo of an aeroplane", "a photo of an umbrella",
    ]  # fmt: skip
    pictures = generated.read_pictures(shards, FakeJudge())
    assert pictures.images.shape == (10, 64, 64, 3) and pictures.prompted == [(c,) for c in range(10)]
    assert all(len(p) == 1 and p[0] > 0 for p in pictures.peaks) and pictures.maps[0].ndim == 3
    assert set(generated.reference_peaks(pictures)["absence_peaks"]) == set(NAMES)
    assert generated.recognition(pictures)["all"]["count"] == 1, "only the car is what was asked for"
    stamp = [path.stat().st_mtime_ns for path in sorted(shards.glob("*.tar"))]
    generated.make_pictures(config, "single", 1, tmp_path, Progress(), StopToken())
    assert stamp == [path.stat().st_mtime_ns for path in sorted(shards.glob("*.tar"))]


def test_decoded_renders_are_the_renders_again() -> None:
    from glass_fast.models.loading import load_generator
    from glass_fast.partworld.renderer import render

    images = np.stack([render("test", index).image for index in range(2)])
    again = generated.reconstructed(load_generator("partworld:generator", "cpu"), images)
    assert again.shape == images.shape and again.dtype == np.uint8
    # the shipped autoencoder is within 10 grey levels on average; an unrelated picture is off by some 50
    assert np.abs(again.astype(float) - images).mean() < 20
