"""Minimum-cost assignment of segments to slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from glass_fast import native
from glass_fast.kernels import Backend
from glass_fast.kernels.matching.api import matching

__all__ = ["BACKENDS", "matching"]


def _cpu() -> Callable[..., Any]:
    from glass_fast.kernels.matching.cpu import matching_cpu

    return matching_cpu


def _reference() -> Callable[..., Any]:
    from glass_fast.kernels.matching.reference import matching_reference

    return matching_reference


BACKENDS = (
    Backend(
        "cpu",
        _cpu,
        native.ops_missing,
        why="native batched solver, no Python loop; costs on a GPU are copied",
    ),
    Backend("reference", _reference, why="SciPy, one call per problem; runs everywhere"),
)
