"""The meaning of the op: explicit probabilities of every head (the way that needs all the memory)."""

from __future__ import annotations

import torch
from torch import Tensor


def capture(
    query: Tensor, key: Tensor, columns: Tensor | None, out: Tensor, weight: float, scale: float
) -> None:
    """Textbook softmax attention; see :mod:`glass_fast.kernels.attention_capture.api` for the formula."""
    logits = torch.einsum("bhnd,bhld->bhnl", query.to(out.dtype), key.to(out.dtype)) * scale
    probabilities = logits.softmax(dim=-1).mean(dim=1)
    if columns is not None:
        probabilities = torch.einsum("bnl,blk->bnk", probabilities, columns.to(out.dtype))
    out += weight * probabilities
