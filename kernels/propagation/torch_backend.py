"""Backend ``torch``: repeated products with the (tokens, classes) matrix."""

from __future__ import annotations

import torch


def propagation_torch(self_map: torch.Tensor, class_maps: torch.Tensor, tau: int) -> torch.Tensor:
    """See :func:`glass_fast.kernels.propagation.api.propagation`; O(tau tokens^2 classes)."""
    refined = class_maps.clone() if tau == 0 else class_maps
    for _ in range(tau):
        refined = torch.bmm(self_map, refined)
    return refined
