"""Public function of the op ``matching``: validation and dispatch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from glass_fast.errors import DataError
from glass_fast.kernels import implementation


def matching(
    cost: torch.Tensor, counts: torch.Tensor | Sequence[int] | None = None, backend: str | None = None
) -> torch.Tensor:
    """Slot of every segment so that the total cost of each problem is minimal.

    ``min(slots, counts[b])`` pairs are made per problem (the Hungarian matching of GLASS, CVPR 2025, between
    predicted slot masks and segments of the generated mask). Not differentiable; equal input gives equal
    output, also on ties and for any number of threads. Which of several equally cheap matchings is returned
    may differ between backends.

    Args:
        cost: ``(batch, slots, segments)``, floating point, finite where the segment is valid.
        counts: ``(batch,)`` number of valid segments of each problem, the first ones; None: all are valid.
        backend: backend that must be used; default: see :func:`glass_fast.kernels.choose`.

    Returns:
        ``(batch, segments)`` int64 on the device of ``cost``: slot index, or -1 for a segment that is not
        valid or that was left over because there are fewer slots than segments.

    Raises:
        DataError: GF-DATA-920, a count is outside ``[0, segments]``; GF-DATA-922, wrong shape or dtype.
        NumericsError: GF-NUM-920, a valid cost is NaN or infinite; GF-NUM-921, one exceeds 1e300.

    Example:
        >>> matching(torch.tensor([[[0.9, 0.1], [0.2, 0.8]]]))
        tensor([[1, 0]])
    """
    if cost.dim() != 3 or not cost.is_floating_point():
        raise DataError(
            "GF-DATA-922",
            f"matching: cost is {cost.dtype} of shape {tuple(cost.shape)}; expected floating point"
            " (batch, slots, segments)",
        )
    cost = cost.detach()
    if cost.dtype not in (torch.float32, torch.float64):
        cost = cost.float()
    if counts is not None:
        counts = _whole_numbers(counts, cost.shape[0])
    found: torch.Tensor = implementation("matching", cost.device, backend)(cost, counts)
    return found


def _whole_numbers(counts: torch.Tensor | Sequence[int], batch: int) -> torch.Tensor:
    """``counts`` as int64 on the CPU; (batch,) of them."""
    if not isinstance(counts, torch.Tensor):
        counts = torch.as_tensor(counts, dtype=None if len(counts) else torch.int64)
    if counts.shape != (batch,):
        raise DataError(
            "GF-DATA-922", f"matching: counts has shape {tuple(counts.shape)}; expected ({batch},)"
        )
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool or counts.is_meta:
        raise DataError(
            "GF-DATA-922",
            f"matching: counts is {counts.dtype} on {counts.device}; expected integers with values",
        )
    return counts.to(device="cpu", dtype=torch.int64)
