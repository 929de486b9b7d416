"""Picture-guided refinement against the formula in loops, its guarantees, and the stored maps of a job."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import ValidationError

from glass_fast.config.schema import CaptureConfig, MasksConfig, QualityConfig, SynthesisConfig
from glass_fast.data.shards import open_shards
from glass_fast.errors import ConfigError
from glass_fast.synthesis.batches import BatchRunner
from glass_fast.synthesis.job import synthesize
from glass_fast.synthesis.masks import mask_from_maps, soft_maps
from glass_fast.synthesis.refine import affinities, propagate, refine_maps, refined_size

SIDE = 16
PAMR = MasksConfig(refine="pamr", refine_size=SIDE, refine_dilations=(1, 2), refine_iterations=4)


def pictures(count: int = 2, side: int = SIDE) -> torch.Tensor:
    """Noise on two flat halves whose border lies at column ``side // 2``, left dark and right bright."""
    draw = torch.Generator().manual_seed(0)
    halves = torch.full((count, side, side, 3), 60.0)
    halves[:, :, side // 2 :] = 190.0
    return (halves + torch.randn(halves.shape, generator=draw) * 3).round().to(torch.uint8)


def textbook(
    picture: NDArray[np.float64], maps: NDArray[np.float64], dilations: tuple[int, ...], weight: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Affinities (J, h, w) and one pass over ``maps`` (K, h, w), pixel by pixel in float64."""
    _, height, width = picture.shape
    offsets = [(d * y, d * x) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    alpha = np.zeros((len(offsets), height, width))
    mixed = np.zeros_like(maps)
    for row in range(height):
        for column in range(width):
            places = [
                (min(max(row + dy, 0), height - 1), min(max(column + dx, 0), width - 1)) for dy, dx in offsets
            ]
            around = np.array([picture[:, y, x] for y, x in places])
            sigma = np.sqrt(((around - around.mean(0)) ** 2).sum(0) / (len(around) - 1))
            logits = (-np.abs(around - picture[:, row, column]) / (weight * sigma + 1e-4)).mean(1)
            share = np.exp(logits - logits.max())
            alpha[:, row, column] = share / share.sum()
            mixed[:, row, column] = sum(
                a * maps[:, y, x] for a, (y, x) in zip(alpha[:, row, column], places, strict=True)
            )
    return alpha, mixed


@pytest.mark.parametrize("dilations", [(1,), (1, 3), (2, 11)])
def test_affinities_and_one_pass_are_the_formula(dilations: tuple[int, ...]) -> None:
    """Also where a dilation is larger than the picture (11 on 7 rows)."""
    draw = torch.Generator().manual_seed(1)
    picture = torch.rand(1, 3, 7, 9, generator=draw)
    picture[:, :, :3, :3] = 0.25  # a flat corner, where the deviation is 0 for dilation 1
    maps = torch.rand(1, 2, 7, 9, generator=draw)
    alpha, mixed = textbook(picture[0].double().numpy(), maps[0].double().numpy(), dilations, 0.3)
    weights = affinities(picture, dilations, 0.3)
    # float32 against float64: logits reach some 10, so their rounding shows at about 1e-6 of a weight
    np.testing.assert_allclose(weights[0].numpy(), alpha, atol=1e-5)
    np.testing.assert_allclose(propagate(maps, weights, dilations, 1)[0].numpy(), mixed, atol=1e-5)


def test_weights_are_shares_so_values_stay_in_range_and_constants_stay() -> None:
    images, draw = pictures(), torch.Generator().manual_seed(2)
    weights = affinities(images.permute(0, 3, 1, 2) / 255.0, (1, 2), 0.1)
    # a sum of 16 float32 numbers
    torch.testing.assert_close(weights.sum(1), torch.ones(2, SIDE, SIDE), rtol=0, atol=1e-6)
    maps = torch.rand(2, 3, SIDE, SIDE, generator=draw)
    maps[:, 1] = 0.7
    out = propagate(maps, weights, (1, 2), 20)
    # 20 passes, each of which may round every weight's sum by the above
    assert (out.amin(dim=(2, 3)) >= maps.amin(dim=(2, 3)) - 2e-5).all()
    assert (out.amax(dim=(2, 3)) <= maps.amax(dim=(2, 3)) + 2e-5).all()
    torch.testing.assert_close(out[:, 1], maps[:, 1], rtol=0, atol=2e-5)


def test_a_soft_border_moves_to_the_edge_of_the_picture() -> None:
    """The map changes sides two columns off the picture's edge; refinement brings the change to the edge."""
    columns = torch.arange(SIDE, dtype=torch.float32)
    ramp = ((columns - (SIDE / 2 - 2.5)) / 6 + 0.5).clamp(0, 1)
    maps = ramp.expand(2, 1, SIDE, SIDE).contiguous()
    out = refine_maps(maps, pictures(), PAMR)
    left, right = out[..., : SIDE // 2], out[..., SIDE // 2 :]
    before = maps[..., SIDE // 2] - maps[..., SIDE // 2 - 1]
    after = right[..., 0] - left[..., -1]
    assert (after > 2.5 * before).all(), "the step at the picture's edge has grown"
    assert (maps[..., SIDE // 2 - 2] > 0.5).all() and (left[..., -2].mean() < 0.5) and (right.mean() > 0.5)
    grey = refine_maps(maps, torch.full((2, SIDE, SIDE, 3), 128, dtype=torch.uint8), PAMR)
    assert (grey[..., SIDE // 2] - grey[..., SIDE // 2 - 1] <= before + 1e-6).all(), "no edge, no step"


def test_every_image_is_refined_as_if_alone() -> None:
    images, maps = pictures(3), torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    together = refine_maps(maps, images, PAMR)
    assert together.shape == (3, 2, SIDE, SIDE)
    for row in range(3):
        alone = refine_maps(maps[row : row + 1], images[row : row + 1], PAMR)
        assert torch.equal(alone[0], together[row])
    whole = propagate(
        F.interpolate(maps, size=(SIDE, SIDE), mode="bicubic", align_corners=False),
        affinities(images.permute(0, 3, 1, 2) / 255.0, (1, 2), PAMR.refine_weight),
        (1, 2),
        PAMR.refine_iterations,
    )
    # one call for all images (as on a GPU); vectorised exponentials may round by the position in the array
    torch.testing.assert_close(whole, together, rtol=0, atol=1e-5)


def test_sizes_keep_the_shape_of_the_picture_and_never_exceed_it() -> None:
    assert refined_size((64, 64), 32) == (32, 32) and refined_size((64, 64), 128) == (64, 64)
    assert refined_size((512, 384), 128) == (128, 96)
    wide = torch.zeros(1, 24, 48, 3, dtype=torch.uint8)
    assert refine_maps(torch.rand(1, 2, 3, 6), wide, PAMR).shape == (1, 2, 8, 16)


def test_none_is_untouched_and_wrong_pictures_are_a_bug_not_a_guess() -> None:
    maps = torch.rand(2, 3, 4, 4)
    assert refine_maps(maps, pictures(), MasksConfig()) is maps
    for images in (pictures(1), pictures().float(), pictures()[..., :1]):
        with pytest.raises(ValueError, match="expected uint8"):
            refine_maps(maps, images, PAMR)
    with pytest.raises(ValueError, match="needs the pictures"):
        soft_maps(maps, PAMR)
    assert refine_maps(torch.zeros(2, 0, 4, 4), pictures(), PAMR).shape == (2, 0, SIDE, SIDE)


def test_stored_maps_span_their_range_and_peaks_are_those_before_refinement() -> None:
    raw = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(4)) * 0.01
    raw[1, 2] = 0.004  # no evidence: stays empty, refined or not
    plain, usual = soft_maps(raw, MasksConfig())
    soft, peaks = soft_maps(raw, PAMR, pictures())
    assert plain.shape == (2, 3, 4, 4) and soft.shape == (2, 3, SIDE, SIDE) and soft.dtype == torch.uint8
    assert torch.equal(peaks, usual) and torch.equal(peaks, raw.amax(dim=(2, 3)))
    assert not soft[1, 2].any()
    filled = soft.flatten(2)[torch.tensor([[True, True, True], [True, True, False]])]
    assert (filled.amin(1) == 0).all() and (filled.amax(1) == 255).all()


def test_options_out_of_range_are_refused() -> None:
    for wrong in (
        {"refine": "crf"},
        {"refine_size": 0},
        {"refine_iterations": 0},
        {"refine_dilations": ()},
        {"refine_dilations": (0,)},
        {"refine_weight": 0.0},
        {"floor": 1.0},
        {"competition": -0.1},
    ):
        with pytest.raises(ValidationError):
            MasksConfig.model_validate({"refine": "pamr", **wrong})


def job(masks: MasksConfig) -> SynthesisConfig:
    return SynthesisConfig(
        num=4,
        batch_size=2,
        shard_size=4,
        steps=2,
        capture=CaptureConfig(self_size=16, cross_size=8),
        masks=masks,
        quality=QualityConfig(max_reject_share=1.0),
    )


def test_a_job_stores_refined_maps_and_its_masks_are_a_function_of_them(
    tiny_sd: ModuleType, tmp_path: Path
) -> None:
    masks = PAMR.model_copy(update={"refine_size": 32, "floor": 0.5, "competition": 0.3})
    for name, chosen in (("refined", masks), ("plain", MasksConfig())):
        synthesize(
            tiny_sd.prompts(), tiny_sd.LABELS, job(chosen), tiny_sd.generator(), tmp_path / name, seed=5
        )
    labelled = 0
    for sample, plain in zip(open_shards(tmp_path / "refined"), open_shards(tmp_path / "plain"), strict=True):
        assert (sample.image == plain.image).all() and sample.meta["peaks"] == plain.meta["peaks"]
        assert (sample.meta["refine"], sample.meta["refine_dilations"]) == ("pamr", [1, 2])
        assert (sample.meta["floor"], plain.meta["refine"], plain.meta["floor"]) == (0.5, "none", 0.0)
        if not sample.meta["classes"]:
            continue
        assert sample.maps.shape[1:] == (32, 32) and plain.maps.shape[1:] == (16, 16)
        again = mask_from_maps(sample.maps, sample.meta["label_ids"], sample.mask.shape, 0.6, 0.5)
        assert (again == sample.mask).all()
        labelled += int(((sample.mask > 0) & (sample.mask < 255)).sum())
    assert labelled > 0


def test_maps_coarser_than_the_tokens_are_refused(tiny_sd: ModuleType) -> None:
    with pytest.raises(ConfigError, match="GF-SYN-007"):
        BatchRunner(tiny_sd.generator(), job(PAMR.model_copy(update={"refine_size": 8})), 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_processor() -> None:
    images, maps = pictures(3), torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    there = refine_maps(maps.cuda(), images, PAMR)
    # other exponentials and another order in the softmax's sum
    torch.testing.assert_close(there.cpu(), refine_maps(maps, images, PAMR), rtol=0, atol=1e-5)
    assert torch.equal(there, refine_maps(maps.cuda(), images, PAMR))
