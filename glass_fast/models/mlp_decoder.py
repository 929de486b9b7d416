"""Spatial-broadcast MLP decoder: instance guidance by feature reconstruction (method notes 4.2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from glass_fast.errors import ConfigError
from glass_fast.kernels.mlp_decoder import mlp_decoder
from glass_fast.models.op_module import OpModule


@dataclass(frozen=True)
class MLPDecoderConfig:
    """Sizes of the decoder; defaults are the GLASS ones (768 -> 3 x 2048 -> 768 + 1 on 1024 patches)."""

    slot_size: int = 768
    feature_size: int = 768
    num_patches: int = 1024
    hidden_size: int = 2048
    hidden_layers: int = 3

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ConfigError("GF-MODEL-034", f"decoder {name}={value}; expected at least 1")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MLPDecoderConfig:
        """From a ``config.json``.

        Raises:
            ConfigError: an unknown key.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise ConfigError(
                "GF-MODEL-031",
                f"decoder configuration has unknown keys {', '.join(unknown)}",
                f"known keys: {', '.join(cls.__dataclass_fields__)}",
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class MLPDecoder(OpModule):
    """Slots -> features of every patch, mixed by alpha masks.

    State-dict keys: ``pos_embed`` (1, patches, slot_size) and ``decoder.{0,2,4,6}`` (linear layers).

    Args:
        config: sizes.
        backend: backend of the op ``mlp_decoder``; None: the registry's choice.
    """

    def __init__(self, config: MLPDecoderConfig | None = None, backend: str | None = None) -> None:
        super().__init__("mlp_decoder", backend)
        self.config = config = config or MLPDecoderConfig()
        self.pos_embed = nn.Parameter(torch.empty(1, config.num_patches, config.slot_size))
        sizes = [config.slot_size, *[config.hidden_size] * config.hidden_layers, config.feature_size + 1]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.decoder = nn.Sequential(*layers[:-1])
        self.choose_backend()
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Positions 0.02 N(0, 1); Xavier-uniform matrices; zero biases."""
        nn.init.normal_(self.pos_embed, std=0.02, generator=generator)
        for layer in self.decoder:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(
        self, slots: torch.Tensor, active: torch.Tensor | None = None, patches: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruct features.

        Args:
            slots: ``(batch, slots, slot_size)`` raw slots.
            active: ``(batch, slots)`` bool; inactive slots get alpha 0.
            patches: int ``(k,)`` indices of the patches to reconstruct; None: all.

        Returns:
            reconstruction ``(batch, patches, feature_size)`` and alpha ``(batch, slots, patches)``.
        """
        positions = self.pos_embed[0] if patches is None else self.pos_embed[0, patches]
        layers = [(layer.weight, layer.bias) for layer in self.decoder if isinstance(layer, nn.Linear)]
        result: tuple[torch.Tensor, torch.Tensor] = mlp_decoder(
            slots, positions, layers, active=active, backend=self.chosen
        )
        return result
