"""What torch has to know of the native operators besides their code: shapes for fake tensors, and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glass_fast.errors import NumericsError


def register() -> None:
    """Register fakes (for ``torch.compile`` and ``torch.export``) and gradients; once, after the library is loaded."""
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"glass_fast::{name}", fake)
    torch.library.register_autograd(
        "glass_fast::slot_attention", _slot_attention_gradient, setup_context=_slot_attention_context
    )
    torch.library.register_autograd("glass_fast::slot_attention_backward", _no_second_derivative)
    torch.library.register_autograd(
        "glass_fast::propagation", _propagation_gradient, setup_context=_propagation_context
    )


def _matching(cost: Tensor, counts: Tensor | None) -> Tensor:
    return cost.new_empty((cost.shape[0], cost.shape[2]), dtype=torch.int64)


def _mask_labels(
    maps: Tensor, labels: Tensor, height: int, width: int, threshold: float, uncertain_threshold: float
) -> Tensor:
    return maps.new_empty((maps.shape[0], height, width), dtype=torch.uint8)


def _propagation(self_map: Tensor, class_maps: Tensor, tau: int) -> Tensor:
    return class_maps.new_empty(class_maps.shape)


def _slot_attention(
    inputs: Tensor, slots: Tensor, weights: list[Tensor], iterations: int, heads: int, epsilon: float,
    active: Tensor | None, bi_level: bool, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, tokens, channels = inputs.shape
    count, width = slots.shape[1:]
    size = 0
    if save:  # SavedLayout in csrc/core/slot_attention_layout.h
        columns = batch * ((count + 7) // 8 * 8)
        features = 7 * width + weights[14].shape[0] + 2 * heads * channels
        size = iterations * (columns * features + batch * heads * count * (tokens + 1)) + 2 * batch * tokens
    return (
        slots.new_empty(slots.shape),
        inputs.new_empty((batch, count, tokens)),
        inputs.new_empty((size,)),
    )


def _slot_attention_backward(
    pull_slots: Tensor, pull_attention: Tensor | None, inputs: Tensor, weights: list[Tensor], active: Tensor | None,
    saved: Tensor, iterations: int, heads: int, epsilon: float, bi_level: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    return (
        inputs.new_empty(inputs.shape),
        pull_slots.new_empty(pull_slots.shape),
        [weight.new_empty(weight.shape) for weight in weights],
    )


_FAKES = {
    "matching": _matching,
    "mask_labels": _mask_labels,
    "propagation": _propagation,
    "slot_attention": _slot_attention,
    "slot_attention_backward": _slot_attention_backward,
}


def _slot_attention_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tokens, _, weights, *numbers, active, bi_level, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.numbers, ctx.bi_level = numbers, bi_level
    ctx.save_for_backward(tokens, active, output[2], *weights)


def _slot_attention_gradient(
    ctx: Any, pull_slots: Tensor | None, pull_attention: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    tokens, active, saved, *weights = ctx.saved_tensors
    iterations, heads, epsilon = ctx.numbers
    if pull_slots is None:
        shape = (
            (tokens.shape[0], pull_attention.shape[1], weights[2].shape[0])
            if pull_attention is not None
            else None
        )
        if shape is None:
            return (None,) * 9
        pull_slots = tokens.new_zeros(shape)
    to_inputs, to_slots, to_weights = torch.ops.glass_fast.slot_attention_backward(
        pull_slots, pull_attention, tokens, weights, active, saved, iterations, heads, epsilon, ctx.bi_level
    )
    return to_inputs, to_slots, to_weights, None, None, None, None, None, None


def _no_second_derivative(ctx: Any, *pulls: Any) -> Any:
    raise NumericsError(
        "GF-NUM-922",
        "slot_attention: the native backend has no second derivatives",
        "use backend='torch' or 'reference' where gradients of gradients are needed",
    )


def _propagation_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    self_map, class_maps, ctx.tau = inputs
    ctx.save_for_backward(self_map, class_maps)


def _propagation_gradient(ctx: Any, pull: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    """Backwards through the passes ``x_k = S x_(k-1)``, whose results are made again."""
    self_map, class_maps = ctx.saved_tensors
    states = [class_maps]
    for _ in range(ctx.tau - 1):
        states.append(self_map @ states[-1])
    to_self = torch.zeros_like(self_map) if ctx.needs_input_grad[0] else None
    for state in reversed(states[: ctx.tau]):
        if to_self is not None:
            to_self = to_self + pull @ state.mT
        pull = self_map.mT @ pull
    return to_self, pull, None
