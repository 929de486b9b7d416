"""Streaming attention capture: running means over heads, layers and denoising steps, never a list of maps.

Only the layers of the wanted size get a capturing processor; all others keep the one they have (SDPA).
Method: Dataset Diffusion's class-prompt probe, section 3 of the GLASS paper.

Letters in shapes: B images, N = h * w queries, L tokens, K classes, C text channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glass_fast.config.schema import CaptureConfig
from glass_fast.errors import ConfigError
from glass_fast.kernels.attention_capture import cross_capture, self_capture
from glass_fast.synthesis.layers import LayerChoice, Size, attention_layers, choose_layers


@dataclass(frozen=True)
class AttentionMaps:
    """Mean maps of a batch.

    Attributes:
        cross: (B, K, h, w) float32 mean probability of each class's token columns.
        self_: (B, N, N) float32 mean self-attention, rows are queries and sum to one; None when not captured.
        self_size: rows and columns of the N tokens; class maps are brought to this size.
    """

    cross: Tensor
    self_: Tensor | None
    self_size: Size


class AttentionCapture:
    """Accumulators and the processors that feed them, for one UNet and one latent size.

    Use: ``with capture.attached(): capture.begin(...); for each step: capture.step(t); unet(...)``, then
    :meth:`finish`. One object serves many batches; it holds no tensors between them.

    Args:
        unet: diffusers ``UNet2DConditionModel``.
        latent_size: rows and columns of the latents.
        config: sizes, layer filters, timestep range, probe.
        want_self: False when the self maps are not needed (tau = 0).

    Raises:
        ConfigError: GF-SYN-002, missing size or layer; GF-SYN-003, an attention module of an unknown kind.
    """

    def __init__(self, unet: Any, latent_size: Size, config: CaptureConfig, want_self: bool = True) -> None:
        self.unet = unet
        self.config = config
        self.choice: LayerChoice = choose_layers(
            attention_layers(unet, latent_size), latent_size, config, want_self
        )
        self.weight = 0.0
        for layer in (*self.choice.cross, *self.choice.self_):
            _check_supported(layer.name, unet.get_submodule(layer.name))
        self._reset()

    def _reset(self) -> None:
        self._cross: Tensor | None = None
        self._self: Tensor | None = None
        self._total = 0.0
        self._columns: Tensor | None = None
        self._probe: Tensor | None = None
        self._keys: dict[str, Tensor] = {}
        self._rows = slice(0)
        self.weight = 0.0

    @contextmanager
    def attached(self) -> Iterator[AttentionCapture]:
        """Install the capturing processors; the previous ones come back at exit."""
        before = dict(self.unet.attn_processors)
        processors = dict(before)
        for layer in self.choice.cross:
            processors[f"{layer.name}.processor"] = _CrossProcessor(self, layer.name)
        for layer in self.choice.self_:
            processors[f"{layer.name}.processor"] = _SelfProcessor(self)
        # set_attn_processor consumes the dictionary it is given
        self.unet.set_attn_processor(processors)
        try:
            yield self
        finally:
            self.unet.set_attn_processor(before)
            self._reset()

    def begin(self, rows: slice, columns: Tensor, probe: Tensor | None) -> None:
        """Start a batch.

        Args:
            rows: rows of the UNet batch that hold the B conditional images.
            columns: (B, L, K) token weights of each class (each column sums to one, or is zero for padding).
            probe: (B, L, C) hidden states of the class prompts whose keys are probed; None: the layer's own
                conditional keys are used (``probe = "prompt"``).
        """
        self._reset()
        batch, _, classes = columns.shape
        self._rows, self._columns, self._probe = rows, columns, probe
        n_cross, n_self = (s[0] * s[1] for s in (self.choice.cross_size, self.choice.self_size))
        self._cross = torch.zeros(batch, n_cross, classes, device=columns.device)
        if self.choice.self_:
            self._self = torch.zeros(batch, n_self, n_self, device=columns.device)

    def wants(self, timestep: float) -> bool:
        """Whether maps of this training timestep are averaged."""
        return self.config.timestep_min <= timestep < self.config.timestep_max

    def require_steps(self, timesteps: Sequence[float]) -> None:
        """Refuse a schedule of which no step would be captured, before any work is done.

        Raises:
            ConfigError: GF-SYN-004.
        """
        if not any(self.wants(timestep) for timestep in timesteps):
            raise ConfigError(
                "GF-SYN-004",
                f"no denoising step lies in synthesis.capture's timestep range [{self.config.timestep_min}, "
                f"{self.config.timestep_max}); the steps are {', '.join(f'{t:g}' for t in timesteps)}",
                "widen timestep_min / timestep_max or use more steps",
            )

    def step(self, timestep: float, weight: float = 1.0) -> None:
        """Announce the next UNet call; its maps count with ``weight`` when the timestep is in range."""
        self.weight = weight if self.wants(timestep) else 0.0
        self._total += self.weight

    def finish(self) -> AttentionMaps:
        """Means of the batch; the accumulators are handed over, not copied.

        Raises:
            RuntimeError: no step was captured (:meth:`require_steps` refuses such a schedule).
        """
        if self._cross is None or self._total <= 0:
            raise RuntimeError("finish() without a captured step")
        cross = self._cross.div_(self._total * len(self.choice.cross)).transpose(1, 2)
        cross = cross.reshape(cross.shape[0], cross.shape[1], *self.choice.cross_size)
        self_ = self._self
        if self_ is not None:
            self_.div_(self._total * len(self.choice.self_))
        self._reset()
        return AttentionMaps(cross, self_, self.choice.self_size)

    def add_self(self, query: Tensor, key: Tensor) -> None:
        """Add one layer's probabilities; ``query``, ``key`` (rows of the UNet batch, H, N, d)."""
        if self.weight and self._self is not None:
            self_capture(query[self._rows], key[self._rows], self._self, self.weight)

    def add_cross(self, name: str, attn: Any, query: Tensor, key: Tensor) -> None:
        """Add one layer's class columns; the probe's keys are computed once per batch."""
        if not self.weight or self._columns is None:
            return
        probe_key = key[self._rows]
        if self._probe is not None:
            if name not in self._keys:
                self._keys[name] = _split_heads(attn, attn.to_k(self._probe))
            probe_key = self._keys[name]
        cross_capture(query[self._rows], probe_key, self._columns, self._cross, self.weight)


