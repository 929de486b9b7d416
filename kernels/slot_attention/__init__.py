"""Op ``slot_attention``: iterative attention whose slots compete for tokens."""

from __future__ import annotations

from typing import Any

from glass_fast import native
from glass_fast.kernels import Backend
from glass_fast.kernels.slot_attention.api import SlotAttentionWeights, slot_attention

__all__ = ["BACKENDS", "SlotAttentionWeights", "slot_attention"]


def _cpu() -> Any:
    from glass_fast.kernels.slot_attention import cpu

    return cpu.slot_attention


def _torch() -> Any:
    from glass_fast.kernels.slot_attention import torch_absorbed

    return torch_absorbed.slot_attention


def _reference() -> Any:
    from glass_fast.kernels.slot_attention import reference

    return reference.slot_attention


BACKENDS = (
    Backend(
        "cpu",
        _cpu,
        native.ops_missing,
        devices=("cpu",),
        dtypes=("float32",),
        why="native, absorbed form; tokens are read once an iteration, with its own backward pass",
    ),
    Backend("torch", _torch, why="key and value projections are absorbed into the slots; exact"),
    Backend("reference", _reference, why="textbook form; defines the meaning"),
)
