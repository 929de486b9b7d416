"""Backend ``cpu``: native passes over the self map."""

from __future__ import annotations

import torch

from glass_fast import native


def propagation_cpu(self_map: torch.Tensor, class_maps: torch.Tensor, tau: int) -> torch.Tensor:
    """See :func:`glass_fast.kernels.propagation.api.propagation`; float32 only."""
    refined: torch.Tensor = native.op("propagation")(self_map, class_maps, tau)
    return refined
