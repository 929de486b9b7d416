"""Backend ``reference``: upsample every class, arg max, thresholds, as the formula reads."""

from __future__ import annotations

import torch
from torch.nn import functional

from glass_fast.kernels.mask_labels.checks import check_values


def mask_labels_reference(
    maps: torch.Tensor,
    labels: torch.Tensor,
    height: int,
    width: int,
    threshold: float,
    uncertain_threshold: float,
) -> torch.Tensor:
    """See :func:`glass_fast.kernels.mask_labels.api.mask_labels`; holds all upsampled classes."""
    labels = labels.to(maps.device)
    check_values(maps, labels)
    if maps.shape[0] == 0 or maps.shape[1] == 0:
        return maps.new_zeros((maps.shape[0], height, width), dtype=torch.uint8)
    padding = (labels == 0)[:, :, None, None]
    upsampled = functional.interpolate(
        maps.masked_fill(padding, 0.0), size=(height, width), mode="bicubic", align_corners=False
    )
    values = upsampled.masked_fill(padding, -torch.inf)
    # amax + first index: torch.max leaves open which index it returns on a tie.
    best = values.amax(dim=1)
    index = (values == best[:, None]).to(torch.uint8).argmax(dim=1)
    label = labels.gather(1, index.flatten(1)).view_as(index)
    uncertain = torch.where(best >= uncertain_threshold, 255, 0).to(torch.uint8)
    return torch.where(best >= threshold, label, uncertain)
