"""Maps -> masks by hand-made cases, quality flags, absence guard."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glass_fast.config.schema import MasksConfig, QualityConfig
from glass_fast.errors import DataError
from glass_fast.synthesis.capture import AttentionMaps
from glass_fast.synthesis.masks import absent, class_maps, compete, mask_from_maps, soft_maps, stretch
from glass_fast.synthesis.quality import assess, is_rejected


def random_maps(tau_tokens: int = 8) -> AttentionMaps:
    draw = torch.Generator().manual_seed(0)
    tokens = tau_tokens * tau_tokens
    return AttentionMaps(
        torch.rand(2, 3, 4, 4, generator=draw),
        torch.rand(2, tokens, tokens, generator=draw).softmax(-1),
        (8, 8),
    )


def test_class_maps_are_the_matrix_power_times_the_resized_map() -> None:
    """Method notes 2.1 item 6 word by word, in float64: A^4 . bicubic(C)."""
    maps = random_maps()
    assert maps.self_ is not None
    resized = F.interpolate(maps.cross.double(), size=(8, 8), mode="bicubic", align_corners=False)
    power = torch.linalg.matrix_power(maps.self_.double(), 4)
    wanted = torch.einsum("bnm,bkm->bkn", power, resized.flatten(2)).reshape(2, 3, 8, 8)
    torch.testing.assert_close(class_maps(maps, 4).double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(class_maps(maps, 0).double(), resized, rtol=1e-5, atol=1e-6)


def test_rows_are_queries() -> None:
    """Query 0 attends to token 3 only, so its refined value is the class map's value at token 3."""
    self_map = torch.eye(4)
    self_map[0] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    maps = AttentionMaps(torch.tensor([[[[0.1, 0.2], [0.3, 0.9]]]]), self_map.unsqueeze(0), (2, 2))
    assert class_maps(maps, 1).flatten().tolist() == pytest.approx([0.9, 0.2, 0.3, 0.9])


def test_soft_maps_span_zero_to_255_and_keep_raw_peaks() -> None:
    cross = torch.tensor([[[[0.2, 0.4], [0.6, 1.2]], [[0.5, 0.5], [0.5, 0.5]]]])
    soft, peaks = soft_maps(cross, MasksConfig())
    assert soft.dtype == torch.uint8 and soft[0, 0].flatten().tolist() == [0, 51, 102, 255]
    assert not soft[0, 1].any(), "a flat map has no evidence; dividing by its zero range must not make some"
    assert peaks[0].tolist() == pytest.approx([1.2, 0.5])
    noise = cross[:, 1:] + torch.tensor([[[[0.0, 3e-8], [0.0, 0.0]]]])
    assert not soft_maps(noise, MasksConfig())[0].any()


