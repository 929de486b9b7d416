"""Backend ``reference``: the matrix power of the formula."""

from __future__ import annotations

import torch


def propagation_reference(self_map: torch.Tensor, class_maps: torch.Tensor, tau: int) -> torch.Tensor:
    """See :func:`glass_fast.kernels.propagation.api.propagation`; O(tokens^3 log tau)."""
    return torch.linalg.matrix_power(self_map, tau) @ class_maps
