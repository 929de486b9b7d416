"""Contract of the op ``mask_labels``; drives its tests and benchmark rows."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from glass_fast.kernels.mask_labels.api import mask_labels
from glass_fast.kernels.spec import Case, OpSpec, Tolerance, Work

LETTERS = "BKhwHW"


def _case(
    sizes: tuple[int, ...], thresholds: tuple[float, float] = (0.6, 0.5), *tags: str, **options: Any
) -> Case:
    """Letters: B images, K classes, (h, w) of the maps, (H, W) of the result."""
    options = {"threshold": thresholds[0], "uncertain_threshold": thresholds[1]} | options
    return Case(dict(zip(LETTERS, sizes, strict=True)), options, frozenset(tags))


def _make(case: Case, dtype: torch.dtype, device: str, seed: int) -> dict[str, Any]:
    """Values in [0, 1], smooth as attention maps are.

    ``padding`` marks every third map and fills it with NaN; ``twins`` makes every second map equal to the one
    before, so that the order of the classes decides every pixel.
    """
    batch, classes, rows, columns, height, width = (case.sizes[letter] for letter in LETTERS)
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch * classes, 1, 5, 5, generator=draw, dtype=torch.float64)
    maps = coarse.new_zeros(batch, classes, rows, columns)
    if maps.numel():
        smooth = functional.interpolate(coarse, size=(rows, columns), mode="bilinear", align_corners=False)
        maps = smooth.view(batch, classes, rows, columns)
    labels = torch.randint(1, 255, (batch, classes), generator=draw, dtype=torch.uint8)
    if case.options.get("twins"):
        maps[:, 1::2] = maps[:, : 2 * (classes // 2) : 2]
    if case.options.get("padding"):
        labels[:, 2::3] = 0
        maps[:, 2::3] = torch.nan
    return {
        "maps": maps.to(device, dtype),
        "labels": labels.to(device),
        "size": (height, width),
        "threshold": case.options["threshold"],
        "uncertain_threshold": case.options["uncertain_threshold"],
    }


def _work(case: Case) -> Work:
    batch, classes, rows, columns, height, width = (float(case.sizes[letter]) for letter in LETTERS)
    # separable: four taps along x for each source row, four along y and a comparison for each pixel
    flops = batch * classes * (8 * rows * width + 9 * height * width)
    return Work(flops, batch * (classes * (4 * rows * columns + 1) + height * width))


def _compare(arguments: dict[str, Any], found: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Equal to ``reference``, but for pixels that float32 rounding decides.

    Such a pixel is told by the upsampled values in float64: it may have every result that some change of the
    values by ``margin`` gives. At most one pixel in a million may use that freedom (the project's rule for
    masks), or one in a small image.
    """
    maps, labels = arguments["maps"].float(), arguments["labels"].to(found.device)
    height, width = arguments["size"]
    if found.dtype != torch.uint8 or tuple(found.shape) != (len(maps), height, width):
        return f"{found.dtype} {tuple(found.shape)}; expected uint8 {(len(maps), height, width)}"
    differ = found != expected
    count = int(differ.sum())
    if count == 0:
        return None
    if count > max(1, 1e-6 * differ.numel()):
        return f"{count} of {differ.numel()} pixels differ"
    # 16 products of weights whose magnitudes sum to 1.9; the position, rounded at the size of the map, moves a
    # weight by at most 1.5 of its error
    margin = 2.0**-23 * (32 + 4 * max(maps.shape[2:]))
    padding = (labels == 0)[:, :, None, None]
    values = functional.interpolate(
        maps.double().masked_fill(padding, 0), size=(height, width), mode="bicubic", align_corners=False
    ).masked_fill(padding, -torch.inf)
    best = values.amax(1)
    # float32 thresholds, as the op compares
    certain, uncertain = (
        float(torch.tensor(arguments[name], dtype=torch.float32))
        for name in ("threshold", "uncertain_threshold")
    )
    same = (labels[:, :, None, None] == found[:, None]) & (values >= best[:, None] - margin)
    allowed = (
        (same.any(1) & (best >= certain - margin))
        | ((found == 255) & (best >= uncertain - margin) & (best < certain + margin))
        | ((found == 0) & (best < uncertain + margin))
    )
    wrong = (differ & ~allowed).nonzero()
    if not len(wrong):
        return None
    b, y, x = wrong[0].tolist()
    return (
        f"pixel {(b, y, x)} is {found[b, y, x]}; expected {expected[b, y, x]}, greatest value {best[b, y, x]}"
    )


SPEC = OpSpec(
    op="mask_labels",
    function=mask_labels,
    source="Dataset Diffusion (NeurIPS 2023), class maps to masks; GLASS (CVPR 2025), section 3",
    tests=(
        _case((2, 5, 16, 16, 64, 64)), _case((1, 1, 1, 1, 1, 1)),
        _case((3, 2, 7, 5, 31, 29), padding=True), _case((2, 3, 17, 16, 9, 5)), _case((1, 64, 8, 8, 17, 17)),
        _case((1, 4, 32, 32, 511, 513)), _case((2, 3, 1, 13, 7, 127)), _case((1, 3, 33, 31, 1, 700)),
        _case((2, 4, 9, 9, 65, 63), (0.0, -1.0)), _case((2, 4, 9, 9, 65, 63), (2.0, 0.5)),
        _case((2, 4, 9, 9, 65, 63), (0.5, 0.5), padding=True), _case((0, 3, 4, 4, 8, 8)), _case((2, 0, 4, 4, 8, 8)),
        _case((2, 6, 8, 8, 24, 24), twins=True),
    ),
    benchmarks=(_case((8, 5, 32, 32, 512, 512)),),
    make=_make,
    tolerance={
        "float32": Tolerance(0, 0, "see compare: equal but for pixels that rounding decides, 1 in 10^6 at most"),
        "float16": Tolerance(0, 0, "see compare: maps are cast to float32, which is exact"),
    },
    work=_work,
    outputs=("labels",),
    invalid={
        "rank": (lambda a: a | {"maps": a["maps"][0]}, "maps is torch.float32 of shape (5, 16, 16); expected"),
        "integers": (lambda a: a | {"maps": a["maps"].long()}, "maps is torch.int64"),
        "no map pixel": (lambda a: a | {"maps": a["maps"][..., :0]}, "with h, w >= 1"),
        "label dtype": (lambda a: a | {"labels": a["labels"].long()}, "labels is torch.int64 of shape (2, 5)"),
        "label shape": (lambda a: a | {"labels": a["labels"][:, 1:]}, "shape (2, 4); expected uint8 (2, 5)"),
        "size": (lambda a: a | {"size": (0, 64)}, "size is (0, 64); expected at least 1 x 1"),
        "order": (lambda a: a | {"threshold": 0.4}, "thresholds are 0.4 and 0.5 (uncertain)"),
        "threshold": (lambda a: a | {"threshold": float("nan")}, "thresholds are nan and 0.5"),
        "label 255": (lambda a: a | {"labels": torch.full((2, 5), 255, dtype=torch.uint8)}, "[GF-DATA-921]"),
        "not finite": (lambda a: a | {"maps": a["maps"] / 0.0}, "[GF-NUM-920]"),
    },
    compare=_compare,
)  # fmt: skip
