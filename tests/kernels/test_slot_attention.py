"""Slot attention: hand-computed cases, a float64 re-derivation, symmetries."""

from __future__ import annotations

import math

import pytest
import torch

from glass_fast import kernels
from glass_fast.errors import NumericsError
from glass_fast.kernels.slot_attention import SlotAttentionWeights
from tests.kernels import spec_checks as checks

SINGLE = checks.backends("slot_attention", "float32")
DOUBLE = checks.backends("slot_attention", "float64")
WIDEST = [(backend, torch.float64 if backend in DOUBLE else torch.float32) for backend in SINGLE]
"""Every backend in the widest type that it serves."""
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Of values near 1 after a few iterations: some thousand units in the last place, some ten in float32."""


def make_weights(
    channels: int, width: int, hidden: int, dtype: torch.dtype, seed: int = 0
) -> SlotAttentionWeights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "norm_inputs_weight": (channels,), "norm_inputs_bias": (channels,), "norm_slots_weight": (width,),
        "norm_slots_bias": (width,), "norm_mlp_weight": (width,), "norm_mlp_bias": (width,),
        "project_q": (width, width), "project_k": (width, channels), "project_v": (width, channels),
        "gru_weight_ih": (3 * width, width), "gru_weight_hh": (3 * width, width), "gru_bias_ih": (3 * width,),
        "gru_bias_hh": (3 * width,), "mlp_in_weight": (hidden, width), "mlp_in_bias": (hidden,),
        "mlp_out_weight": (width, hidden), "mlp_out_bias": (width,),
    }  # fmt: skip
    drawn = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64) * shape[-1] ** -0.5
        if name.startswith("norm") and name.endswith("weight"):
            value = 1 + value
        drawn[name] = value.to(dtype)
    return SlotAttentionWeights(**drawn)


def derivation(x, s, w, iterations, epsilon, heads=1, active=None):
    """The formulas of method notes 3 written once more, image by image, slot by slot where it is affordable."""

    def norm(v, scale, shift):
        centred = v - v.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * scale + shift

    def sigmoid(v):
        return 1 / (1 + torch.exp(-v))

    slots_out, masks_out = [], []
    width = s.shape[2]
    part = width // heads
    for b in range(x.shape[0]):
        tokens = norm(x[b], w.norm_inputs_weight, w.norm_inputs_bias)
        k = torch.einsum("nc,dc->nd", tokens, w.project_k) / math.sqrt(width)
        v = torch.einsum("nc,dc->nd", tokens, w.project_v)
        slots = s[b]
        for _ in range(iterations):
            q = torch.einsum("sd,ed->se", norm(slots, w.norm_slots_weight, w.norm_slots_bias), w.project_q)
            raw = torch.stack(
                [
                    torch.einsum(
                        "nd,sd->ns", k[:, h * part : (h + 1) * part], q[:, h * part : (h + 1) * part]
                    )
                    for h in range(heads)
                ]
            )  # heads, N, S
            e = torch.exp(raw - raw.amax((0, 2), keepdim=True))
            if active is not None:
                e = e * active[b].to(e.dtype)
            attention = e / e.sum((0, 2), keepdim=True)
            read = []
            for h in range(heads):
                share = attention[h] + epsilon
                share = share / share.sum(0)
                read.append(torch.einsum("ns,nd->sd", share, v[:, h * part : (h + 1) * part]))
            u = torch.cat(read, 1)
            gi = u @ w.gru_weight_ih.T + w.gru_bias_ih
            gh = slots @ w.gru_weight_hh.T + w.gru_bias_hh
            r = sigmoid(gi[:, :width] + gh[:, :width])
            z = sigmoid(gi[:, width : 2 * width] + gh[:, width : 2 * width])
            n = torch.tanh(gi[:, 2 * width :] + r * gh[:, 2 * width :])
            slots = (1 - z) * n + z * slots
            hidden = norm(slots, w.norm_mlp_weight, w.norm_mlp_bias) @ w.mlp_in_weight.T + w.mlp_in_bias
            slots = slots + torch.clamp(hidden, min=0) @ w.mlp_out_weight.T + w.mlp_out_bias
        slots_out.append(slots)
        masks_out.append(attention.sum(0).T)
    return torch.stack(slots_out), torch.stack(masks_out)


def relative_rms(value: torch.Tensor, wanted: torch.Tensor) -> float:
    difference = (value.detach().double() - wanted.detach()).square().mean().sqrt()
    return float(difference / wanted.detach().square().mean().sqrt().clamp(min=1e-300))


@pytest.mark.parametrize("backend", SINGLE)
def test_full_size_against_a_float64_derivation(backend):
    """GLASS's size; bounds of the design page: float32 rounding over 5 iterations stays far below them."""
    generator = torch.Generator().manual_seed(1)
    w64 = make_weights(768, 768, 768, torch.float64)
    x64 = torch.randn(1, 1024, 768, generator=generator, dtype=torch.float64)
    s64 = torch.randn(1, 7, 768, generator=generator, dtype=torch.float64)
    pull_slots = torch.randn(1, 7, 768, generator=generator, dtype=torch.float64)
    pull_masks = torch.randn(1, 7, 1024, generator=generator, dtype=torch.float64)
    results = {}
    for dtype in (torch.float64, torch.float32):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x64, s64, *w64)]
        w = SlotAttentionWeights(*leaves[2:])
        if dtype == torch.float64:
            out = derivation(leaves[0], leaves[1], w, 5, 1e-6)
        else:
            out = kernels.slot_attention(leaves[0], leaves[1], w, 5, backend=backend)
        loss = (out[0] * pull_slots.to(dtype)).sum() + (out[1] * pull_masks.to(dtype)).sum()
        results[dtype] = (out, torch.autograd.grad(loss, leaves))
    (want, want_gradients), (got, got_gradients) = results[torch.float64], results[torch.float32]
    assert relative_rms(got[0], want[0]) <= 1e-5
    assert relative_rms(got[1], want[1]) <= 1e-5
    for name, found, wanted in zip(
        ("inputs", "slots", *w64._fields), got_gradients, want_gradients, strict=True
    ):
        if name == "norm_slots_bias":
            # it shifts a token's logits equally for all slots, so its gradient is identically zero
            scale = float(want_gradients[2 + w64._fields.index("norm_slots_weight")].abs().max())
            assert float(wanted.abs().max()) <= 1e-12 * scale
            assert float(found.abs().max()) <= 1e-5 * scale  # measured: 6e-7
        else:
            assert relative_rms(found, wanted) <= 5e-5, name


