"""Textbook slot attention; defines the meaning of the op."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from glass_fast.kernels.slot_attention.api import SlotAttentionWeights


def update_slots(updates: Tensor, slots: Tensor, weights: SlotAttentionWeights) -> Tensor:
    """GRU step and residual MLP.

    Args:
        updates: (B, S, D) what the slots read.
        slots: (B, S, D) slots of the previous iteration, not normalised.
        weights: the op's weights.

    Returns:
        (B, S, D).
    """
    gates_in = functional.linear(updates, weights.gru_weight_ih, weights.gru_bias_ih)
    gates_hidden = functional.linear(slots, weights.gru_weight_hh, weights.gru_bias_hh)
    reset_in, update_in, new_in = gates_in.chunk(3, -1)
    reset_hidden, update_hidden, new_hidden = gates_hidden.chunk(3, -1)
    reset = torch.sigmoid(reset_in + reset_hidden)
    update = torch.sigmoid(update_in + update_hidden)
    new = torch.tanh(new_in + reset * new_hidden)
    slots = new + update * (slots - new)
    hidden = functional.layer_norm(slots, slots.shape[-1:], weights.norm_mlp_weight, weights.norm_mlp_bias)
    hidden = functional.relu(functional.linear(hidden, weights.mlp_in_weight, weights.mlp_in_bias))
    return slots + functional.linear(hidden, weights.mlp_out_weight, weights.mlp_out_bias)


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
    batch, tokens, channels = inputs.shape
    count, width = slots.shape[1:]
    inputs = functional.layer_norm(inputs, (channels,), weights.norm_inputs_weight, weights.norm_inputs_bias)

    def split(values: Tensor) -> Tensor:
        return values.unflatten(-1, (heads, width // heads)).transpose(1, 2)

    keys = split(functional.linear(inputs, weights.project_k)) * width**-0.5
    values = split(functional.linear(inputs, weights.project_v))
    initial = slots
    attention = inputs.new_zeros(batch, heads, tokens, count)
    for step in range(iterations):
        if bi_level and step == iterations - 1:
            slots = slots.detach() + initial - initial.detach()
        normed = functional.layer_norm(slots, (width,), weights.norm_slots_weight, weights.norm_slots_bias)
        queries = split(functional.linear(normed, weights.project_q))
        logits = keys @ queries.transpose(-1, -2)  # (B, heads, N, S)
        if active is not None:
            logits = logits.masked_fill(~active[:, None, None, :], float("-inf"))
        joint = logits.transpose(1, 2).flatten(2).softmax(-1)  # over heads * slots
        attention = joint.unflatten(-1, (heads, count)).transpose(1, 2)
        shares = attention + epsilon
        shares = shares / shares.sum(2, keepdim=True)
        updates = (shares.transpose(-1, -2) @ values).transpose(1, 2).flatten(2)
        slots = update_slots(updates, slots, weights)
    return slots, attention.sum(1).transpose(1, 2)
