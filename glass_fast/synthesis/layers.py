"""Which attention layers a UNet has, and at which size each of them works."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from glass_fast.config.schema import CaptureConfig
from glass_fast.errors import ConfigError

Size = tuple[int, int]


@dataclass(frozen=True)
class AttentionLayer:
    """One attention module of a UNet.

    Attributes:
        name: module path, such as ``up_blocks.1.attentions.0.transformer_blocks.0.attn2``.
        kind: ``self`` or ``cross``.
        size: rows and columns of its queries, in tokens.
        heads: number of heads.
    """

    name: str
    kind: str
    size: Size
    heads: int


def native_latent_size(unet: Any) -> Size:
    """Latent size that the UNet was trained at, from its configuration."""
    size = unet.config.sample_size
    if size is None:
        raise ConfigError(
            "GF-SYN-001",
            "the UNet's config.json has sample_size = null; expected the latent side",
            "set synthesis.height and synthesis.width",
        )
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def attention_layers(unet: Any, latent_size: Size) -> list[AttentionLayer]:
    """All attention layers of a ``UNet2DConditionModel`` in module order, without running it.

    Every down block halves the size behind its layers (stride 2, padding 1: rounded up) where it has a downsampler;
    the up path returns to the sizes of the skip connections.

    Args:
        unet: diffusers ``UNet2DConditionModel``.
        latent_size: rows and columns of the latents.
    """
    found: list[AttentionLayer] = []
    size = latent_size
    down_sizes: list[Size] = []
    for index, block in enumerate(unet.down_blocks):
        down_sizes.append(size)
        found += _inside(f"down_blocks.{index}", block, size)
        if getattr(block, "downsamplers", None):
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    if getattr(unet, "mid_block", None) is not None:
        found += _inside("mid_block", unet.mid_block, size)
    for index, block in enumerate(unet.up_blocks):
        found += _inside(f"up_blocks.{index}", block, down_sizes[len(down_sizes) - 1 - index])
    return found


def _inside(prefix: str, block: Any, size: Size) -> list[AttentionLayer]:
    from diffusers.models.attention_processor import Attention

    layers = []
    for name, module in block.named_modules():
        if isinstance(module, Attention):
            kind = "cross" if module.is_cross_attention else "self"
            layers.append(AttentionLayer(f"{prefix}.{name}", kind, size, int(module.heads)))
    return layers


@dataclass(frozen=True)
class LayerChoice:
    """Layers that are captured.

    Attributes:
        cross, self_: captured layers; ``self_`` is empty when self maps are not wanted.
        cross_size, self_size: rows and columns of the maps.
    """

    cross: tuple[AttentionLayer, ...]
    self_: tuple[AttentionLayer, ...]
    cross_size: Size
    self_size: Size


def choose_layers(
    layers: Sequence[AttentionLayer], latent_size: Size, config: CaptureConfig, want_self: bool = True
) -> LayerChoice:
    """Layers of the wanted sizes: self = latent / 2, cross = latent / 4 unless the configuration says otherwise.

    Args:
        layers: from :func:`attention_layers`.
        latent_size: rows and columns of the latents.
        config: sizes and name filters.
        want_self: False when no propagation follows (tau = 0).

    Raises:
        ConfigError: GF-SYN-002, the UNet has no layer of that size or name; the message lists what it has.
    """
    self_size = _side(config.self_size, latent_size, 2)
    cross_size = _side(config.cross_size, latent_size, 4)
    cross = _select(layers, "cross", cross_size, config.cross_size, config.cross_layers, latent_size)
    self_: tuple[AttentionLayer, ...] = ()
    if want_self:
        self_ = _select(layers, "self", self_size, config.self_size, config.self_layers, latent_size)
    return LayerChoice(cross, self_, cross_size, self_size)


def _side(wanted: int | None, latent: Size, divisor: int) -> Size:
    """Map size whose longer side is ``wanted`` (default: the latent's longer side / ``divisor``), in proportion."""
    if wanted is None:
        return (-(-latent[0] // divisor), -(-latent[1] // divisor))
    ratio = wanted / max(latent)
    return (max(1, round(latent[0] * ratio)), max(1, round(latent[1] * ratio)))


def _select(
    layers: Iterable[AttentionLayer],
    kind: str,
    size: Size,
    asked: int | None,
    filters: tuple[str, ...] | None,
    latent: Size,
) -> tuple[AttentionLayer, ...]:
    layers = list(layers)
    of_size = [layer for layer in layers if layer.kind == kind and layer.size == size]
    chosen = [layer for layer in of_size if filters is None or any(part in layer.name for part in filters)]
    if chosen:
        return tuple(chosen)
    origin = (
        f"capture.{kind}_size={asked}"
        if asked is not None
        else f"the default (latent / {4 if kind == 'cross' else 2})"
    )
    if of_size:
        raise ConfigError(
            "GF-SYN-002",
            f"capture.{kind}_layers={list(filters or ())} matches no {kind}-attention layer of "
            f"{size[0]}x{size[1]} tokens; "
            f"the UNet has there: {', '.join(layer.name for layer in of_size)}",
            "use substrings of these names",
        )
    raise ConfigError(
        "GF-SYN-002",
        f"the UNet has no {kind}-attention layer of {size[0]}x{size[1]} tokens, asked for by {origin} at latents of "
        f"{latent[0]}x{latent[1]}; it has {describe(layers, kind)}",
        f"set synthesis.capture.{kind}_size to the longer side of one of these sizes",
    )


def describe(layers: Iterable[AttentionLayer], kind: str) -> str:
    """``64x64 (5 layers), 32x32 (5 layers)`` for messages, largest first."""
    counts: dict[Size, int] = {}
    for layer in layers:
        if layer.kind == kind:
            counts[layer.size] = counts.get(layer.size, 0) + 1
    text = [
        f"{h}x{w} ({n} layer{'s' if n > 1 else ''})" for (h, w), n in sorted(counts.items(), reverse=True)
    ]
    return ", ".join(text) or f"no {kind}-attention at all"