@pytest.mark.parametrize(("backend", "dtype"), WIDEST)
def test_one_slot_by_hand(backend, dtype):
    """One slot takes all: A = 1, so the update is the plain mean of the values; the rest is written out."""
    w = SlotAttentionWeights(
        *(torch.tensor(v, dtype=dtype) for v in (
            [1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0],
            [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 3.0]],
            [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0]] * 6,
            [0.0] * 6, [0.0] * 6, [[1.0, -1.0]], [0.5], [[1.0], [0.0]], [0.25, 0.125],
        ))
    )  # fmt: skip
    x = torch.tensor([[[3.0, 1.0], [1.0, 5.0], [4.0, 2.0]]], dtype=dtype)
    s = torch.tensor([[[0.4, -0.2]]], dtype=dtype)
    slots, masks = kernels.slot_attention(x, s, w, 1, backend=backend)
    # LN of two numbers a > b: d = (a - b)/2, (+d, -d)/sqrt(d^2 + 1e-5); tokens: +, -, + with d = 1, 2, 1
    one, two = 1 / math.sqrt(1 + 1e-5), 2 / math.sqrt(4 + 1e-5)
    mean = (one - two + one) / 3
    update = (2 * mean, -3 * mean)
    # zero gates: reset = update = 1/2; new = tanh(update read); slot = (new + old) / 2
    first, second = (math.tanh(update[0]) + 0.4) / 2, (math.tanh(update[1]) - 0.2) / 2
    d = (first - second) / 2
    normed = d / math.sqrt(d * d + 1e-5)
    hidden = max(2 * normed + 0.5, 0.0)
    assert torch.equal(masks, torch.ones(1, 1, 3, dtype=dtype))
    wanted = torch.tensor([[[first + hidden + 0.25, second + 0.125]]], dtype=dtype)
    assert torch.allclose(slots, wanted, rtol=0, atol=ROUNDING[dtype])


@pytest.mark.parametrize(("backend", "dtype"), WIDEST)
def test_mask_by_hand(backend, dtype):
    """First-iteration mask of two slots: softmax of (q . k) / sqrt(2), with q and k of length-two LayerNorms."""
    eye = torch.eye(2, dtype=dtype)
    w = make_weights(2, 2, 3, dtype)._replace(
        norm_inputs_weight=torch.ones(2, dtype=dtype), norm_inputs_bias=torch.zeros(2, dtype=dtype),
        norm_slots_weight=torch.ones(2, dtype=dtype), norm_slots_bias=torch.zeros(2, dtype=dtype),
        project_q=eye, project_k=eye,
    )  # fmt: skip
    x = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]], dtype=dtype)
    s = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]], dtype=dtype)
    _, masks = kernels.slot_attention(x, s, w, 1, backend=backend)
    unit = 1 / math.sqrt(1 + 1e-5)
    logit = 2 * unit * unit / math.sqrt(2)
    high = math.exp(logit) / (math.exp(logit) + math.exp(-logit))
    wanted = torch.tensor([[[high, 1 - high], [1 - high, high]]], dtype=dtype)
    assert torch.allclose(masks, wanted, rtol=0, atol=ROUNDING[dtype])


