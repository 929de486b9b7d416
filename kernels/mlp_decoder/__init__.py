"""Op ``mlp_decoder``: spatial-broadcast MLP decoder with alpha mixture over slots."""

from __future__ import annotations

from typing import Any

from glass_fast.kernels import Backend
from glass_fast.kernels.mlp_decoder.api import mlp_decoder

__all__ = ["BACKENDS", "mlp_decoder"]


def _torch() -> Any:
    from glass_fast.kernels.mlp_decoder import torch_split

    return torch_split.mlp_decoder


def _reference() -> Any:
    from glass_fast.kernels.mlp_decoder import reference

    return reference.mlp_decoder


BACKENDS = (
    Backend(
        "torch",
        _torch,
        why="first and last layer run once per token instead of once per slot and token; exact",
    ),
    Backend("reference", _reference, why="textbook broadcast; defines the meaning"),
)
