"""attention_capture: against SDPA with a chosen value matrix (an independent route) and against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from glass_fast import kernels
from glass_fast.errors import ConfigError, EnvironmentProblem
from glass_fast.kernels.attention_capture import cross_capture, self_capture, torch_heads
from tests.kernels import spec_checks as checks

SHAPES = [(1, 1, 1, 1, 1), (2, 3, 7, 5, 2), (2, 8, 64, 77, 3), (1, 5, 131, 77, 6), (3, 2, 256, 16, 1)]


def inputs(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype = torch.float32
) -> tuple[Any, Any, Any, Any]:
    batch, heads, queries, keys, classes = shape
    draw = torch.Generator().manual_seed(sum(shape))
    query = torch.randn(batch, heads, queries, 8, generator=draw).mul_(2).to(dtype)
    key = torch.randn(batch, heads, keys, 8, generator=draw).mul_(2).to(dtype)
    own = torch.randn(batch, heads, queries, 8, generator=draw).mul_(2).to(dtype)
    columns = torch.rand(batch, keys, classes, generator=draw)
    return query, key, own, columns


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("backend", checks.backends("attention_capture"))
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_sdpa_with_the_columns_as_values(shape: tuple[int, ...], backend: str) -> None:
    """P . V with V = columns (or the identity) is what SDPA computes without ever being asked for P."""
    query, key, own, columns = inputs(shape)
    values = columns.double().unsqueeze(1).expand(-1, shape[1], -1, -1)
    wanted = F.scaled_dot_product_attention(query.double(), key.double(), values).mean(1)
    # float32 softmax and sums over at most 131 terms: a few times 1e-7; 1e-6 leaves room for another CPU
    assert error(cross_capture(query, key, columns, backend=backend), wanted) < 1e-6
    identity = torch.eye(shape[2], dtype=torch.float64).expand(shape[0], shape[1], -1, -1)
    wanted = F.scaled_dot_product_attention(query.double(), own.double(), identity).mean(1)
    assert error(self_capture(query, own, backend=backend), wanted) < 1e-6


def test_adds_with_weight_into_the_accumulator_it_was_given() -> None:
    query, key, own, columns = inputs(SHAPES[1])
    plain, mean = cross_capture(query, key, columns), self_capture(query, own)
    out, out_self = torch.ones_like(plain), torch.ones_like(mean)
    assert cross_capture(query, key, columns, out, weight=0.25) is out
    assert self_capture(query, own, out_self, weight=2.0) is out_self
    torch.testing.assert_close(out, 1 + 0.25 * plain)
    torch.testing.assert_close(out_self, 1 + 2 * mean)


def test_rows_of_the_self_map_sum_to_one_for_extreme_logits() -> None:
    query = torch.tensor([1e4, -1e4, 0.0, 300.0]).reshape(1, 1, 4, 1)
    rows = self_capture(query, query.clone(), scale=1.0)
    assert rows.isfinite().all()
    torch.testing.assert_close(rows.sum(-1), torch.ones(1, 4))


def test_half_precision_inputs_are_multiplied_in_float32() -> None:
    """Logits of 90000 leave float16 (65504), as SD 2.1's do; the map must stay finite and exact."""
    query = torch.full((1, 1, 2, 1), 300.0, dtype=torch.float16)
    key = torch.tensor([300.0, 299.0]).to(torch.float16).reshape(1, 1, 2, 1)
    columns = torch.eye(2).unsqueeze(0)
    got = cross_capture(query, key, columns, scale=1.0)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got[0, 0], torch.tensor([1.0, 0.0]))


def test_blocks_of_queries_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, own, columns = inputs(SHAPES[3])
    whole = cross_capture(query, key, columns), self_capture(query, own)
    monkeypatch.setitem(
        torch_heads._BLOCK, "cpu", 7 * 131
    )  # 7 rows of the self map at a time; 131 is not a multiple
    torch.testing.assert_close(cross_capture(query, key, columns), whole[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(self_capture(query, own), whole[1], rtol=1e-6, atol=1e-7)


def test_registry_knows_the_op() -> None:
    assert [status.name for status in kernels.backends("attention_capture")] == ["torch", "reference"]
    assert kernels.choose("attention_capture", "cpu") == "torch"
    query, key, _, columns = inputs(SHAPES[1])
    with pytest.raises((ConfigError, EnvironmentProblem), match="fused"):
        cross_capture(query, key, columns, backend="fused")
