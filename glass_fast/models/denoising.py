"""The denoising loop on diffusers components, and the VAE around it; shared by synthesis and the slot decoder.

Latents are float32 whatever the dtype of the networks; noise is drawn on the CPU from one generator per sample, so a
sample's noise depends on its seed alone (not on batch, device or dtype).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from glass_fast.models.schedulers import takes_generator

Size = tuple[int, int]
"""Rows and columns."""


class StepListener(Protocol):
    """Told about every step of the loop, as attention capture is."""

    def step(self, timestep: float) -> Any: ...


def vae_factor(vae: Any) -> int:
    """Pixels per latent, along a side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


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
    capture: StepListener | None = None,
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


def encode_moments(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, H, W, 3) uint8 -> mean and standard deviation of the scaled latents, (B, C, h, w) float32."""
    shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
    scale = float(vae.config.scaling_factor)
    device = next(vae.parameters()).device
    with vae_precision(vae):
        pixels = images.to(device).permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1.0
        posterior = vae.encode(pixels).latent_dist
    return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale


def encode(vae: Any, images: Tensor) -> Tensor:
    """Images (B, H, W, 3) uint8 -> scaled latents (B, C, h, w) float32 (mode of the posterior)."""
    return encode_moments(vae, images)[0]
