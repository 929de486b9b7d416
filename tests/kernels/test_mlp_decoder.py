"""MLP decoder: a hand-computed case, an independent float64 form, the pieces of a batch."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from glass_fast import kernels
from tests.kernels import spec_checks as checks

BACKENDS = checks.backends("mlp_decoder", "float64")


def make_layers(sizes, dtype=torch.float64):
    return [
        (
            torch.randn(o, i, dtype=torch.float64).to(dtype) * i**-0.5,
            0.1 * torch.randn(o, dtype=torch.float64).to(dtype),
        )
        for i, o in pairwise(sizes)
    ]


def independent(slots, positions, layers):
    """Patch by patch and slot by slot with matrix-vector products."""
    batch, count, patches = slots.shape[0], slots.shape[1], positions.shape[0]
    width = layers[-1][0].shape[0] - 1
    out = slots.new_zeros(batch, patches, width)
    alphas = slots.new_zeros(batch, count, patches)
    for b in range(batch):
        for p in range(patches):
            predictions = []
            for s in range(count):
                v = slots[b, s] + positions[p]
                for weight, bias in layers[:-1]:
                    v = torch.clamp(weight.mv(v) + bias, min=0)
                predictions.append(layers[-1][0].mv(v) + layers[-1][1])
            stacked = torch.stack(predictions)
            e = torch.exp(stacked[:, -1] - stacked[:, -1].max())
            alphas[b, :, p] = e / e.sum()
            out[b, p] = (alphas[b, :, p, None] * stacked[:, :-1]).sum(0)
    return out, alphas


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    """Two slots, one patch, identity hidden layer: features 1 and 3, alpha logits 0 and ln 3 -> 1/4 and 3/4."""
    layers = [
        (torch.eye(2).double(), torch.zeros(2).double()),
        (torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), torch.tensor([0.0, -1.0]).double()),
    ]
    slots = torch.tensor([[[0.5, 0.5], [2.5, 0.5 + math.log(3)]]], dtype=torch.float64)
    positions = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    reconstruction, alpha = kernels.mlp_decoder(slots, positions, layers, backend=backend)
    assert alpha.flatten().tolist() == pytest.approx([0.25, 0.75], abs=1e-15)
    assert reconstruction.flatten().tolist() == pytest.approx([0.25 * 1 + 0.75 * 3], abs=1e-14)


@pytest.mark.parametrize(
    ("batch", "count", "patches", "sizes"),
    [(1, 1, 1, (2, 3, 3)), (2, 3, 5, (4, 7, 7, 4)), (2, 7, 9, (5, 11, 11, 11, 6)), (1, 64, 3, (3, 5, 2))],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_the_independent_form(backend, batch, count, patches, sizes):
    layers = make_layers(sizes)
    slots, positions = torch.randn(batch, count, sizes[0]).double(), torch.randn(patches, sizes[0]).double()
    got = kernels.mlp_decoder(slots, positions, layers, backend=backend)
    for found, wanted in zip(got, independent(slots, positions, layers), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-13)  # float64 rounding


@pytest.mark.parametrize("backend", BACKENDS)
def test_inactive_slots_do_not_mix_in(backend):
    layers = make_layers((4, 6, 6, 4))
    slots, positions = torch.randn(2, 5, 4).double(), torch.randn(7, 4).double()
    active = torch.tensor([[True, False, True, False, False], [False] * 5])
    reconstruction, alpha = kernels.mlp_decoder(slots, positions, layers, active=active, backend=backend)
    alone, _ = kernels.mlp_decoder(slots[:1, [0, 2]], positions, layers, backend=backend)
    assert torch.allclose(reconstruction[:1], alone, atol=1e-13)
    assert float(alpha[0, [1, 3, 4]].abs().max()) == 0.0
    assert torch.isfinite(reconstruction).all() and float(alpha[1, 0].min()) == 1.0


@pytest.mark.parametrize("piece_bytes", [1, 2**30])
def test_pieces_of_a_batch_give_the_gradients_of_the_whole(monkeypatch, piece_bytes):
    """One image a piece, and all in one piece, against automatic differentiation of the textbook form."""
    from glass_fast.kernels.mlp_decoder import torch_split

    monkeypatch.setattr(torch_split, "_PIECE_BYTES", piece_bytes)
    flat = [t for pair in make_layers((4, 6, 5, 6, 4)) for t in pair]
    slots, positions = torch.randn(3, 4, 4).double(), torch.randn(7, 4).double()
    active = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    pull, pull_alpha = torch.randn(3, 7, 3).double(), torch.randn(3, 4, 7).double()
    gradients = {}
    for backend in BACKENDS:
        leaves = [t.clone().requires_grad_() for t in (slots, positions, *flat)]
        layers = list(zip(leaves[2::2], leaves[3::2], strict=True))
        out, alpha = kernels.mlp_decoder(leaves[0], leaves[1], layers, active=active, backend=backend)
        gradients[backend] = torch.autograd.grad((out * pull).sum() + (alpha * pull_alpha).sum(), leaves)
    for backend in BACKENDS:
        for found, wanted in zip(gradients[backend], gradients["reference"], strict=True):
            assert torch.allclose(found, wanted, rtol=1e-11, atol=1e-13)  # float64 rounding
