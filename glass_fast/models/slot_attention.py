"""Slot attention with the parameter names and configuration of the released GLASS checkpoints."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from glass_fast.errors import ConfigError
from glass_fast.kernels.slot_attention import SlotAttentionWeights, slot_attention
from glass_fast.models.op_module import OpModule

MAX_SLOTS = 64


@dataclass(frozen=True)
class SlotAttentionConfig:
    """Configuration keys of ``MultiHeadSTEVESA`` (method notes 12); defaults are the released COCO model."""

    num_iterations: int = 5
    num_slots: int = 7
    num_heads: int = 1
    input_size: int = 768
    out_size: int = 1024
    slot_size: int = 768
    mlp_hidden_size: int = 768
    input_resolution: int = 32
    epsilon: float = 1e-6
    learnable_slot_init: bool = False
    bi_level: bool = False
    init_mlp: bool = False

    def __post_init__(self) -> None:
        for name in ("num_iterations", "num_heads", "input_size", "out_size", "slot_size", "mlp_hidden_size"):
            if getattr(self, name) < 1:
                raise ConfigError("GF-MODEL-030", f"{name}={getattr(self, name)}; expected at least 1")
        if not 1 <= self.num_slots <= MAX_SLOTS:
            raise ConfigError("GF-MODEL-030", f"num_slots={self.num_slots}; expected 1 to {MAX_SLOTS}")
        if self.slot_size % self.num_heads:
            raise ConfigError(
                "GF-MODEL-030", f"num_heads={self.num_heads} does not divide slot_size={self.slot_size}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SlotAttentionConfig:
        """From a ``config.json``; keys that diffusers adds (``_class_name``, ...) are dropped.

        Raises:
            ConfigError: an unknown key.
        """
        known = {key: value for key, value in values.items() if not key.startswith("_")}
        unknown = sorted(set(known) - set(cls.__dataclass_fields__))
        if unknown:
            raise ConfigError(
                "GF-MODEL-031",
                f"slot attention configuration has unknown keys {', '.join(unknown)}",
                f"known keys: {', '.join(cls.__dataclass_fields__)}",
            )
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def position_grid(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Cartesian positions of cell centres.

    Returns:
        ``(1, 4, rows, columns)``: row, column, 1 - row, 1 - column, each in [0, 1].
    """
    down = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    right = (torch.arange(columns, dtype=torch.float64) + 0.5) / columns
    row, column = torch.meshgrid(down, right, indexing="ij")
    return torch.stack([row, column, 1 - row, 1 - column])[None].to(dtype)


