"""Public function of the op ``mask_labels``: validation and dispatch."""

from __future__ import annotations

import torch

from glass_fast.errors import ConfigError, DataError
from glass_fast.kernels import implementation


def mask_labels(
    maps: torch.Tensor,
    labels: torch.Tensor,
    size: tuple[int, int],
    threshold: float,
    uncertain_threshold: float,
    backend: str | None = None,
) -> torch.Tensor:
    """Label image from soft class maps: bicubic upsampling, arg max over the classes, two thresholds.

    The rule of Dataset Diffusion that GLASS (CVPR 2025, section 3) uses: with ``m`` the greatest upsampled
    value of a pixel and ``a`` its class, ``m >= threshold`` gives the label of ``a``,
    ``uncertain_threshold <= m < threshold`` gives 255, anything less gives 0. Upsampling is PyTorch's bicubic
    (a = -0.75, half-pixel centres). Of equal values the lowest class index wins. Comparisons are in float32.

    Args:
        maps: ``(batch, classes, h, w)`` float, normalised to [0, 1]; finite except in padding.
        labels: ``(batch, classes)`` uint8, 1..254; 0 marks padding, whose map is never read.
        size: ``(H, W)`` of the result in pixels.
        threshold: values from here on are certain.
        uncertain_threshold: values from here to ``threshold`` become 255.
        backend: backend that must be used; default: see :func:`glass_fast.kernels.choose`.

    Returns:
        ``(batch, H, W)`` uint8 on the device of ``maps``.

    Raises:
        ConfigError: GF-CONFIG-923, ``uncertain_threshold`` exceeds ``threshold`` or one is not finite.
        DataError: GF-DATA-921, a label is 255; GF-DATA-922, wrong shape, dtype or size.
        NumericsError: GF-NUM-920, a map of a class holds NaN or infinity.
    """
    if maps.dim() != 4 or not maps.is_floating_point() or min(maps.shape[2:]) < 1:
        raise DataError(
            "GF-DATA-922",
            f"mask_labels: maps is {maps.dtype} of shape {tuple(maps.shape)}; expected floating point"
            " (batch, classes, h, w) with h, w >= 1",
        )
    if labels.dtype != torch.uint8 or labels.shape != maps.shape[:2]:
        raise DataError(
            "GF-DATA-922",
            f"mask_labels: labels is {labels.dtype} of shape {tuple(labels.shape)};"
            f" expected uint8 {tuple(maps.shape[:2])}, one label a map",
        )
    if labels.is_meta and not maps.is_meta:
        raise DataError(
            "GF-DATA-922", f"mask_labels: labels is on meta and maps on {maps.device}; expected values"
        )
    if len(size) != 2:
        raise DataError("GF-DATA-922", f"mask_labels: size is {tuple(size)}; expected (height, width)")
    height, width = (int(side) for side in size)
    if height < 1 or width < 1:
        raise DataError(
            "GF-DATA-922", f"mask_labels: size is ({height}, {width}); expected at least 1 x 1 pixels"
        )
    if not -float("inf") < uncertain_threshold <= threshold < float("inf"):
        raise ConfigError(
            "GF-CONFIG-923",
            f"mask_labels: thresholds are {threshold} and {uncertain_threshold} (uncertain);"
            " expected finite values with uncertain_threshold <= threshold",
            "lower masks.uncertain_threshold or raise masks.threshold",
        )
    run = implementation("mask_labels", maps.device, backend)
    found: torch.Tensor = run(
        maps.detach().float(), labels, height, width, float(threshold), float(uncertain_threshold)
    )
    return found
