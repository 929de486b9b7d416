"""The two phase-1 losses: semantic guidance and instance guidance (GLASS v2; method notes 5)."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

from glass_fast.kernels.matching import matching

PROBABILITY_FLOOR = 1e-6
_EPSILON = 1e-8


def match_segments(
    masks: torch.Tensor,
    segments: torch.Tensor,
    counts: torch.Tensor,
    valid: torch.Tensor,
    cost: Literal["hard", "soft"] = "hard",
) -> torch.Tensor:
    """Hungarian matching on ``1 - IoU``, over valid tokens (method notes 5.2).

    ``hard`` compares arg-max masks. All slots that win no token then tie, and the lowest index takes a segment
    that nobody holds, whatever it looks at; ``soft`` compares the soft masks, so the slot that already attends
    to the segment most takes it.

    Args:
        masks: ``(batch, slots, tokens)`` soft masks.
        segments: bool ``(batch, segments, tokens)``.
        counts: int ``(batch,)`` real segments of each image, the first ones.
        valid: bool ``(batch, tokens)``; False: uncertain.
        cost: see above.

    Returns:
        int64 ``(batch, segments)``: slot of each segment, -1 for none.
    """
    with torch.no_grad():
        if cost == "hard":
            compared = functional.one_hot(masks.argmax(1), masks.shape[1]).transpose(1, 2).float()
        else:
            compared = masks.float()
        seen = compared * valid[:, None].float()
        wanted = (segments & valid[:, None]).float()
        shared = seen @ wanted.transpose(1, 2)
        union = seen.sum(2)[:, :, None] + wanted.sum(2)[:, None] - shared
        found: torch.Tensor = matching(1.0 - shared / (union + _EPSILON), counts)
        return found.to(masks.device)


def semantic_loss(
    masks: torch.Tensor,
    segments: torch.Tensor,
    counts: torch.Tensor,
    valid: torch.Tensor,
    reduction: Literal["plain", "balanced"] = "plain",
    cost: Literal["hard", "soft"] = "hard",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Binary cross-entropy of each matched pair of slot mask and segment; unmatched slots have no loss.

    ``plain``: mean over matched pairs and valid tokens. ``balanced``: per matched pair, half the mean over
    its positive and half the mean over its negative valid tokens (a missing half counts 0), then the mean
    over pairs. Probabilities are clamped to [1e-6, 1 - 1e-6].

    Args:
        masks: ``(batch, slots, tokens)`` soft masks.
        segments: bool ``(batch, segments, tokens)``.
        counts: int ``(batch,)``.
        valid: bool ``(batch, tokens)``.
        reduction: see above.
        cost: see :func:`match_segments`.

    Returns:
        scalar loss (0, with a gradient of 0, when nothing is matched) and the matching.
    """
    found = match_segments(masks, segments, counts, valid, cost)
    matched = found >= 0
    index = found.clamp(min=0)[:, :, None].expand(-1, -1, masks.shape[2])
    probability = masks.gather(1, index).clamp(PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    log_loss = -torch.where(segments, probability.log(), torch.log1p(-probability))
    usable = (valid[:, None] & matched[:, :, None]).to(masks.dtype)
    if reduction == "plain":
        return (log_loss * usable).sum() / usable.sum().clamp(min=1.0), found
    positive = usable * segments
    negative = usable * ~segments
    halves = [(log_loss * part).sum(2) / part.sum(2).clamp(min=1.0) for part in (positive, negative)]
    return 0.5 * (halves[0] + halves[1]).sum() / matched.sum().clamp(min=1), found


def instance_loss(reconstruction: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Mean squared error over all elements of the reconstructed encoder features (OCLF / SPOT convention)."""
    return functional.mse_loss(reconstruction, features)
