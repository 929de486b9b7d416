"""Models: pretrained loaders, frozen encoder, slot attention, decoders and the Glass model folder.

Names load on first use, so importing this package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "Encoder": "encoder",
    "Generator": "loading",
    "Glass": "glass",
    "MLPDecoder": "mlp_decoder",
    "SlotAttention": "slot_attention",
    "ensure_torchvision": "loading",
    "folder_checksum": "loading",
    "load_captioner": "loading",
    "load_encoder": "loading",
    "load_generator": "loading",
    "resolve_model": "loading",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
