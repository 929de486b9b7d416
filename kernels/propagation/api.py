"""Public function of the op ``propagation``: validation and dispatch."""

from __future__ import annotations

import torch

from glass_fast.errors import ConfigError, DataError
from glass_fast.kernels import implementation


def propagation(
    self_map: torch.Tensor, class_maps: torch.Tensor, tau: int, backend: str | None = None
) -> torch.Tensor:
    """Class maps refined by the self-attention map: ``self_map ** tau @ class_maps``.

    GLASS (CVPR 2025, section 3) after Dataset Diffusion: each pass replaces a token's score by the
    attention-weighted mean of the scores it attends to.

    Args:
        self_map: ``(batch, tokens, tokens)`` mean self-attention, row = query.
        class_maps: ``(batch, tokens, classes)`` mean cross-attention of each class.
        tau: number of passes, at least 0; 0 returns the class maps.
        backend: backend that must be used; default: see :func:`glass_fast.kernels.choose`.

    Returns:
        ``(batch, tokens, classes)``, float32 (float64 when both inputs are).

    Raises:
        ConfigError: GF-CONFIG-924, ``tau`` is negative.
        DataError: GF-DATA-922, wrong shape, dtype or devices.
    """
    fits = (
        self_map.dim() == 3
        and class_maps.dim() == 3
        and self_map.shape[1] == self_map.shape[2] == class_maps.shape[1]
        and self_map.shape[0] == class_maps.shape[0]
        and self_map.is_floating_point()
        and class_maps.is_floating_point()
        and self_map.device == class_maps.device
    )
    if not fits:
        raise DataError(
            "GF-DATA-922",
            f"propagation: self_map is {self_map.dtype} {tuple(self_map.shape)} on {self_map.device} and"
            f" class_maps is {class_maps.dtype} {tuple(class_maps.shape)} on {class_maps.device}; expected"
            " floating point (batch, tokens, tokens) and (batch, tokens, classes) on one device",
        )
    if tau < 0:
        raise ConfigError("GF-CONFIG-924", f"propagation: tau is {tau}; expected 0 or more", "set masks.tau")
    # Means of half-precision attention are summed in float32: four passes in fp16 lose small classes.
    dtype = torch.promote_types(torch.promote_types(self_map.dtype, class_maps.dtype), torch.float32)
    run = implementation("propagation", self_map.device, backend, dtype)
    refined: torch.Tensor = run(self_map.to(dtype), class_maps.to(dtype), int(tau))
    return refined
