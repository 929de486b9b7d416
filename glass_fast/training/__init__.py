"""Phase 1: slot attention and MLP decoder on frozen features of generated images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glass_fast.training.data import GroundTruthData
    from glass_fast.training.trainer import train

__all__ = ["GroundTruthData", "train"]

_EXPORTS = {"GroundTruthData": "data", "train": "trainer"}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
