"""Backend ``reference``: SciPy's assignment solver, one problem at a time; defines the meaning of the op."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from glass_fast.errors import DataError, NumericsError


def matching_reference(cost: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """See :func:`glass_fast.kernels.matching.api.matching`."""
    problems = cost.cpu().numpy().astype(np.float64)
    batch, _, segments = problems.shape
    match = np.full((batch, segments), -1, dtype=np.int64)
    for b in range(batch):
        count = segments if counts is None else int(counts[b])
        if not 0 <= count <= segments:
            raise DataError(
                "GF-DATA-920",
                f"matching: counts[{b}] is {count}; expected a number of segments, 0 to {segments}",
            )
        valid = problems[b, :, :count]
        if not np.isfinite(valid).all():
            slot, segment = np.argwhere(~np.isfinite(valid))[0]
            raise NumericsError(
                "GF-NUM-920",
                f"matching: the cost of problem {b}, slot {slot}, segment {segment} is"
                f" {valid[slot, segment]}; expected a finite value",
            )
        if valid.size and np.abs(valid).max() > 1e300:
            slot, segment = np.argwhere(np.abs(valid) > 1e300)[0]
            raise NumericsError(
                "GF-NUM-921",
                f"matching: the cost of problem {b}, slot {slot}, segment {segment} is"
                f" {valid[slot, segment]}; expected at most 1e300 in magnitude, so that sums cannot overflow float64",
            )
        slots_of_pairs, segments_of_pairs = linear_sum_assignment(valid)
        match[b, segments_of_pairs] = slots_of_pairs
    return torch.from_numpy(match).to(cost.device)
