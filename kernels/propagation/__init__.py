"""Refinement of class maps by powers of the self-attention map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from glass_fast.kernels import Backend
from glass_fast.kernels.propagation.api import propagation

__all__ = ["BACKENDS", "propagation"]


def _torch() -> Callable[..., Any]:
    from glass_fast.kernels.propagation.torch_backend import propagation_torch

    return propagation_torch


def _reference() -> Callable[..., Any]:
    from glass_fast.kernels.propagation.reference import propagation_reference

    return propagation_reference


BACKENDS = (
    Backend("torch", _torch, why="tau matrix-vector passes, classes as columns; never forms a matrix power"),
    Backend("reference", _reference, why="matrix power, as the formula reads"),
)
