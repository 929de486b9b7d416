"""Captions stage: images, texts or labels -> prompts with class names, as one parquet table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glass_fast.captions.build import build_prompts
    from glass_fast.captions.matching import ClassMatcher

__all__ = ["ClassMatcher", "build_prompts"]

_HOMES = {"build_prompts": "build", "ClassMatcher": "matching"}


def __getattr__(name: str) -> Any:
    """Load on first use, so that the package costs nothing where only its name is needed."""
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
