"""Backend ``cpu``: native forward and backward pass of the absorbed form, float32; see the op's README."""

from __future__ import annotations

import torch
from torch import Tensor

from glass_fast import native
from glass_fast.kernels.slot_attention.api import SlotAttentionWeights


def slot_attention(
    inputs: Tensor,
    slots: Tensor,
    weights: SlotAttentionWeights,
    iterations: int,
    heads: int,
    epsilon: float,
    active: Tensor | None,
    bi_level: bool,
) -> tuple[Tensor, Tensor]:
    """See :func:`glass_fast.kernels.slot_attention.slot_attention`."""
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (inputs, slots, *weights))
    out, attention, _ = native.op("slot_attention")(
        inputs, slots, list(weights), iterations, heads, epsilon, active, bi_level, save
    )
    return out, attention
