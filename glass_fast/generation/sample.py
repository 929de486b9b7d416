"""Slots -> pictures: denoising with slots as the only context (method notes 7.4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from glass_fast.errors import ConfigError, NumericsError
from glass_fast.models.denoising import decode, denoise, initial_noise
from glass_fast.models.diffusion_decoder import DiffusionDecoder
from glass_fast.models.schedulers import build_scheduler, set_steps

SECTION = "decoder.sampling"
"""Section of the configuration, for messages."""


@torch.inference_mode()
def sample(
    decoder: DiffusionDecoder,
    slots: torch.Tensor,
    steps: int = 250,
    guidance_scale: float = 1.3,
    seeds: Sequence[int] = (0,),
    *,
    scheduler: str = "dpmsolver++",
    guidance_rescale: float = 0.0,
) -> NDArray[np.uint8]:
    """Make one picture of each set of slots; the defaults are those of the released sampling script.

    Args:
        decoder: trained decoder.
        slots: projected slots ``(batch, slots, out_size)``.
        steps: denoising steps.
        guidance_scale: weight of classifier-free guidance against the null context; 1: none.
        seeds: one of each picture; fixes its initial noise and that of a stochastic scheduler, so a picture never
            depends on the pictures beside it.
        scheduler: ``default`` (what the generator ships) or a name of :data:`glass_fast.models.schedulers.CLASSES`.
        guidance_rescale: share of the rescaling of Lin et al. (2023), section 3.4.

    Returns:
        uint8 ``(batch, side, side, 3)``.

    Raises:
        ConfigError: GF-GEN-001, another number of seeds than slots; GF-GEN-002, guidance by a decoder that was
            trained without null context; GF-MODEL-051, slots of another width; a scheduler or number of steps that
            does not exist.
        NumericsError: GF-NUM-040, a picture is not finite.
    """
    if len(seeds) != len(slots):
        raise ConfigError(
            "GF-GEN-001", f"{len(seeds)} seeds for {len(slots)} sets of slots; expected one of each"
        )
    if guidance_scale != 1.0 and not decoder.context_dropout:
        raise ConfigError(
            "GF-GEN-002",
            f"{SECTION}.guidance_scale={guidance_scale:g}, but the decoder was trained with context_dropout=0 and "
            "knows no null context",
            "use guidance_scale=1, or train the decoder with decoder.context_dropout=0.1",
        )
    side = decoder.latent_size
    if not len(slots):
        return np.zeros((0, decoder.resolution, decoder.resolution, 3), np.uint8)
    built = build_scheduler(scheduler, decoder.scheduler_config, SECTION)
    set_steps(built, steps, decoder.device, SECTION)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = initial_noise(generators, int(decoder.unet.config.in_channels), (side, side))
    context = decoder.context(slots.to(decoder.device))
    latents = denoise(
        decoder.unet,
        built,
        noise,
        context,
        None if guidance_scale == 1.0 else decoder.null(1, slots.shape[1]),
        generators,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
    )
    images, finite = decode(decoder.vae.model, latents)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise NumericsError(
            "GF-NUM-040",
            f"picture {bad} of {len(slots)} (seed {seeds[bad]}) is not finite",
            "the decoder's weights are damaged, or it diverged in training",
        )
    return images.numpy()