class _SelfProcessor:
    """Self-attention whose output is SDPA's and whose probabilities are added to the mean."""

    def __init__(self, capture: AttentionCapture) -> None:
        self.capture = capture

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        query = _split_heads(attn, attn.to_q(hidden_states))
        key = _split_heads(attn, attn.to_k(hidden_states))
        self.capture.add_self(query, key)
        return _attend(attn, query, key, attn.to_v(hidden_states), attention_mask)


class _CrossProcessor:
    """Cross-attention whose output is SDPA's; the class columns of the conditional queries are added to the mean."""

    def __init__(self, capture: AttentionCapture, name: str) -> None:
        self.capture = capture
        self.name = name

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = _split_heads(attn, attn.to_q(hidden_states))
        key = _split_heads(attn, attn.to_k(text))
        self.capture.add_cross(self.name, attn, query, key)
        return _attend(attn, query, key, attn.to_v(text), attention_mask)


def _split_heads(attn: Any, states: Tensor) -> Tensor:
    """(B, N, H * d) -> (B, H, N, d)."""
    return states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def _attend(attn: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        mask = attn.prepare_attention_mask(mask, key.shape[2], query.shape[0])
        mask = mask.view(query.shape[0], attn.heads, -1, mask.shape[-1])
    output = F.scaled_dot_product_attention(query, key, _split_heads(attn, value), attn_mask=mask)
    output = output.transpose(1, 2).flatten(2).to(query.dtype)
    return attn.to_out[1](attn.to_out[0](output)) / attn.rescale_output_factor


def _check_supported(name: str, attn: Any) -> None:
    """The processors above are right only for the plain attention of Stable Diffusion's transformer blocks."""
    extras = ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "added_kv_proj_dim")
    odd = [extra for extra in extras if getattr(attn, extra, None) is not None]
    if getattr(attn, "residual_connection", False):
        odd.append("residual_connection")
    if not getattr(attn, "scale_qk", True):
        odd.append("scale_qk = False")
    if getattr(attn, "inner_kv_dim", attn.inner_dim) != attn.inner_dim:
        odd.append("grouped key heads")
    if odd:
        raise ConfigError(
            "GF-SYN-003",
            f"attention layer {name} uses {', '.join(odd)}; capture supports the plain attention of "
            "Stable Diffusion UNets",
            "choose other layers with synthesis.capture.self_layers / cross_layers, or another generator",
        )
