"""Decoder whose first and last layers run once per token; exact, see the op's README.

On the CPU, training goes through the batch in pieces that stay in cache, with a hand-written backward: the hidden
layers of a whole batch are far larger than the cache, and everything but the matrix products is bound by memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_PIECE_BYTES = 4 * 2**20


def _hidden(from_slots: Tensor, from_positions: Tensor, layers: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Outputs of all hidden layers, each ``(B, S, P, h)``."""
    outputs = [(from_slots[:, :, None, :] + from_positions).relu_()]
    for weight, bias in layers[1:-1]:
        outputs.append(functional.linear(outputs[-1], weight, bias).relu_())
    return outputs


def _mix(
    hidden: Tensor, weight: Tensor, bias: Tensor, active: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruction (B, P, D), alpha (B, S, P) and mixed hidden layer (B, P, h)."""
    logits = (hidden @ weight[-1]) + bias[-1]
    if active is not None:
        logits = logits.masked_fill(~active[:, :, None], float("-inf"))
    alpha = logits.softmax(1)
    mixed = torch.einsum("bsp,bsph->bph", alpha, hidden)
    return functional.linear(mixed, weight[:-1], bias[:-1]), alpha, mixed


def mlp_decoder(
    slots: Tensor, positions: Tensor, layers: list[tuple[Tensor, Tensor]], active: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See :func:`glass_fast.kernels.mlp_decoder.mlp_decoder`."""
    flat = [tensor for pair in layers for tensor in pair]
    trained = torch.is_grad_enabled() and any(t.requires_grad for t in (slots, positions, *flat))
    if slots.device.type == "cpu" and trained:
        pair: tuple[Tensor, Tensor] = _InPieces.apply(slots, positions, active, *flat)
        return pair
    weight, bias = layers[0]
    hidden = _hidden(functional.linear(slots, weight), functional.linear(positions, weight, bias), layers)
    reconstruction, alpha, _ = _mix(hidden[-1], *layers[-1], active)
    return reconstruction, alpha


class _InPieces(torch.autograd.Function):
    """The same function, a few images at a time."""

    @staticmethod
    def forward(
        ctx: Any, slots: Tensor, positions: Tensor, active: Tensor | None, *flat: Tensor
    ) -> tuple[Tensor, Tensor]:
        layers = list(zip(flat[::2], flat[1::2], strict=True))
        batch, count = slots.shape[:2]
        patches, width = positions.shape[0], layers[-1][0].shape[0] - 1
        from_slots = functional.linear(slots, layers[0][0])
        from_positions = functional.linear(positions, *layers[0])
        widest = max(weight.shape[0] for weight, _ in layers[:-1])
        ctx.piece = max(1, _PIECE_BYTES // (count * patches * widest * slots.element_size()))
        reconstruction = slots.new_empty(batch, patches, width)
        alpha = slots.new_empty(batch, count, patches)
        kept: list[Tensor] = []
        for first in range(0, batch, ctx.piece):
            part = slice(first, first + ctx.piece)
            hidden = _hidden(from_slots[part], from_positions, layers)
            some = None if active is None else active[part]
            reconstruction[part], alpha[part], mixed = _mix(hidden[-1], *layers[-1], some)
            kept += [*hidden, mixed]
        ctx.save_for_backward(slots, positions, alpha, *flat, *kept)
        ctx.layers = len(layers)
        return reconstruction, alpha

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, pull: Tensor, pull_alpha: Tensor) -> tuple[Tensor | None, ...]:
        slots, positions, alpha, *rest = ctx.saved_tensors
        flat, kept = rest[: 2 * ctx.layers], rest[2 * ctx.layers :]
        layers = list(zip(flat[::2], flat[1::2], strict=True))
        sums = [torch.zeros_like(tensor) for tensor in flat]
        weight = layers[-1][0]
        features, chooser = weight[:-1], weight[-1]
        to_slots = slots.new_empty(*slots.shape[:2], layers[0][0].shape[0])
        to_positions = slots.new_zeros(positions.shape[0], layers[0][0].shape[0])
        for number, first in enumerate(range(0, len(slots), ctx.piece)):
            part = slice(first, first + ctx.piece)
            *hidden, mixed = kept[number * ctx.layers : (number + 1) * ctx.layers]
            top, some, shares = pull[part], hidden[-1], alpha[part]
            sums[-2][:-1].addmm_(top.flatten(0, 1).T, mixed.flatten(0, 1))
            sums[-1][:-1] += top.sum((0, 1))
            to_mixed = top @ features  # (b, P, h)
            # derivative of the softmax over slots
            towards = pull_alpha[part] + (some * to_mixed[:, None]).sum(-1)
            to_logits = shares * (towards - (shares * towards).sum(1, keepdim=True))
            rows = some.flatten(0, 2)
            sums[-2][-1].addmv_(rows.T, to_logits.flatten())
            sums[-1][-1] += to_logits.sum()
            down = shares[..., None] * to_mixed[:, None]
            down.addcmul_(to_logits[..., None], chooser)
            for level in range(ctx.layers - 2, 0, -1):
                down = torch.ops.aten.threshold_backward(down, hidden[level], 0).flatten(0, 2)
                sums[2 * level].addmm_(down.T, hidden[level - 1].flatten(0, 2))
                sums[2 * level + 1] += down.sum(0)
                down = (down @ layers[level][0]).view_as(hidden[level - 1])
            down = torch.ops.aten.threshold_backward(down, hidden[0], 0)
            to_slots[part] = down.sum(2)
            to_positions += down.sum((0, 1))
        weight = layers[0][0]
        sums[0] += to_slots.flatten(0, 1).T @ slots.flatten(0, 1) + to_positions.T @ positions
        sums[1] += to_positions.sum(0)
        return to_slots @ weight, to_positions @ weight, None, *sums