class CartesianPosition(nn.Module):
    """Fixed four-channel grid projected by a 1x1 convolution and added to the features."""

    pe: torch.Tensor

    def __init__(self, channels: int, resolution: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(4, channels, 1)
        self.register_buffer("pe", position_grid(resolution, resolution))

    def forward(self, rows: int, columns: int) -> torch.Tensor:
        """Position term ``(1, rows * columns, channels)``."""
        grid = self.pe
        if grid.shape[2:] != (rows, columns):
            grid = position_grid(rows, columns, grid.dtype).to(grid.device)
        return self.projection(grid).flatten(2).transpose(1, 2)


class SlotAttention(OpModule):
    """Slots from features (GLASS section 3, method notes 3).

    Args:
        config: sizes and options; see :class:`SlotAttentionConfig`.
        backend: backend of the op ``slot_attention``; None: the registry's choice.
    """

    def __init__(self, config: SlotAttentionConfig | None = None, backend: str | None = None) -> None:
        super().__init__("slot_attention", backend)
        self.config = config = config or SlotAttentionConfig()
        inputs, width = config.input_size, config.slot_size
        self.pos = CartesianPosition(inputs, config.input_resolution)
        self.in_layer_norm = nn.LayerNorm(inputs)
        self.in_mlp = nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, inputs))
        if config.learnable_slot_init:
            self.slot_mu = nn.Parameter(torch.empty(1, config.num_slots, width))
        else:
            self.slot_mu = nn.Parameter(torch.empty(1, 1, width))
            self.slot_log_sigma = nn.Parameter(torch.empty(1, 1, width))
        self.norm_inputs = nn.LayerNorm(inputs)
        self.norm_slots = nn.LayerNorm(width)
        self.norm_mlp = nn.LayerNorm(width)
        self.project_q = nn.Linear(width, width, bias=False)
        self.project_k = nn.Linear(inputs, width, bias=False)
        self.project_v = nn.Linear(inputs, width, bias=False)
        self.gru = nn.GRUCell(width, width)
        hidden = config.mlp_hidden_size
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.out_layer_norm = nn.LayerNorm(width)
        self.out_linear = nn.Linear(width, config.out_size)
        if config.init_mlp:
            self.bbox_mlp = nn.Sequential(nn.Linear(4, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.choose_backend()
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Xavier-uniform matrices, orthogonal recurrent gates, zero biases, unit norms.

        The shared initial slot is Xavier-uniform too: U(-0.0625, 0.0625) at D = 768, so sigma starts near 1.

        Args:
            generator: source of the random numbers; None: torch's global one.
        """
        for name, parameter in self.named_parameters():
            if name == "gru.weight_hh":
                for gate in parameter.data.chunk(3, 0):
                    nn.init.orthogonal_(gate, generator=generator)
            elif parameter.ndim >= 2:
                nn.init.xavier_uniform_(parameter, generator=generator)
            elif "norm" in name and name.endswith("weight"):
                nn.init.ones_(parameter)
            else:
                nn.init.zeros_(parameter)

    def op_weights(self) -> SlotAttentionWeights:
        """The weights in the order of the op."""
        first, last = self.mlp[0], self.mlp[2]
        return SlotAttentionWeights(
            self.norm_inputs.weight, self.norm_inputs.bias, self.norm_slots.weight, self.norm_slots.bias,
            self.norm_mlp.weight, self.norm_mlp.bias, self.project_q.weight, self.project_k.weight,
            self.project_v.weight, self.gru.weight_ih, self.gru.weight_hh, self.gru.bias_ih, self.gru.bias_hh,
            first.weight, first.bias, last.weight, last.bias,
        )  # fmt: skip

    def draw_noise(
        self, batch: int, slots: int | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Standard normal ``(batch, slots, slot_size)``, drawn on the CPU: equal on every device."""
        size = (batch, slots or self.config.num_slots, self.config.slot_size)
        return torch.randn(size, generator=generator).to(self.slot_mu.device, self.slot_mu.dtype)

    def initial_slots(
        self,
        batch: int,
        noise: torch.Tensor | None = None,
        slots: int | None = None,
        generator: torch.Generator | None = None,
        boxes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``mu + exp(log_sigma) z``, learned slots, or embedded boxes; ``(batch, slots, slot_size)``."""
        count = slots or self.config.num_slots
        if boxes is not None:
            if not self.config.init_mlp:
                raise ConfigError("GF-MODEL-032", "boxes were given, but the model has init_mlp=False")
            if tuple(boxes.shape) != (batch, count, 4):
                raise ConfigError(
                    "GF-MODEL-032", f"boxes of shape {tuple(boxes.shape)}; expected {(batch, count, 4)}"
                )
            return self.bbox_mlp(boxes.to(self.slot_mu))
        if self.config.learnable_slot_init:
            if count != self.config.num_slots:
                raise ConfigError(
                    "GF-MODEL-032",
                    f"{count} slots asked for; learned initial slots exist for {self.config.num_slots} only",
                )
            return self.slot_mu.expand(batch, -1, -1)
        if noise is None:
            noise = self.draw_noise(batch, count, generator)
        if tuple(noise.shape) != (batch, count, self.config.slot_size):
            raise ConfigError(
                "GF-MODEL-032",
                f"noise of shape {tuple(noise.shape)}; expected {(batch, count, self.config.slot_size)}",
            )
        return self.slot_mu + self.slot_log_sigma.exp() * noise.to(self.slot_mu)

    def forward(
        self,
        features: torch.Tensor,
        noise: torch.Tensor | None = None,
        num_slots: int | torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        boxes: torch.Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features -> slots and masks.

        Args:
            features: ``(batch, tokens, input_size)``, tokens row by row.
            noise: ``(batch, slots, slot_size)`` standard normal numbers of the initial slots; None: drawn.
            num_slots: int: use this many slots instead of the configured number (random initial slots only);
                int tensor ``(batch,)``: known object counts, slots with a higher index get no token. A count
                of 0 is taken as 1, because a softmax over no slot is NaN.
            generator: CPU generator of the noise.
            boxes: ``(batch, slots, 4)`` boxes that initialise the slots (``init_mlp`` models only).
            grid: token rows and columns; default: a square.

        Returns:
            raw slots ``(batch, slots, slot_size)``, projected slots ``(batch, slots, out_size)``, masks
            ``(batch, slots, tokens)`` that sum to one over slots (attention of the last iteration).

        Raises:
            ConfigError: shapes do not fit the configuration.
        """
        batch, tokens, channels = features.shape
        if channels != self.config.input_size:
            raise ConfigError(
                "GF-MODEL-033",
                f"features have {channels} channels; the model expects {self.config.input_size}",
            )
        rows, columns = grid or (math.isqrt(tokens), math.isqrt(tokens))
        if rows * columns != tokens:
            raise ConfigError(
                "GF-MODEL-033", f"{tokens} tokens are no {rows} x {columns} grid", "pass grid=(h, w)"
            )
        count, active = self.config.num_slots, None
        if isinstance(num_slots, torch.Tensor):
            limit = num_slots.to(features.device).clamp(1, count)
            active = torch.arange(count, device=features.device)[None] < limit[:, None]
        elif num_slots is not None:
            count = int(num_slots)
            if not 1 <= count <= MAX_SLOTS:
                raise ConfigError("GF-MODEL-032", f"num_slots={count}; expected 1 to {MAX_SLOTS}")
        inputs = self.in_mlp(self.in_layer_norm(features + self.pos(rows, columns)))
        initial = self.initial_slots(batch, noise, count, generator, boxes)
        slots, masks = slot_attention(
            inputs,
            initial,
            self.op_weights(),
            self.config.num_iterations,
            heads=self.config.num_heads,
            epsilon=self.config.epsilon,
            active=active,
            bi_level=self.config.bi_level,
            backend=self.chosen,
        )
        return slots, self.out_linear(self.out_layer_norm(slots)), masks