def test_classes_compete_by_the_formula() -> None:
    """By hand: sum 0.4 + 0.5 * highest 0.4; a second image without any evidence stays zero, not NaN."""
    maps = torch.tensor([[[[0.4, 0.1]], [[0.0, 0.3]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    expected = torch.tensor([[[[0.4 / 0.6, 0.1 / 0.6]], [[0.0, 0.3 / 0.6]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    torch.testing.assert_close(compete(maps, 0.5), expected)
    torch.testing.assert_close(compete(maps * 7, 0.5), expected)  # no scale of its own
    assert compete(maps, 0) is maps
    assert (compete(maps - 0.2, 0.5) >= 0).all()
    soft, peaks = soft_maps(maps, MasksConfig(competition=0.5))
    assert soft[0, 0].flatten().tolist() == [255, 0] and peaks[0].tolist() == pytest.approx([0.4, 0.3])


def test_floor_is_the_share_of_pixels_that_become_zero() -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4)[..., torch.tensor([2, 0, 3, 1])]
    assert (stretch(maps, 0.5) == 0).sum() == 9, "half of the pixels, and the one that the floor is"
    assert stretch(maps, 0.5).flatten().sort().values[-7:].tolist() == pytest.approx(
        [i / 7 for i in range(1, 8)]
    )
    assert (stretch(maps) == 0).sum() == 1 and stretch(maps, 0.99).sum() == 0
    assert soft_maps(maps, MasksConfig(floor=0.5))[0].max() == 255


def test_missing_self_maps_are_a_bug_not_a_silent_identity() -> None:
    with pytest.raises(ValueError, match="tau=2"):
        class_maps(AttentionMaps(torch.rand(1, 1, 2, 2), None, (2, 2)), 2)


def stepped() -> np.ndarray:
    """Three constant 2x2 maps whose values sit on both sides of the thresholds 0.6 and 0.5."""
    values = np.array([[153, 152], [128, 127]], np.uint8)  # 0.6, 0.596, 0.502, 0.498
    return np.repeat(np.repeat(values, 1, 0), 1, 1)[None]


def test_label_rule_at_the_thresholds() -> None:
    """At the maps' own size bicubic is the identity: >= 0.6 label, >= 0.5 uncertain, else background."""
    mask = mask_from_maps(stepped(), [7], (2, 2), 0.6, 0.5)
    assert mask.tolist() == [[7, 255], [255, 0]]


def test_dropped_classes_do_not_compete_and_ties_take_the_first() -> None:
    maps = np.full((3, 2, 2), 200, np.uint8)
    maps[0] = 255
    assert (mask_from_maps(maps, [0, 4, 9], (2, 2), 0.6, 0.5) == 4).all()
    assert (mask_from_maps(maps, [0, 0, 0], (4, 4), 0.6, 0.5) == 0).all()
    assert mask_from_maps(np.zeros((0, 0, 0), np.uint8), [], (3, 5), 0.6, 0.5).shape == (3, 5)


def test_mask_equals_independent_bicubic_rule() -> None:
    maps = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    large = F.interpolate(maps[None].float() / 255, size=(33, 20), mode="bicubic", align_corners=False)[
        0
    ].numpy()
    best, top = large.argmax(0), large.max(0)
    wanted = np.where(top >= 0.6, np.array([2, 5, 254])[best], np.where(top >= 0.5, 255, 0))
    got = mask_from_maps(maps.numpy(), [2, 5, 254], (33, 20), 0.6, 0.5)
    # a pixel may differ only where two classes or a value and its threshold agree to rounding
    assert (got != wanted).sum() <= 1


def test_wrong_labels_are_refused() -> None:
    for labels in ([1, 2], [255], [-1]):
        with pytest.raises(DataError, match="label ids"):
            mask_from_maps(stepped(), labels, (2, 2), 0.6, 0.5)


def test_absence_guard_against_the_usual_or_the_highest_peak() -> None:
    peaks, names = [0.5, 0.2, 0.24], ["car", "tree", "cup"]
    assert absent(peaks, names, MasksConfig()) == [False] * 3
    assert absent(peaks, names, MasksConfig(absence_ratio=0.45)) == [False, True, False]
    guard = MasksConfig(absence_ratio=0.45, absence_peaks={"tree": 0.3, "cup": 0.6})
    assert absent(peaks, names, guard) == [False, False, True]
    assert absent([], [], MasksConfig(absence_ratio=1.0)) == []


def judge(
    image: np.ndarray, mask: np.ndarray, finite: bool = True, prompted: tuple[int, ...] = (3,)
) -> tuple[str, ...]:
    maps = np.zeros((len(prompted), 2, 2), np.uint8)
    return assess(image, mask, maps, prompted, prompted, 0.6, finite, QualityConfig()).flags


def test_flags() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    labelled = np.zeros((20, 20), np.uint8)
    labelled[:5] = 3
    assert judge(noise, labelled) == ()
    assert judge(np.zeros_like(noise), labelled) == ("black",)
    assert judge(np.full_like(noise, 200), labelled) == ("black",), "constant grey is as useless as black"
    red = np.zeros_like(noise)
    red[..., 0] = 255
    assert judge(red, labelled) == ("black",), "a constant colour has no spatial variation in any channel"
    assert judge(noise, np.zeros_like(labelled)) == ("empty", "class_missing")
    assert judge(noise, np.full_like(labelled, 255)) == ("empty", "class_missing")
    assert judge(noise, labelled, prompted=(3, 4)) == ("class_missing",)
    assert judge(np.zeros_like(noise), np.zeros_like(labelled), finite=False) == (
        "black",
        "empty",
        "class_missing",
        "nonfinite",
    )


def test_scores() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    mask = np.zeros((4, 4), np.uint8)
    mask[0], mask[1] = 2, 255
    maps = np.array([[[255, 204], [0, 0]], [[0, 0], [51, 0]]], np.uint8)
    judged = assess(image, mask, maps, (2, 5), (2, 5), 0.6, True, QualityConfig())
    assert judged.areas == (0.25, 0.0) and judged.confidences == (0.9, 0.0)
    assert judged.scores == {"image_std": 0.0, "foreground": 0.25, "uncertain": 0.25, "confidence": 0.9}


def test_rejects_follow_the_configuration_and_always_include_non_finite() -> None:
    assert is_rejected(("black",), QualityConfig()) and not is_rejected(("class_missing",), QualityConfig())
    assert is_rejected(("class_missing",), QualityConfig(reject=("class_missing",)))
    assert is_rejected(("nonfinite",), QualityConfig(reject=()))
