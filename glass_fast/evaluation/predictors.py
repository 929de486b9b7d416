"""What can be evaluated: anything that gives soft slot masks for pictures, with one seed per picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from glass_fast.errors import ConfigError


@runtime_checkable
class Predictor(Protocol):
    """Gives slot masks of the centre square of each picture.

    Attributes:
        name: what the result is listed under.
        num_slots: slots S per picture.
    """

    name: str
    num_slots: int

    def masks(self, images: Sequence[NDArray[np.uint8]], seeds: Sequence[int]) -> torch.Tensor:
        """Soft masks float ``(batch, slots, rows, columns)`` of the centre square of each picture.

        Args:
            images: uint8 ``(height, width, 3)`` of any sizes.
            seeds: one seed per picture, so that a picture's masks do not depend on its batch.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-able record of the model: reference, checksum, settings."""
        ...


def slot_noise(seeds: Sequence[int], num_slots: int, slot_size: int) -> torch.Tensor:
    """Standard normal ``(batch, num_slots, slot_size)``; row ``b`` depends on ``seeds[b]`` alone."""
    return torch.stack(
        [torch.randn(num_slots, slot_size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


class SlotPredictor:
    """Slot attention on frozen features; its masks are the attention of the last iteration.

    Args:
        encoder: :class:`glass_fast.models.encoder.Encoder`.
        slot_attention: :class:`glass_fast.models.slot_attention.SlotAttention`.
        name: what the result is listed under.
        record: what :meth:`describe` returns.
    """

    def __init__(self, encoder: Any, slot_attention: Any, name: str, record: dict[str, Any]) -> None:
        self.encoder, self.slot_attention, self.name = encoder, slot_attention, name
        self.num_slots = int(slot_attention.config.num_slots)
        self._record = record

    @torch.no_grad()
    def masks(self, images: Sequence[NDArray[np.uint8]], seeds: Sequence[int]) -> torch.Tensor:
        features = self.encoder.features(list(images))
        noise = slot_noise(seeds, self.num_slots, self.slot_attention.config.slot_size)
        rows, columns = self.encoder.grid
        masks = self.slot_attention(features, noise=noise.to(features.device), grid=(rows, columns))[2]
        return masks.reshape(len(images), self.num_slots, rows, columns)

    def describe(self) -> dict[str, Any]:
        return dict(self._record)


def as_predictor(model: Any, name: str | None = None) -> Predictor:
    """A predictor as it is, or a :class:`glass_fast.models.glass.Glass` wrapped into one.

    Raises:
        ConfigError: neither.
    """
    parts = hasattr(model, "encoder") and hasattr(model, "slot_attention")
    if parts and not isinstance(model, SlotPredictor):
        config = model.config_dict() if hasattr(model, "config_dict") else {}
        record = {key: config[key] for key in ("encoder", "slot_attention") if key in config}
        return SlotPredictor(
            model.encoder, model.slot_attention, name or "glass", {"type": "glass", **record}
        )
    if isinstance(model, Predictor):
        return model
    raise ConfigError(
        "GF-EVAL-002",
        f"cannot evaluate a {type(model).__name__}",
        "expected a Glass model or an object with name, num_slots, masks(images, seeds) and describe()",
    )
