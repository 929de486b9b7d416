"""Backend ``torch``: one upsampled class at a time, so memory does not grow with the number of classes."""

from __future__ import annotations

import torch
from torch.nn import functional

from glass_fast.kernels.mask_labels.checks import check_values


def mask_labels_torch(
    maps: torch.Tensor,
    labels: torch.Tensor,
    height: int,
    width: int,
    threshold: float,
    uncertain_threshold: float,
) -> torch.Tensor:
    """See :func:`glass_fast.kernels.mask_labels.api.mask_labels`; holds three ``(batch, H, W)`` buffers."""
    labels = labels.to(maps.device)
    check_values(maps, labels)
    batch, classes = labels.shape
    best = maps.new_full((batch, height, width), -torch.inf)
    best_label = torch.zeros((batch, height, width), dtype=torch.uint8, device=maps.device)
    if batch == 0:
        return best_label
    for k in range(classes):
        label = labels[:, k, None, None]
        padding = label == 0
        value = functional.interpolate(
            maps[:, k : k + 1].masked_fill(padding[:, None], 0.0),
            size=(height, width),
            mode="bicubic",
            align_corners=False,
        )[:, 0]
        better = (value > best) & ~padding  # strict: the lowest class index wins a tie
        best = torch.where(better, value, best)
        best_label = torch.where(better, label, best_label)
    uncertain = torch.where(best >= uncertain_threshold, 255, 0).to(torch.uint8)
    return torch.where(best >= threshold, best_label, uncertain)
