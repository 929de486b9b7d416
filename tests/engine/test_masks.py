"""Upsampling, boxes, scores and overlays against independent computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glass_fast.data import rle
from glass_fast.engine import masks as masks_module
from glass_fast.engine.masks import border_slot, find_objects, upsample_labels
from glass_fast.engine.overlay import draw_overlay, outlines, shrink, slot_colours


def soft(slots: int, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    logits = torch.randn(slots, rows, columns, generator=torch.Generator().manual_seed(seed))
    return (2 * logits).softmax(0).numpy()


@pytest.mark.parametrize("height, width", [(37, 53), (8, 6), (1, 1), (3, 200), (64, 64), (5, 7)])
@pytest.mark.parametrize("strip", [None, 1])
def test_upsampling_equals_torch(
    height: int, width: int, strip: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if strip:
        monkeypatch.setattr(masks_module, "_CHUNK_BYTES", strip)
    maps = soft(5, 8, 6)
    labels, scores = upsample_labels(maps, height, width)
    full = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[None], size=(height, width), mode="bilinear", align_corners=False
    )[0]
    # float32 interpolation in another order: the winners may differ only where two slots are within rounding
    top = full.topk(2, dim=0).values
    close = (top[0] - top[1] < 1e-6).numpy()
    assert ((labels == full.argmax(0).numpy()) | close).all() and close.mean() < 0.01
    for slot in range(5):
        inside = labels == slot
        expected = float(full[slot].numpy()[inside].mean()) if inside.any() else 0.0
        assert scores[slot] == pytest.approx(expected, abs=1e-6)


def test_objects_have_exact_boxes_areas_and_run_lengths() -> None:
    hard = np.zeros((4, 8, 8), dtype=np.float32)
    hard[1] = 1
    hard[1, 2:6, 1:4] = 0
    hard[3, 2:6, 1:4] = 1
    found = find_objects("toy", hard, 64, 64, min_area=0.001)
    assert [item.slot for item in found.objects] == [1, 3]
    assert found.background_slot == 1 and found.border_share == 1.0
    assert [item.background for item in found.objects] == [True, False]
    thing = found.foreground[0]
    mask = found.mask(3)
    ys, xs = np.nonzero(mask)
    assert thing.area == mask.sum() == rle.area(thing.rle)
    assert thing.box == (xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1)
    assert (rle.decode(thing.rle) == mask).all()
    # straight borders are exact; at a corner the 6 of 16 pixels with (1/2 + a)(1/2 + b) < 1/2 go to slot 1
    assert thing.area == 32 * 24 - 4 * 6 and thing.box == (8, 16, 24, 32)
    assert 0.75 < thing.score < 1.0, "soft at its borders, one inside"
    assert sum(item.area for item in found.objects) == 64 * 64
    assert find_objects("toy", hard, 64, 64, min_area=0.5).foreground == ()


def test_every_pixel_belongs_to_a_slot_whatever_the_shape() -> None:
    for height, width in ((1, 1), (1, 99), (99, 1), (400, 3)):
        found = find_objects("thin", soft(7, 4, 4), height, width, min_area=0.0)
        assert found.label_map.shape == (height, width)
        assert sum(item.area for item in found.objects) == height * width
        assert all(0 < item.score <= 1 for item in found.objects)


def test_background_is_the_slot_behind_the_frame() -> None:
    labels = np.full((10, 10), 4, dtype=np.uint8)
    labels[1:9, 1:9] = 2
    assert border_slot(labels) == (4, 1.0)
    labels[0] = 2
    assert border_slot(labels) == (4, 26 / 36)


def test_outlines_and_tint() -> None:
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[5:15, 5:15] = 3
    edge = outlines(labels)
    assert edge[5, 5:15].all() and edge[4, 5:15].all() and not edge[7:13, 7:13].any() and not edge[:3].any()
    assert outlines(labels, 2).sum() > edge.sum()
    image = np.full((20, 20, 3), 100, dtype=np.uint8)
    picture = draw_overlay(image, labels, background=0)
    assert (picture[0, 0] == 100).all() and (picture[5, 5] == 255).all()
    assert (picture[10, 10] == (100 + slot_colours(4)[3].astype(float)) / 2).all()
    assert len({tuple(c) for c in slot_colours(64)}) == 64 and (slot_colours(64).sum(1) > 0).all()


def test_shrink_bounds_the_longer_side_and_never_enlarges() -> None:
    assert shrink(np.zeros((3000, 10, 3), np.uint8)).shape == (1024, 3, 3)
    assert shrink(np.zeros((1, 5000, 3), np.uint8)).shape == (1, 1024, 3)
    assert shrink(np.zeros((30, 40, 3), np.uint8)).shape == (30, 40, 3)
