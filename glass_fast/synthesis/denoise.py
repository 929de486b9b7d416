"""Denoising of one micro-batch on diffusers components, and the VAE around it.

Latents are float32 whatever the dtype of the networks; noise is drawn on the CPU from one generator per sample, so a
sample's noise depends on its seed alone (not on batch, device or dtype).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glass_fast.errors import ConfigError, EnvironmentProblem
from glass_fast.synthesis.capture import AttentionCapture
from glass_fast.synthesis.layers import Size, native_latent_size
from glass_fast.synthesis.schedulers import takes_generator

if TYPE_CHECKING:
    from glass_fast.models.loading import Generator


def vae_factor(vae: Any) -> int:
    """Pixels per latent, along a side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def latent_size(generator: Generator, height: int | None, width: int | None) -> Size:
    """Rows and columns of the latents for an image size in pixels; None means the UNet's native size.

    Raises:
        ConfigError: GF-SYN-001, no native size; GF-SYN-005, a size that the VAE cannot make.
    """
    factor = vae_factor(generator.vae)
    if height is not None and width is not None:
        native: Size = (1, 1)
    else:
        native = native_latent_size(generator.unet)
    sides = []
    for name, pixels, default in (("height", height, native[0]), ("width", width, native[1])):
        if pixels is not None and pixels % factor:
            raise ConfigError(
                "GF-SYN-005",
                f"synthesis.{name}={pixels}; expected a multiple of {factor}, the VAE's factor",
                f"use {max(1, round(pixels / factor)) * factor}",
            )
        sides.append(default if pixels is None else pixels // factor)
    return sides[0], sides[1]


def initial_noise(generators: Sequence[torch.Generator], channels: int, size: Size) -> Tensor:
    """Standard normal noise (batch, channels, h, w) float32 on the CPU, one generator per sample."""
    return torch.cat([torch.randn(1, channels, *size, generator=g) for g in generators])


def denoise(
    unet: Any,
    scheduler: Any,
    noise: Tensor,
    context: Tensor,
    negative: Tensor | None,
    generators: list[torch.Generator],
    *,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    capture: AttentionCapture | None = None,
) -> Tensor:
    """Run all steps of a scheduler whose timesteps are set.

    Args:
        unet: noise or velocity predictor (the scheduler's configuration says which).
        scheduler: fresh diffusers scheduler after ``set_timesteps``; multistep ones keep state, so one per batch.
        noise: (B, C, h, w) standard normal.
        context: (B, L, D) hidden states of the prompts.
        negative: (1, L, D) of the negative prompt; None switches classifier-free guidance off.
        generators: one per sample, for stochastic schedulers.
        guidance_scale: weight of classifier-free guidance.
        guidance_rescale: share of the rescaling of Lin et al. (2023), section 3.4.
        capture: told about every step; its processors must be attached.

    Returns:
        Final latents (B, C, h, w) float32.
    """
    device, dtype = context.device, unet.dtype
    latents = noise.to(device) * scheduler.init_noise_sigma
    text = context if negative is None else torch.cat([negative.expand_as(context), context])
    text = text.to(dtype)
    extra = {"generator": generators} if takes_generator(scheduler) else {}
    # one transfer, so that no step waits for the device
    steps = [float(t) for t in scheduler.timesteps.cpu()]
    for step, timestep in zip(steps, scheduler.timesteps, strict=True):
        sample = scheduler.scale_model_input(latents, timestep)
        if negative is not None:
            sample = torch.cat([sample, sample])
        if capture is not None:
            capture.step(step)
        output = unet(sample.to(dtype), timestep, encoder_hidden_states=text, return_dict=False)[0].float()
        if negative is not None:
            output = _guide(output, guidance_scale, guidance_rescale)
        latents = scheduler.step(output, timestep, latents, return_dict=False, **extra)[0].float()
    return latents


def _guide(output: Tensor, scale: float, rescale: float) -> Tensor:
    """Classifier-free guidance, with the standard deviation partly brought back to the conditional one."""
    unconditional, conditional = output.chunk(2)
    guided = unconditional + scale * (conditional - unconditional)
    if rescale > 0:
        dims = list(range(1, guided.ndim))
        wanted, got = conditional.std(dims, keepdim=True), guided.std(dims, keepdim=True)
        guided = rescale * guided * (wanted / got) + (1.0 - rescale) * guided
    return guided


@contextmanager
def vae_precision(vae: Any) -> Iterator[None]:
    """Run a half-precision VAE in float32 where its configuration asks for it (``force_upcast``)."""
    dtype = vae.dtype
    upcast = dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
    if upcast:
        vae.float()
    try:
        yield
    finally:
        if upcast:
            vae.to(dtype)


def decode(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Latents -> images.

    Returns:
        images (B, H, W, 3) uint8 on the CPU; finite (B,) bool: False where the decoder returned NaN or infinity.
    """
    shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
    with vae_precision(vae):
        pixels = vae.decode((latents / vae.config.scaling_factor + shift).to(vae.dtype)).sample.float()
    finite = pixels.flatten(1).isfinite().all(dim=1)
    pixels = (pixels.nan_to_num(0.0) * 0.5 + 0.5).clamp(0.0, 1.0)
    images = (pixels * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return images.cpu(), finite.cpu()


def encode(vae: Any, images: Tensor) -> Tensor:
    """Images (B, H, W, 3) uint8 -> scaled latents (B, C, h, w) float32 (mode of the posterior)."""
    shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
    device = next(vae.parameters()).device
    with vae_precision(vae):
        pixels = images.to(device).permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1.0
        latents = vae.encode(pixels).latent_dist.mode().float()
    return (latents - shift) * float(vae.config.scaling_factor)


@contextmanager
def in_float32(generator: Generator) -> Iterator[None]:
    """Networks in float32 for the time of the block (exact: half-precision values are float32 values)."""
    parts = (generator.text_encoder, generator.unet, generator.vae)
    before = [part.dtype for part in parts]
    for part in parts:
        part.float()
    try:
        yield
    finally:
        for part, dtype in zip(parts, before, strict=True):
            part.to(dtype)


def use_attention(unet: Any, kind: str) -> None:
    """Choose the attention of the layers that are not captured: ``sdpa`` (as loaded) or ``xformers``.

    Raises:
        EnvironmentProblem: GF-ENV-030, xformers is not installed or there is no CUDA device.
    """
    if kind != "xformers":
        return
    import importlib.util

    device = next(unet.parameters()).device
    missing = [
        *(["the package xformers"] if importlib.util.find_spec("xformers") is None else []),
        *([f"a CUDA device (the generator is on {device.type})"] if device.type != "cuda" else []),
    ]
    if missing:
        raise EnvironmentProblem(
            "GF-ENV-030",
            f"synthesis.attention=xformers needs {' and '.join(missing)}",
            "pip install 'glass-fast[xformers]' on a CUDA machine, or synthesis.attention=sdpa",
        )
    unet.enable_xformers_memory_efficient_attention()
