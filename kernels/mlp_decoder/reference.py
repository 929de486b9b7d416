"""Textbook broadcast decoder; defines the meaning of the op."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def mlp_decoder(
    slots: Tensor, positions: Tensor, layers: list[tuple[Tensor, Tensor]], active: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See :func:`glass_fast.kernels.mlp_decoder.mlp_decoder`."""
    hidden = slots[:, :, None, :] + positions  # (B, S, P, d)
    for weight, bias in layers[:-1]:
        hidden = functional.relu(functional.linear(hidden, weight, bias))
    output = functional.linear(hidden, *layers[-1])
    logits = output[..., -1]
    if active is not None:
        logits = logits.masked_fill(~active[:, :, None], float("-inf"))
    alpha = logits.softmax(1)
    return (output[..., :-1] * alpha[..., None]).sum(1), alpha
