"""Public functions of the op: validation and dispatch.

Letters in shapes: B images, H heads, N queries, L keys, d channels of a head, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glass_fast.errors import ConfigError
from glass_fast.kernels import implementation

if TYPE_CHECKING:
    from torch import Tensor


_LARGEST = 3.4028234663852886e38  # of float32


def cross_capture(
    query: Tensor,
    key: Tensor,
    columns: Tensor,
    out: Tensor | None = None,
    weight: float = 1.0,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Add the head mean of selected softmax columns to ``out`` (Dataset Diffusion's cross-attention maps).

    ``out[b, n, k] += weight * mean_h sum_l softmax_l(scale * query[b, h, n] . key[b, h, l]) * columns[b, l, k]``

    Logits, softmax and accumulation are done in float32 (float64 for float64 inputs).

    Args:
        query: (B, H, N, d), any floating dtype.
        key: (B, H, L, d), same dtype and device.
        columns: (B, L, K) real weights that select and average the token columns of each class; same
            device.
        out: (B, N, K) float32 accumulator, changed in place; zeros when None.
        weight: weight of this layer and step.
        scale: factor of the logits; default ``d ** -0.5``.
        backend: ``torch`` or ``reference``; default: the registry's choice.

    Returns:
        ``out``, (B, N, K).

    Raises:
        ConfigError: GF-CONFIG-040, shapes, dtypes or devices do not fit together; a factor is not finite.
    """
    _check_pair(query, key)
    batch, _, queries, _ = query.shape
    if columns.is_complex() or columns.device != query.device:
        raise _shape_error("columns", columns, f"real numbers on {query.device}")
    if columns.ndim != 3 or columns.shape[:2] != (batch, key.shape[2]):
        raise _shape_error("columns", columns, f"({batch}, {key.shape[2]}, classes)")
    weight, scale = _factors(query, weight, scale)
    out = _accumulator(query, out, (batch, queries, columns.shape[2]))
    if columns.shape[2] == 0:
        return out
    run = implementation("attention_capture", query.device, backend)
    run(query, key, columns, out, weight, scale)
    return out


def self_capture(
    query: Tensor,
    key: Tensor,
    out: Tensor | None = None,
    weight: float = 1.0,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Add the head mean of the softmax probabilities to ``out``.

    ``out[b, n, m] += weight * mean_h softmax_m(scale * query[b, h, n] . key[b, h, m])``

    Args:
        query: (B, H, N, d), any floating dtype.
        key: (B, H, N, d), same dtype and device.
        out: (B, N, N) float32 accumulator, changed in place; zeros when None. Rows are queries.
        weight: weight of this layer and step.
        scale: factor of the logits; default ``d ** -0.5``.
        backend: ``torch`` or ``reference``; default: the registry's choice.

    Returns:
        ``out``, (B, N, N).

    Raises:
        ConfigError: GF-CONFIG-040, shapes, dtypes or devices do not fit together; a factor is not finite.
    """
    _check_pair(query, key)
    if query.shape != key.shape:
        raise _shape_error("key", key, f"the shape of query, {tuple(query.shape)}")
    batch, _, tokens, _ = query.shape
    weight, scale = _factors(query, weight, scale)
    out = _accumulator(query, out, (batch, tokens, tokens))
    run = implementation("attention_capture", query.device, backend)
    run(query, key, None, out, weight, scale)
    return out


def _factors(query: Tensor, weight: float, scale: float | None) -> tuple[float, float]:
    factors = float(weight), float(query.shape[-1]) ** -0.5 if scale is None else float(scale)
    for name, value in zip(("weight", "scale"), factors, strict=True):
        if not abs(value) <= _LARGEST:  # not-a-number fails too, before it is in the accumulator
            raise ConfigError(
                "GF-CONFIG-040", f"attention_capture: {name} is {value}; expected a finite float32"
            )
    return factors


def _check_pair(query: Tensor, key: Tensor) -> None:
    if not query.is_floating_point():
        raise _shape_error("query", query, "floating point")
    if query.ndim != 4 or 0 in query.shape:
        raise _shape_error("query", query, "(batch, heads, queries, channels), none of them 0")
    batch, heads, _, channels = query.shape
    if key.ndim != 4 or (key.shape[0], key.shape[1], key.shape[3]) != (batch, heads, channels):
        raise _shape_error("key", key, f"({batch}, {heads}, keys, {channels})")
    if key.dtype != query.dtype or key.device != query.device:
        raise _shape_error("key", key, f"{query.dtype} on {query.device}, as query")
    if key.shape[2] == 0:
        raise _shape_error("key", key, "at least one key")


def _accumulator(query: Tensor, out: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    import torch

    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    if out is None:
        return torch.zeros(shape, dtype=dtype, device=query.device)
    if tuple(out.shape) != shape or out.dtype != dtype or out.device != query.device:
        raise _shape_error("out", out, f"{shape} of {dtype} on {query.device}")
    return out


def _shape_error(name: str, tensor: Tensor, expected: str) -> ConfigError:
    return ConfigError(
        "GF-CONFIG-040",
        f"attention_capture: {name} has shape {tuple(tensor.shape)} ({tensor.dtype} on {tensor.device});"
        f" expected {expected}",
        "check how the attention layer splits its heads",
    )
