"""Inference sessions: one interface in front of whatever computes the slot masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glass_fast.errors import ConfigError

if TYPE_CHECKING:
    from glass_fast.models.glass import Glass


class Session(ABC):
    """Pictures in, soft slot masks out.

    Preparing and running are two steps so that a full-size picture can be dropped before its batch is run.

    Attributes:
        engine: name of the backend.
        num_slots: slots S per picture.
    """

    engine: str = ""
    num_slots: int = 0

    @abstractmethod
    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Model input of one picture, with both sides scaled to the input's square.

        The whole picture is seen: a centre crop would lose objects at the borders, and bars would take slots
        of their own. Masks are mapped back by undoing the scaling, so the aspect ratio returns.

        Args:
            image: uint8 ``(height, width, 3)``.

        Returns:
            float32 ``(3, resolution, resolution)``, normalised.
        """

    @abstractmethod
    def masks(self, inputs: Sequence[NDArray[np.float32]], seed: int = 0) -> NDArray[np.float32]:
        """Soft masks of prepared pictures; a picture's masks do not depend on the others of its batch.

        Args:
            inputs: results of :meth:`prepare`.
            seed: seed of the slot noise, the same for every picture.

        Returns:
            float32 ``(batch, slots, rows, columns)`` that sum to one over slots.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-able record of engine and model."""


class TorchSession(Session):
    """A :class:`glass_fast.models.glass.Glass` run by torch.

    Args:
        model: the model, on the device where it is to run.
    """

    engine = "torch"

    def __init__(self, model: Glass) -> None:
        self.model = model
        self.num_slots = model.num_slots

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.model.encoder.preprocess(image, fit="stretch").numpy()

    def masks(self, inputs: Sequence[NDArray[np.float32]], seed: int = 0) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            masks = self.model.masks(torch.from_numpy(np.stack(inputs)), seed=seed)
        return masks.float().cpu().numpy()

    def describe(self) -> dict[str, Any]:
        config = self.model.config_dict()
        return {
            "engine": self.engine,
            "device": str(self.model.device),
            **{key: config[key] for key in ("encoder", "slot_attention") if key in config},
        }


def open_session(model: Glass | Session, engine: str = "torch") -> Session:
    """A session for a model (a session passes through).

    Raises:
        ConfigError: unknown engine.
    """
    if isinstance(model, Session):
        return model
    if engine == "torch":
        return TorchSession(model)
    raise ConfigError("GF-DISC-001", f"engine {engine!r} is unknown; expected torch", "use --engine torch")
