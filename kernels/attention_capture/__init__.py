"""Op ``attention_capture``: head-mean attention probabilities added to an accumulator, never stored per head."""

from __future__ import annotations

from typing import Any

from glass_fast.kernels import Backend
from glass_fast.kernels.attention_capture.api import cross_capture, self_capture

__all__ = ["BACKENDS", "cross_capture", "self_capture"]


def _torch() -> Any:
    from glass_fast.kernels.attention_capture import torch_heads

    return torch_heads.capture


def _reference() -> Any:
    from glass_fast.kernels.attention_capture import reference

    return reference.capture


BACKENDS = (
    Backend("torch", _torch, why="one head and one block of queries at a time, so memory stays bounded"),
    Backend("reference", _reference, why="explicit probabilities of all heads; defines the meaning"),
)
