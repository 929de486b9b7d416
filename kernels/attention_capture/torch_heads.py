"""One head and one block of queries at a time: the temporary does not grow with heads, layers or steps."""

from __future__ import annotations

import torch
from torch import Tensor

# Elements of one block of logits. On the CPU the block should stay in the cache between the product, the softmax
# and the sum (1 M floats are 4 MB); on a GPU fewer, larger launches matter more.
_BLOCK = {"cpu": 2**20, "cuda": 2**26}


def capture(
    query: Tensor, key: Tensor, columns: Tensor | None, out: Tensor, weight: float, scale: float
) -> None:
    """See :mod:`glass_fast.kernels.attention_capture.api` for the formula.

    Half-precision inputs are scaled and multiplied in float32: SD 2.1's logits overflow float16.
    """
    batch, heads, queries, _ = query.shape
    rows = max(1, _BLOCK.get(query.device.type, 2**22) // (batch * key.shape[2]))
    if columns is not None:
        # head mean and weight folded into the small factor
        columns = columns.to(out.dtype) * (weight / heads)
    for head in range(heads):
        key_t = key[:, head].to(out.dtype).transpose(1, 2)
        for start in range(0, queries, rows):
            block = query[:, head, start : start + rows].to(out.dtype) * scale
            probabilities = torch.bmm(block, key_t).softmax(dim=-1)
            target = out[:, start : start + rows]
            if columns is None:
                target.add_(probabilities, alpha=weight / heads)
            else:
                target.baddbmm_(probabilities, columns)
