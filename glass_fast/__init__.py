"""glass-fast: the complete GLASS method (arXiv 2407.17929, CVPR 2025), from captions to discovered objects.

Importing this package imports no torch; the public names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glass_fast.models.glass import Glass

__version__ = "0.1.0"
__all__ = ["Glass", "__version__"]

_LAZY = {"Glass": "glass_fast.models.glass"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
