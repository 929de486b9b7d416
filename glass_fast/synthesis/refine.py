"""Picture-guided refinement of soft class maps: pixel-adaptive mask refinement (PAMR).

Araslanov & Roth, "Single-Stage Semantic Segmentation from Image Labels" (CVPR 2020), section 4.3. Attention knows
where a class is only to the width of a token; the picture knows where the edges are. Every pixel takes the weighted
mean of its neighbours' values, again and again, and alike neighbours weigh more. Not part of Dataset Diffusion.

Letters in shapes: B images, K classes, J = 8 * number of dilations, C = 3 colours, h * w the refined size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from glass_fast.config.schema import MasksConfig

_STEPS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)
_FLOOR = 1e-4
"""Added to the weighted deviation, in units of the full colour range: a flat neighbourhood divides 0 by it."""


def refined_size(picture: tuple[int, int], side: int) -> tuple[int, int]:
    """Rows and columns whose longer side is ``side``, in proportion to ``picture``; never larger than it."""
    scale = min(1.0, side / max(picture))
    return max(1, round(picture[0] * scale)), max(1, round(picture[1] * scale))


def refine_maps(maps: Tensor, images: Tensor, config: MasksConfig) -> Tensor:
    """Enlarge soft maps to ``refine_size`` (bicubic) and refine them with their pictures, as ``config`` says.

    Args:
        maps: (B, K, rows, columns) float32.
        images: (B, H, W, 3) uint8, the pictures that the maps belong to; any device.
        config: ``refine``, ``refine_size``, ``refine_iterations``, ``refine_dilations``, ``refine_weight``.

    Returns:
        (B, K, h, w) float32; the maps as they are for ``refine="none"``. Values stay within those of the enlarged
        maps.

    Raises:
        ValueError: not one picture a map, or pictures of another shape or type.
    """
    if config.refine == "none":
        return maps
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != len(maps):
        raise ValueError(
            f"pictures of {images.dtype} {tuple(images.shape)} for maps of {tuple(maps.shape)}; expected uint8 "
            f"({len(maps)}, H, W, 3)"
        )
    size = refined_size((images.shape[1], images.shape[2]), config.refine_size)
    pictures = images.to(maps.device).permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
    # area means: the noise of single pixels averages out
    pictures = F.interpolate(pictures, size=size, mode="area")
    if not maps.numel():
        return maps.new_zeros(*maps.shape[:2], *size)
    maps = F.interpolate(maps, size=size, mode="bicubic", align_corners=False)
    # One image after the other on a CPU: its affinities stay in the cache. All operations are elementwise over
    # images, so the result is the same either way.
    rows = len(maps) if maps.device.type != "cpu" else 1
    parts = []
    for start in range(0, len(maps), rows):
        part = slice(start, start + rows)
        weights = affinities(pictures[part], config.refine_dilations, config.refine_weight)
        parts.append(propagate(maps[part], weights, config.refine_dilations, config.refine_iterations))
    return torch.cat(parts)


def affinities(pictures: Tensor, dilations: Sequence[int], weight: float) -> Tensor:
    """``alpha(i, j) = softmax_j mean_c -|I_ci - I_cj| / (weight * sigma_ci)`` over the neighbours j of pixel i.

    ``sigma_ci`` is the standard deviation of colour c over the neighbours of i. Beyond the edge the picture is
    continued with its last pixel.

    Args:
        pictures: (B, C, h, w) float32 in [0, 1].
        dilations: distances of the 8-neighbourhoods, in pixels of ``pictures``.
        weight: the smaller, the more a difference of colour counts.

    Returns:
        (B, J, h, w) float32, positive, sums to one over J; order: dilations, then rows, then columns.
    """
    around = list(_neighbours(pictures, dilations))
    mean = torch.zeros_like(pictures)
    for neighbour in around:
        mean += neighbour
    mean /= len(around)
    variance = torch.zeros_like(pictures)
    for neighbour in around:
        # two passes: the mean of squares minus the square of the mean loses flat regions to rounding
        variance.addcmul_(neighbour - mean, neighbour - mean)
    deviation = (variance / (len(around) - 1)).sqrt_()
    scale = -1.0 / pictures.shape[1] / (weight * deviation + _FLOOR)
    logits = pictures.new_empty(pictures.shape[0], len(around), *pictures.shape[2:])
    for index, neighbour in enumerate(around):
        torch.sum((neighbour - pictures).abs_().mul_(scale), dim=1, out=logits[:, index])
    return logits.softmax(dim=1)


def propagate(maps: Tensor, weights: Tensor, dilations: Sequence[int], iterations: int) -> Tensor:
    """Replace every value by the weighted mean of its neighbours, ``iterations`` times.

    Args:
        maps: (B, K, h, w) float32.
        weights: (B, J, h, w) from :func:`affinities` with the same dilations.
        dilations: distances of the 8-neighbourhoods.
        iterations: passes; 0 leaves the maps as they are.

    Returns:
        (B, K, h, w) float32.
    """
    for _ in range(iterations):
        mixed = torch.zeros_like(maps)
        for index, neighbour in enumerate(_neighbours(maps, dilations)):
            mixed.addcmul_(neighbour, weights[:, index : index + 1])
        maps = mixed
    return maps


def _neighbours(values: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """The J neighbours of every pixel as views of one padded copy, each of the shape of ``values``."""
    height, width = values.shape[-2:]
    edge = max(dilations)
    padded = F.pad(values, (edge,) * 4, mode="replicate")
    for dilation in dilations:
        for dy, dx in _STEPS:
            top, left = edge + dy * dilation, edge + dx * dilation
            yield padded[..., top : top + height, left : left + width]
