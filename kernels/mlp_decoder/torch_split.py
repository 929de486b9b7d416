"""Decoder whose first and last layers run once per token; exact, see the op's README."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def mlp_decoder(
    slots: Tensor, positions: Tensor, layers: list[tuple[Tensor, Tensor]], active: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See :func:`glass_fast.kernels.mlp_decoder.mlp_decoder`."""
    batch, count = slots.shape[:2]
    weight, bias = layers[0]
    from_slots = functional.linear(slots, weight)  # (B, S, h)
    from_positions = functional.linear(positions, weight, bias)  # (P, h)
    hidden = functional.relu(from_slots[:, :, None, :] + from_positions)
    for weight, bias in layers[1:-1]:
        hidden = functional.relu(functional.linear(hidden, weight, bias))
    weight, bias = layers[-1]
    logits = (hidden @ weight[-1]) + bias[-1]
    if active is not None:
        logits = logits.masked_fill(~active[:, :, None], float("-inf"))
    alpha = logits.softmax(1)
    patches, width = hidden.shape[2:]
    # (B, P, 1, S) @ (B, P, S, h): batched products over a strided view, no copy of the hidden layer
    mixed = torch.einsum("bsp,bsph->bph", alpha, hidden)
    reconstruction = functional.linear(mixed.reshape(batch, patches, width), weight[:-1], bias[:-1])
    return reconstruction, alpha.reshape(batch, count, patches)
