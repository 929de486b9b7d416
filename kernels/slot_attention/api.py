"""Public function of the op: validation and dispatch.

Letters in shapes: B images, N tokens, C token channels, S slots, D slot channels, H hidden width of the slot
    MLP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from glass_fast.errors import ConfigError
from glass_fast.kernels import implementation

if TYPE_CHECKING:
    from torch import Tensor

MAX_SLOTS = 64


class SlotAttentionWeights(NamedTuple):
    """Weights of one slot-attention module, all of one dtype and device.

    Norms are (weight, bias) of a LayerNorm with eps 1e-5; projections have no bias; the GRU has torch's gate
    order (reset, update, new).
    """

    norm_inputs_weight: Tensor
    """(C,)"""
    norm_inputs_bias: Tensor
    """(C,)"""
    norm_slots_weight: Tensor
    """(D,)"""
    norm_slots_bias: Tensor
    """(D,)"""
    norm_mlp_weight: Tensor
    """(D,)"""
    norm_mlp_bias: Tensor
    """(D,)"""
    project_q: Tensor
    """(D, D)"""
    project_k: Tensor
    """(D, C)"""
    project_v: Tensor
    """(D, C)"""
    gru_weight_ih: Tensor
    """(3 D, D)"""
    gru_weight_hh: Tensor
    """(3 D, D)"""
    gru_bias_ih: Tensor
    """(3 D,)"""
    gru_bias_hh: Tensor
    """(3 D,)"""
    mlp_in_weight: Tensor
    """(H, D)"""
    mlp_in_bias: Tensor
    """(H,)"""
    mlp_out_weight: Tensor
    """(D, H)"""
    mlp_out_bias: Tensor
    """(D,)"""


def slot_attention(
    inputs: Tensor,
    slots: Tensor,
    weights: SlotAttentionWeights,
    iterations: int,
    heads: int = 1,
    epsilon: float = 1e-6,
    active: Tensor | None = None,
    bi_level: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Slots compete for tokens (Locatello et al. 2020; GLASS section 3; method notes 3, steps 4 and 5).

    Each iteration: ``A = softmax over heads and slots of D^-1/2 (W_k LN(x)) . (W_q LN(s))``;
    ``A' = (A + epsilon) / sum over tokens``; ``s = GRU(A'^T W_v LN(x), s)``; ``s = s + MLP(LN(s))``.
    Differentiable in ``inputs``, ``slots`` and every weight; gradients flow through all iterations.

    Args:
        inputs: (B, N, C) tokens, before the input norm; float32 or float64 (half types on a GPU).
        slots: (B, S, D) initial slots.
        weights: see :class:`SlotAttentionWeights`.
        iterations: at least 1.
        heads: number of heads; divides D.
        epsilon: added to the attention before it is normalised over tokens.
        active: (B, S) bool; inactive slots get no token. None: all are active. An image without any active
            slot keeps its first one, since a softmax over nothing is NaN.
        bi_level: gradient of the last iteration only, passed straight through to the initial slots
            (BO-QSA, Jia et al. 2023).
        backend: ``cpu`` (float32 on the CPU), ``torch`` or ``reference``; default: the registry's choice.

    Returns:
        (B, S, D) slots and (B, S, N) attention of the last iteration, summed over heads; it sums to one over
        slots.

    Raises:
        ConfigError: GF-CONFIG-041, shapes or values do not fit.
        EnvironmentProblem: GF-ENV-920, the named backend does not serve this device or dtype.
    """
    _check(inputs, slots, weights, iterations, heads, active)
    if active is not None:
        first = (~active.any(1, keepdim=True)) & _first_slot(active)
        active = active | first
    run = implementation("slot_attention", inputs.device, backend, inputs.dtype)
    result: tuple[Tensor, Tensor] = run(
        inputs, slots, weights, int(iterations), int(heads), float(epsilon), active, bool(bi_level)
    )
    return result


def _first_slot(active: Tensor) -> Tensor:
    first = active.new_zeros(1, active.shape[1])
    first[:, 0] = True
    return first


def _wrong(what: str) -> ConfigError:
    return ConfigError("GF-CONFIG-041", f"slot_attention: {what}", "see the op's docstring for the shapes")


def _check(
    inputs: Tensor,
    slots: Tensor,
    weights: SlotAttentionWeights,
    iterations: int,
    heads: int,
    active: Tensor | None,
) -> None:
    if inputs.ndim != 3 or slots.ndim != 3 or inputs.shape[0] != slots.shape[0]:
        raise _wrong(
            f"inputs {tuple(inputs.shape)} and slots {tuple(slots.shape)}; expected (B, N, C) and (B, S, D)"
        )
    channels, count, width = inputs.shape[2], slots.shape[1], slots.shape[2]
    if not 1 <= count <= MAX_SLOTS:
        raise _wrong(f"{count} slots; expected 1 to {MAX_SLOTS}")
    if inputs.shape[1] < 1:
        raise _wrong("no tokens; expected at least one")
    if iterations < 1:
        raise _wrong(f"iterations={iterations}; expected at least 1")
    if heads < 1 or width % heads:
        raise _wrong(f"heads={heads} does not divide the slot width {width}")
    if weights.mlp_in_weight.ndim != 2:
        raise _wrong(
            f"weights.mlp_in_weight has shape {tuple(weights.mlp_in_weight.shape)}; expected (H, {width})"
        )
    hidden = weights.mlp_in_weight.shape[0]
    expected = SlotAttentionWeights(
        (channels,), (channels,), (width,), (width,), (width,), (width,), (width, width), (width, channels),
        (width, channels), (3 * width, width), (3 * width, width), (3 * width,), (3 * width,), (hidden,
        width), (hidden,), (width, hidden), (width,),
    )  # fmt: skip
    for name, tensor, shape in zip(weights._fields, weights, expected, strict=True):
        if tuple(tensor.shape) != shape:
            raise _wrong(f"weights.{name} has shape {tuple(tensor.shape)}; expected {shape}")
        if tensor.dtype != inputs.dtype or tensor.device != inputs.device:
            raise _wrong(
                f"weights.{name} is {tensor.dtype} on {tensor.device}; inputs are {inputs.dtype} on "
                f"{inputs.device}"
            )
    if slots.dtype != inputs.dtype or slots.device != inputs.device:
        raise _wrong(
            f"slots are {slots.dtype} on {slots.device}; inputs are {inputs.dtype} on {inputs.device}"
        )
    if active is not None and (
        tuple(active.shape) != tuple(slots.shape[:2]) or str(active.dtype) != "torch.bool"
    ):
        raise _wrong(
            f"active is {active.dtype} {tuple(active.shape)}; expected bool {tuple(slots.shape[:2])}"
        )
    if active is not None and active.device != inputs.device:
        raise _wrong(f"active is on {active.device}; inputs are on {inputs.device}")
