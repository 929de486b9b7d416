"""Masks at the token grid by hand."""

from __future__ import annotations

import numpy as np
import pytest

from glass_fast.errors import DataError
from glass_fast.training.segments import (
    labels_by_area,
    labels_from_maps,
    segment_table,
    split_components,
)


def test_area_majority_with_uncertain_and_ties():
    mask = np.array([
        [1, 1, 0, 0],
        [1, 0, 0, 2],
        [255, 255, 2, 0],
        [255, 1, 0, 2],
    ], np.uint8)  # fmt: skip
    # cells: 3 of 4 are 1; 3 of 4 are 0; 3 of 4 uncertain; a tie of 0 and 2 -> the lower label
    assert labels_by_area(mask, (2, 2)).tolist() == [[1, 0], [255, 0]]


def test_area_majority_cuts_the_centred_square():
    mask = np.zeros((2, 6), np.uint8)
    mask[:, 2:4] = [[1, 2], [3, 4]]
    mask[:, :2], mask[:, 4:] = 7, 8
    assert labels_by_area(mask, (2, 2)).tolist() == [[1, 2], [3, 4]]


def test_area_majority_keeps_instance_ids_beyond_a_byte():
    assert labels_by_area(np.full((4, 4), 70_000, np.int32), (2, 2)).tolist() == [[70_000] * 2] * 2


def test_soft_maps_thresholds_and_dropped_classes():
    """0.6 * 255 = 153 counts as the class, 152 is uncertain, 127.5 rounds up to 128 = 0.502, 127 is background."""
    maps = np.array([[[153, 152], [128, 127]], [[10, 10], [10, 200]], [[255, 255], [255, 255]]], np.uint8)
    got = labels_from_maps(maps, [4, 9, 0], (2, 2), 0.6, 0.5)
    assert got.tolist() == [[4, 255], [255, 9]]


def test_soft_maps_are_averaged_over_cells():
    maps = np.array([[[255, 255, 0, 0], [255, 0, 0, 0]]], np.uint8).repeat(2, 1)
    # cells: mean 0.75 x ... rows 0,1 = (255+255+255+255)/4... each row is repeated, so cell (0,0) = 3/4 or 1
    got = labels_from_maps(maps, [3], (2, 2), 0.7, 0.2)
    assert got.tolist() == [[3, 0], [255, 0]]


def test_soft_maps_of_a_wide_image_are_cut():
    maps = np.zeros((1, 4, 8), np.uint8)
    maps[0, :, 4:] = 255
    got = labels_from_maps(maps, [1], (4, 4), 0.5, 0.5, size=(8, 16))
    assert got[:, 0].tolist() == [0] * 4 and got[:, 3].tolist() == [1] * 4


def test_only_dropped_classes_give_background():
    assert labels_from_maps(np.full((1, 2, 2), 255, np.uint8), [0], (2, 2), 0.5, 0.5).tolist() == [[0, 0]] * 2


def test_maps_without_labels_are_refused():
    with pytest.raises(DataError, match="one label a map"):
        labels_from_maps(np.zeros((2, 2, 2), np.uint8), [1], (2, 2), 0.5, 0.5)


def test_segment_table_keeps_the_largest():
    labels = np.array(
        [[0, 0, 0, 5, 5, 2, 2, 255], [0, 0, 0, 0, 0, 0, 0, 0], [255] * 8, [-1, 1, 1, 3, 3, 3, 0, 9]], np.int32
    )
    ids, counts = segment_table(labels, 2, True)
    assert ids.tolist() == [[0, 2], [0, -1], [-1, -1], [3, 1]] and counts.tolist() == [2, 1, 0, 2]
    ids, counts = segment_table(labels, 3, False)
    assert ids.tolist() == [[2, 5, -1], [-1] * 3, [-1] * 3, [3, 1, 9]] and counts.tolist() == [2, 0, 0, 3]


def test_components_by_hand():
    labels = np.array(
        [
            [3, 3, 0, 0, 3, 3],
            [3, 3, 0, 0, 3, 3],
            [0, 0, 0, 0, 0, 0],
            [5, 5, 255, 5, 5, 0],
            [0, 0, 0, 0, 0, 5],
            [7, 0, 0, 0, 0, 0],
        ],
        np.int32,
    )
    expected = np.array(
        [
            [1, 1, 0, 0, 2, 2],
            [1, 1, 0, 0, 2, 2],
            [0, 0, 0, 0, 0, 0],
            [3, 3, 255, 3, 3, 0],  # joined through the uncertain token, and the corner by its diagonal
            [0, 0, 0, 0, 0, 3],
            [255, 0, 0, 0, 0, 0],  # too small
        ]
    )
    assert np.array_equal(split_components(labels, 2), expected)


def test_component_labels_never_collide_with_uncertain():
    labels = np.zeros((46, 46), np.int32)
    labels[::2, ::2] = 4  # 529 single tokens
    pieces = split_components(labels, 1)
    assert 255 not in pieces and len(np.unique(pieces)) == 530


def test_pieces_finer_than_tokens_keep_neighbours_apart():
    """Two objects of one class, one pixel apart: on 4x4 tokens they touch, on 16x16 cells they do not."""
    from types import SimpleNamespace

    from glass_fast.config.schema import TrainingConfig
    from glass_fast.training.data import _segments

    maps = np.zeros((1, 16, 16), np.uint8)
    maps[0, 4:12, 0:7] = 255
    maps[0, 4:12, 8:16] = 255
    sample = SimpleNamespace(maps=maps, mask=np.zeros((16, 16), np.uint8), meta={"label_ids": [3]})
    options = {"segments": "components", "threshold": 0.5, "min_component": 1}
    coarse = _segments(sample, ("a", "b", "c"), (4, 4), TrainingConfig(**options))
    assert set(np.unique(coarse)) == {0, 1}, "one piece: the gap is narrower than a token"
    fine = _segments(sample, ("a", "b", "c"), (4, 4), TrainingConfig(**options, component_size=16))
    assert fine.tolist() == [[0] * 4, [1, 1, 2, 2], [1, 1, 2, 2], [0] * 4]
