"""Backend ``cpu``: the native kernel, fused per output row."""

from __future__ import annotations

import torch

from glass_fast import native


def mask_labels_cpu(
    maps: torch.Tensor,
    labels: torch.Tensor,
    height: int,
    width: int,
    threshold: float,
    uncertain_threshold: float,
) -> torch.Tensor:
    """See :func:`glass_fast.kernels.mask_labels.api.mask_labels`."""
    found: torch.Tensor = native.op("mask_labels")(
        maps, labels.cpu(), height, width, threshold, uncertain_threshold
    )
    return found
