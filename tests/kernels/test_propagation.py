"""The op ``propagation``: mat-vec passes against the matrix power and a hand-computed case."""

from __future__ import annotations

import pytest
import torch

from glass_fast import kernels
from tests.kernels import spec_checks as checks

BACKENDS = checks.backends("propagation")


def attention(batch: int, tokens: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.softmax(3 * torch.randn(batch, tokens, tokens, dtype=dtype), dim=-1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_computed(backend: str) -> None:
    """Row = query: token 0 attends to token 1 only, token 1 to both equally."""
    self_map = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
    class_maps = torch.tensor([[[1.0], [0.0]]])
    expected = {0: [1.0, 0.0], 1: [0.0, 0.5], 2: [0.5, 0.25], 3: [0.25, 0.375]}
    for tau, values in expected.items():
        assert kernels.propagation(self_map, class_maps, tau, backend=backend)[0, :, 0].tolist() == values


def test_row_stochastic_map_keeps_constants() -> None:
    found = kernels.propagation(attention(2, 33), torch.full((2, 33, 2), 0.25, dtype=torch.float64), 4)
    torch.testing.assert_close(found, torch.full_like(found, 0.25), rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_computed_in_float32(backend: str) -> None:
    self_map, class_maps = attention(1, 64).half(), torch.rand(1, 64, 4).half()
    found = kernels.propagation(self_map, class_maps, 4, backend=backend)
    expected = kernels.propagation(self_map.double(), class_maps.double(), 4, backend="reference")
    assert found.dtype == torch.float32
    # the error bound of float32; a half-precision chain would be off by 1e-3
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_result_does_not_alias_the_input(backend: str) -> None:
    class_maps = torch.rand(1, 4, 2)
    found = kernels.propagation(torch.eye(4)[None], class_maps, 0, backend=backend)
    found.zero_()
    assert class_maps.any()


@pytest.mark.parametrize("backend", checks.backends("propagation", "float64"))
def test_gradient(backend: str) -> None:
    """Both inputs are differentiable (float64 gradcheck)."""
    inputs = (attention(1, 5).requires_grad_(), torch.rand(1, 5, 2, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(lambda a, c: kernels.propagation(a, c, 3, backend=backend), inputs)
