"""The op ``propagation``: mat-vec passes against the matrix power and a hand-computed case."""

from __future__ import annotations

import pytest
import torch

from glass_fast import kernels
from glass_fast.errors import ConfigError, DataError

BACKENDS = ["torch", "reference"]


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


@pytest.mark.parametrize("tau", [0, 1, 2, 4, 7])
@pytest.mark.parametrize("batch, tokens, classes", [(1, 64, 3), (3, 17, 1), (2, 31, 20), (1, 1, 1)])
def test_backends_agree(tau: int, batch: int, tokens: int, classes: int) -> None:
    self_map, class_maps = attention(batch, tokens), torch.rand(batch, tokens, classes, dtype=torch.float64)
    expected = kernels.propagation(self_map, class_maps, tau, backend="reference")
    assert expected.dtype == torch.float64
    found = kernels.propagation(self_map, class_maps, tau, backend="torch")
    # float64: averages of values in [0, 1] over at most 64 tokens, rounding near 1e-15
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    single = kernels.propagation(self_map.float(), class_maps.float(), tau, backend="torch")
    error = (single - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert single.dtype == torch.float32 and error <= 1e-5  # the project's float32 forward ceiling


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


def test_result_does_not_alias_the_input() -> None:
    class_maps = torch.rand(1, 4, 2)
    found = kernels.propagation(torch.eye(4)[None], class_maps, 0)
    found.zero_()
    assert class_maps.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient(backend: str) -> None:
    """Both inputs are differentiable (float64 gradcheck)."""
    inputs = (attention(1, 5).requires_grad_(), torch.rand(1, 5, 2, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(lambda a, c: kernels.propagation(a, c, 3, backend=backend), inputs)


def test_wrong_arguments() -> None:
    self_map, class_maps = torch.rand(1, 4, 4), torch.rand(1, 4, 2)
    with pytest.raises(ConfigError, match="-1"):
        kernels.propagation(self_map, class_maps, -1)
    for bad in (
        (self_map[:, :3], class_maps),
        (self_map, class_maps[:, :3]),
        (self_map.expand(2, 4, 4), class_maps),
        (self_map.int(), class_maps),
        (self_map[0], class_maps),
    ):
        with pytest.raises(DataError, match="GF-DATA-922"):
            kernels.propagation(*bad, 4)
