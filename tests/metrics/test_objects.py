"""Metrics against hand-computed cases, independent implementations and properties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from glass_fast.errors import DataError
from glass_fast.metrics.objects import (
    adjusted_rand_index,
    hungarian_iou,
    joint_histogram,
    pairwise_iou,
    score_histogram,
)

EXACT = 1e-15
"""Both sides are a handful of float64 operations on exact integers below 2**53."""


def toy_image(object_side: int = 20, side: int = 256) -> np.ndarray:
    target = np.zeros((1, side, side), dtype=np.int64)
    target[0, 100 : 100 + object_side, 50 : 50 + object_side] = 1
    return target


def test_one_slot_over_everything_scores_as_the_released_metric() -> None:
    """One 20 x 20 object in 256 x 256, one slot covers all: the stated toy case of the released metric."""
    target = toy_image()
    histogram = joint_histogram(np.full_like(target, 3), target, num_slots=7, num_segments=2)
    share = 400 / 65536
    counted = score_histogram(histogram, background=True)
    assert counted.miou[0] == pytest.approx((1 - share) / 2, abs=EXACT)
    assert round(counted.miou[0], 5) == 0.49695
    assert counted.mbo[0] == pytest.approx(0.5, abs=EXACT)
    assert counted.corloc[0] == 1.0
    assert counted.recovery[0] == 0.5
    foreground = score_histogram(histogram, background=False)
    assert foreground.miou[0] == pytest.approx(share, abs=EXACT)
    assert foreground.mbo[0] == pytest.approx(share, abs=EXACT)
    assert foreground.corloc[0] == 0.0
    assert foreground.recovery[0] == 0.0
    assert foreground.segments[0] == 1


def test_image_without_object() -> None:
    target = np.zeros((1, 256, 256), dtype=np.int64)
    prediction = np.zeros_like(target)
    prediction[0, :64] = 1
    histogram = joint_histogram(prediction, target, num_slots=7, num_segments=1)
    foreground = score_histogram(histogram, background=False)
    assert foreground.ari[0] == 1.0
    assert np.isnan(foreground.miou[0]) and np.isnan(foreground.mbo[0]) and np.isnan(foreground.corloc[0])
    assert foreground.segments[0] == 0
    assert score_histogram(histogram, background=True).miou[0] == pytest.approx(0.75, abs=EXACT)


def test_single_object_foreground_ari_is_one_or_zero() -> None:
    """The released metric gives 1 when one slot covers the only object, else about 0."""
    target = toy_image()
    whole = joint_histogram(np.zeros_like(target), target, 2, 2)
    assert score_histogram(whole, background=False).ari[0] == 1.0
    split = np.zeros_like(target)
    split[0, :, :60] = 1
    halves = score_histogram(joint_histogram(split, target, 2, 2), background=False)
    assert halves.ari[0] == pytest.approx(0.0, abs=EXACT)


def test_more_objects_than_slots_leaves_objects_at_zero() -> None:
    target = np.arange(4).reshape(1, 2, 2)
    prediction = np.array([[[0, 0], [1, 1]]])
    scores = score_histogram(joint_histogram(prediction, target, 2, 4), background=True)
    # every pair has IoU 1/2; only two of four segments get a slot, yet all four have a best slot
    assert scores.miou[0] == pytest.approx(0.25, abs=EXACT)
    assert scores.mbo[0] == pytest.approx(0.5, abs=EXACT)
    assert scores.recovery[0] == 0.0, "0.5 is not larger than 0.5"


def test_matching_maximises_the_sum_not_each_row() -> None:
    # slot 0 is best for both segments; the best sum gives it to segment 1
    iou = np.array([[[0.6, 0.5], [0.5, 0.1]]])
    assert hungarian_iou(iou, np.ones((1, 2), dtype=bool)) == pytest.approx(np.array([[0.5, 0.5]]))


def test_ignored_pixels_count_nowhere() -> None:
    target = np.array([[[0, 0, 1, 1]]])
    prediction = np.array([[[0, 0, 1, 0]]])
    valid = np.array([[[True, True, True, False]]])
    scores = score_histogram(joint_histogram(prediction, target, 2, 2, valid), background=True)
    assert scores.miou[0] == 1.0
    wrong_label = target.copy()
    wrong_label[0, 0, 3] = 255
    same = joint_histogram(prediction, wrong_label, 2, 2, valid)
    assert (same == joint_histogram(prediction, target, 2, 2, valid)).all()


@pytest.mark.parametrize("bad", [-1, 3])
def test_labels_out_of_range_are_refused(bad: int) -> None:
    target = np.zeros((1, 2, 2), dtype=np.int64)
    prediction = target.copy()
    prediction[0, 0, 0] = bad
    with pytest.raises(DataError, match=r"expected 0\.\.2"):
        joint_histogram(prediction, target, 3, 1)
    with pytest.raises(DataError, match="shape"):
        joint_histogram(target[0], target[0], 3, 1)


label_maps = st.tuples(
    arrays(np.int64, (2, 5, 7), elements=st.integers(0, 4)),
    arrays(np.int64, (2, 5, 7), elements=st.integers(0, 5)),
    arrays(np.bool_, (2, 5, 7), elements=st.booleans()),
)


def slow_scores(
    prediction: np.ndarray, target: np.ndarray, valid: np.ndarray, slots: int, background: bool
) -> tuple[float, float, float]:
    """mIoU, mBO, recovery of one image from boolean masks, matching by trying every assignment."""
    labels = [k for k in np.unique(target[valid]) if background or k != 0]
    if not labels:
        return float("nan"), float("nan"), float("nan")
    table = np.zeros((slots, len(labels)))
    for s in range(slots):
        for column, k in enumerate(labels):
            mask, truth = (prediction == s) & valid, (target == k) & valid
            union = (mask | truth).sum()
            table[s, column] = (mask & truth).sum() / union if union else 0.0
    short, long = sorted(table.shape)
    wide = table if table.shape[0] == short else table.T
    best = max(
        sum(wide[row, column] for row, column in enumerate(choice))
        for choice in itertools.permutations(range(long), short)
    )
    overlap = table.max(axis=0)
    return best / len(labels), overlap.mean(), (overlap > 0.5).mean()


@settings(max_examples=60, deadline=None)
@given(label_maps, st.booleans())
def test_equal_to_boolean_masks_and_all_assignments(
    maps: tuple[np.ndarray, np.ndarray, np.ndarray], background: bool
) -> None:
    prediction, target, valid = maps
    scores = score_histogram(joint_histogram(prediction, target, 5, 6, valid), background)
    for index in range(2):
        expected = slow_scores(prediction[index], target[index], valid[index], 5, background)
        actual = (scores.miou[index], scores.mbo[index], scores.recovery[index])
        # the order of the sums differs: at most a few units in the last place
        assert actual == pytest.approx(expected, abs=1e-14, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(label_maps)
def test_rand_index_equals_scikit_learn(maps: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the eval extra")
    prediction, target, valid = maps
    histogram = joint_histogram(prediction, target, 5, 6, valid)
    for background in (True, False):
        table = histogram if background else histogram[:, :, 1:]
        ours = adjusted_rand_index(table)
        for index in range(2):
            keep = valid[index] & (background | (target[index] > 0))
            if keep.sum() < 2:
                assert ours[index] == 1.0
                continue
            theirs = metrics.adjusted_rand_score(target[index][keep], prediction[index][keep])
            assert ours[index] == pytest.approx(theirs, abs=1e-12)


def test_iou_and_matching_equal_pycocotools_and_scipy() -> None:
    mask_tools = pytest.importorskip("pycocotools.mask", reason="needs the eval extra")
    generator = np.random.default_rng(3)
    prediction = generator.integers(0, 7, (4, 37, 53))
    target = np.kron(generator.integers(0, 9, (4, 5, 6)), np.ones((1, 8, 9), dtype=np.int64))[:, :37, :53]
    iou = pairwise_iou(joint_histogram(prediction, target, 7, 9))
    present = np.array([[bool((t == k).any()) for k in range(9)] for t in target])
    matched = hungarian_iou(iou, present)

    def encode(labels: np.ndarray, count: int) -> list[dict]:
        return [mask_tools.encode(np.asfortranarray((labels == k).astype(np.uint8))) for k in range(count)]

    for index in range(4):
        table = mask_tools.iou(encode(prediction[index], 7), encode(target[index], 9), [0] * 9)
        assert iou[index] == pytest.approx(table, abs=EXACT)
        rows, columns = linear_sum_assignment(1.0 - table[:, present[index]])
        assert matched[index].sum() == pytest.approx(table[:, present[index]][rows, columns].sum(), abs=1e-14)


@settings(max_examples=60, deadline=None)
@given(label_maps, st.permutations(range(5)), st.permutations(range(1, 6)), st.booleans())
def test_renaming_labels_changes_nothing_and_bounds_hold(
    maps: tuple[np.ndarray, np.ndarray, np.ndarray], slots: list[int], objects: list[int], background: bool
) -> None:
    prediction, target, valid = maps
    scores = score_histogram(joint_histogram(prediction, target, 5, 6, valid), background)
    renamed = score_histogram(
        joint_histogram(np.array(slots)[prediction], np.array([0, *objects])[target], 5, 6, valid), background
    )
    for name in ("miou", "mbo", "recovery", "corloc", "ari"):
        value = getattr(scores, name)
        assert getattr(renamed, name) == pytest.approx(value, abs=1e-12, nan_ok=True), name
        finite = value[~np.isnan(value)]
        assert (finite <= 1 + 1e-12).all(), name
        assert name == "ari" or (finite >= 0).all(), name
    some = scores.segments > 0
    assert (scores.miou[some] <= scores.mbo[some] + 1e-12).all(), "one-to-one can never beat free choice"
    assert (scores.corloc[some] >= scores.recovery[some]).all()


@settings(max_examples=30, deadline=None)
@given(arrays(np.int64, (1, 6, 6), elements=st.integers(0, 3)))
def test_perfect_prediction_scores_one(target: np.ndarray) -> None:
    scores = score_histogram(joint_histogram(target, target, 4, 4), background=True)
    assert scores.miou[0] == scores.mbo[0] == scores.recovery[0] == scores.corloc[0] == 1.0
    assert scores.ari[0] == pytest.approx(1.0, abs=EXACT)