@pytest.mark.parametrize(
    ("batch", "tokens", "channels", "count", "width", "heads"),
    [(1, 1, 3, 1, 2, 1), (2, 7, 5, 2, 4, 2), (3, 31, 8, 7, 6, 3), (2, 17, 4, 64, 3, 1), (1, 9, 6, 5, 8, 4)],
)
@pytest.mark.parametrize("backend", DOUBLE)
def test_odd_sizes_and_heads_against_the_derivation(backend, batch, tokens, channels, count, width, heads):
    w = make_weights(channels, width, 5, torch.float64, seed=tokens)
    x, s = torch.randn(batch, tokens, channels).double(), torch.randn(batch, count, width).double()
    active = torch.rand(batch, count) < 0.6
    active[:, 0] = True
    for mask in (None, active):
        got = kernels.slot_attention(x, s, w, 3, heads=heads, epsilon=1e-3, active=mask, backend=backend)
        want = derivation(x, s, w, 3, 1e-3, heads, mask)
        for found, wanted in zip(got, want, strict=True):
            assert relative_rms(found, wanted) <= 1e-12  # float64 rounding


@pytest.mark.parametrize(("backend", "dtype"), WIDEST)
def test_slots_are_equivariant_and_tokens_are_exchangeable(backend, dtype):
    w = make_weights(6, 8, 5, dtype)
    x, s = torch.randn(2, 20, 6).to(dtype), torch.randn(2, 5, 8).to(dtype)
    slots, masks = kernels.slot_attention(x, s, w, 3, backend=backend)
    order, tokens = torch.randperm(5), torch.randperm(20)
    moved_slots, moved_masks = kernels.slot_attention(x[:, tokens], s[:, order], w, 3, backend=backend)
    assert torch.allclose(moved_slots, slots[:, order], rtol=0, atol=ROUNDING[dtype])
    assert torch.allclose(moved_masks, masks[:, order][:, :, tokens], rtol=0, atol=ROUNDING[dtype])
    assert torch.allclose(masks.sum(1), torch.ones(2, 20).to(dtype), rtol=0, atol=ROUNDING[dtype])


@pytest.mark.parametrize("backend", SINGLE)
def test_inactive_slots_get_nothing_and_zero_objects_stay_finite(backend):
    w = make_weights(6, 8, 5, torch.float32)
    x, s = torch.randn(3, 10, 6), torch.randn(3, 4, 8)
    active = torch.tensor(
        [[True, True, False, False], [True, True, True, True], [False, False, False, False]]
    )
    slots, masks = kernels.slot_attention(x, s, w, 3, active=active, backend=backend)
    assert torch.isfinite(slots).all()
    assert float(masks[0, 2:].abs().max()) == 0.0
    assert torch.equal(masks[2, 0], torch.ones(10)) and float(masks[2, 1:].abs().max()) == 0.0
    alone = kernels.slot_attention(x[:1], s[:1, :2], w, 3, backend=backend)[1]
    assert torch.allclose(masks[0, :2], alone[0], atol=1e-6)  # float32; the inactive slots change nothing


@pytest.mark.parametrize(("backend", "dtype"), WIDEST)
def test_bi_level_passes_the_gradient_of_the_last_iteration_to_the_initial_slots(backend, dtype):
    w = make_weights(3, 4, 3, dtype)
    x = torch.randn(1, 5, 3).to(dtype)
    first = torch.randn(1, 2, 4).to(dtype).requires_grad_()
    value = kernels.slot_attention(x, first, w, 3, bi_level=True, backend=backend)[0]
    plain = kernels.slot_attention(x, first, w, 3, backend=backend)[0]
    assert torch.allclose(value, plain, rtol=0, atol=ROUNDING[dtype])
    (gradient,) = torch.autograd.grad(value.sum(), first)
    before_last = kernels.slot_attention(x, first, w, 2, backend=backend)[0].detach().requires_grad_()
    (wanted,) = torch.autograd.grad(
        kernels.slot_attention(x, before_last, w, 1, backend=backend)[0].sum(), before_last
    )
    assert torch.allclose(gradient, wanted, rtol=0, atol=ROUNDING[dtype])


def test_second_derivatives_are_refused_by_the_native_backend_and_given_by_the_others() -> None:
    w = make_weights(3, 4, 3, torch.float32)
    x, s = torch.randn(1, 5, 3, requires_grad=True), torch.randn(1, 2, 4)
    for backend in checks.backends("slot_attention"):
        out, _ = kernels.slot_attention(x, s, w, 2, backend=backend)
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        if backend == "cpu":
            with pytest.raises(NumericsError, match="no second derivatives"):
                gradient.square().sum().backward()
        else:
            assert float(torch.autograd.grad(gradient.square().sum(), x)[0].abs().max()) > 0
