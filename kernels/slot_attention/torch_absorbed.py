"""Slot attention with the key and value projections absorbed into the slots; exact, see the op's README."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from glass_fast.kernels.slot_attention.api import SlotAttentionWeights
from glass_fast.kernels.slot_attention.reference import update_slots


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
    """See :func:`glass_fast.kernels.slot_attention.slot_attention`.

    Rows of the token products are slots (heads x S of them), so nothing of size N x D is made but the normed
    inputs.
    """
    batch, tokens, channels = inputs.shape
    count, width = slots.shape[1:]
    inputs = functional.layer_norm(inputs, (channels,), weights.norm_inputs_weight, weights.norm_inputs_bias)
    # (heads, D / heads, C): keys and values of one head
    key_heads = weights.project_k.unflatten(0, (heads, width // heads)) * width**-0.5
    value_heads = weights.project_v.unflatten(0, (heads, width // heads))
    transposed = inputs.transpose(1, 2)
    initial = slots
    attention = inputs.new_zeros(batch, heads * count, tokens)
    for step in range(iterations):
        if bi_level and step == iterations - 1:
            slots = slots.detach() + initial - initial.detach()
        normed = functional.layer_norm(slots, (width,), weights.norm_slots_weight, weights.norm_slots_bias)
        queries = functional.linear(normed, weights.project_q)
        if heads == 1:
            absorbed = queries @ key_heads[0]
        else:
            per_head = queries.unflatten(-1, (heads, width // heads))
            absorbed = torch.einsum("bshd,hdc->bhsc", per_head, key_heads).flatten(1, 2)
        logits = absorbed @ transposed  # (B, heads * S, N)
        if active is not None:
            logits = logits.masked_fill(~active.repeat(1, heads)[:, :, None], float("-inf"))
        attention = logits.softmax(1)
        # (A + eps) / sum(A + eps) applied to x, without a second N-sized array
        total = attention.sum(2, keepdim=True) + epsilon * tokens
        read = (attention @ inputs + epsilon * inputs.sum(1, keepdim=True)) / total
        if heads == 1:
            updates = functional.linear(read, weights.project_v)
        else:
            per_head = read.unflatten(1, (heads, count))
            updates = torch.einsum("bhsc,hdc->bshd", per_head, value_heads).flatten(2)
        slots = update_slots(updates, slots, weights)
    return slots, attention.unflatten(1, (heads, count)).sum(1)
