"""Public function of the op: validation and dispatch.

Letters in shapes: B images, S slots, d slot channels, P patches, D feature channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glass_fast.errors import ConfigError
from glass_fast.kernels import implementation

if TYPE_CHECKING:
    from torch import Tensor


def mlp_decoder(
    slots: Tensor,
    positions: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    active: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Every slot predicts every patch; an alpha channel mixes the predictions (DINOSAUR; method notes 4.2).

    ``(f[s, p], a[s, p]) = MLP(slot_s + position_p)``; ``alpha = softmax over slots of a``;
    ``reconstruction[p] = sum_s alpha[s, p] f[s, p]``. ReLU between layers, none after the last.

    Args:
        slots: (B, S, d), floating point; everything else has its dtype and device.
        positions: (P, d) learned position table, at least one patch.
        layers: (weight, bias) of each linear layer, at least two; the last one has D + 1 outputs, alpha last.
        active: (B, S) bool; inactive slots get alpha 0. None: all active. An image without any active slot
            keeps its first one.
        backend: ``torch`` or ``reference``; default: the registry's choice.

    Returns:
        (B, P, D) reconstruction and (B, S, P) alpha, which sums to one over slots.

    Raises:
        ConfigError: GF-CONFIG-042, shapes, dtypes or devices do not fit.
    """
    if slots.ndim != 3 or positions.ndim != 2 or slots.shape[2] != positions.shape[1]:
        raise _wrong(
            f"slots {tuple(slots.shape)}, positions {tuple(positions.shape)}; expected (B, S, d), (P, d)"
        )
    if not 1 <= slots.shape[1] <= 64:
        raise _wrong(f"{slots.shape[1]} slots; expected 1 to 64")
    if positions.shape[0] < 1:
        raise _wrong("no patches; expected at least one")
    if len(layers) < 2:
        raise _wrong(f"{len(layers)} layers; expected at least 2")
    width = slots.shape[2]
    for number, (weight, bias) in enumerate(layers):
        if weight.ndim != 2 or weight.shape[1] != width or tuple(bias.shape) != (weight.shape[0],):
            raise _wrong(
                f"layer {number} has weight {tuple(weight.shape)}, bias {tuple(bias.shape)}; input is {width}"
            )
        width = weight.shape[0]
    if width < 2:
        raise _wrong(f"the last layer has {width} outputs; expected feature channels + 1")
    if not slots.is_floating_point():
        raise _wrong(f"slots are {slots.dtype}; expected floating point")
    _check_kind(slots, "positions", positions)
    for number, (weight, bias) in enumerate(layers):
        _check_kind(slots, f"weight of layer {number}", weight)
        _check_kind(slots, f"bias of layer {number}", bias)
    if active is not None:
        if active.device != slots.device:
            raise _wrong(f"active is on {active.device}; slots are on {slots.device}")
        if tuple(active.shape) != tuple(slots.shape[:2]) or str(active.dtype) != "torch.bool":
            raise _wrong(
                f"active is {active.dtype} {tuple(active.shape)}; expected bool {tuple(slots.shape[:2])}"
            )
        first = active.new_zeros(1, active.shape[1])
        first[:, 0] = True
        active = active | (~active.any(1, keepdim=True) & first)
    run = implementation("mlp_decoder", slots.device, backend)
    result: tuple[Tensor, Tensor] = run(slots, positions, list(layers), active)
    return result


def _check_kind(slots: Tensor, name: str, tensor: Tensor) -> None:
    if tensor.dtype != slots.dtype or tensor.device != slots.device:
        raise _wrong(
            f"{name} is {tensor.dtype} on {tensor.device}; slots are {slots.dtype} on {slots.device}"
        )


def _wrong(what: str) -> ConfigError:
    return ConfigError("GF-CONFIG-042", f"mlp_decoder: {what}", "see the op's docstring for the shapes")
