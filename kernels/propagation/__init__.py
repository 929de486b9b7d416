"""Refinement of class maps by powers of the self-attention map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from glass_fast import native
from glass_fast.kernels import Backend
from glass_fast.kernels.propagation.api import propagation

__all__ = ["BACKENDS", "propagation"]


def _cpu() -> Callable[..., Any]:
    from glass_fast.kernels.propagation.cpu import propagation_cpu

    return propagation_cpu


def _torch() -> Callable[..., Any]:
    from glass_fast.kernels.propagation.torch_backend import propagation_torch

    return propagation_torch


def _reference() -> Callable[..., Any]:
    from glass_fast.kernels.propagation.reference import propagation_reference

    return propagation_reference


BACKENDS = (
    Backend(
        "cpu",
        _cpu,
        native.ops_missing,
        devices=("cpu",),
        dtypes=("float32",),
        why="native passes, classes as vectors; the self map is read at memory speed",
    ),
    Backend("torch", _torch, why="tau matrix-vector passes, classes as columns; never forms a matrix power"),
    Backend("reference", _reference, why="matrix power, as the formula reads"),
)
