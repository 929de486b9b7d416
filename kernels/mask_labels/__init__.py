"""Soft class maps to a label image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from glass_fast import native
from glass_fast.kernels import Backend
from glass_fast.kernels.mask_labels.api import mask_labels

__all__ = ["BACKENDS", "mask_labels"]


def _cpu() -> Callable[..., Any]:
    from glass_fast.kernels.mask_labels.cpu import mask_labels_cpu

    return mask_labels_cpu


def _torch() -> Callable[..., Any]:
    from glass_fast.kernels.mask_labels.torch_backend import mask_labels_torch

    return mask_labels_torch


def _reference() -> Callable[..., Any]:
    from glass_fast.kernels.mask_labels.reference import mask_labels_reference

    return mask_labels_reference


BACKENDS = (
    Backend("cpu", _cpu, native.ops_missing, ("cpu",), "native, fused per row: no upsampled maps in memory"),
    Backend("torch", _torch, why="one upsampled class at a time; runs on every device"),
    Backend("reference", _reference, why="all upsampled classes at once; defines the meaning"),
)
