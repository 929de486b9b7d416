"""Stage ``autoencoder``: a diffusers AutoencoderKL from 64x64 pictures to latents of 16x16 (32x32) tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from glass_fast.models.loading import ensure_torchvision
from glass_fast.partworld.builder.fitting import fit, step_rng
from glass_fast.partworld.builder.targets import AutoencoderPlan
from glass_fast.progress import Progress, StopToken

if TYPE_CHECKING:
    import torch


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1], channels last in memory."""
    import torch

    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def build_autoencoder(
    folder: Path,
    work: Path,
    images: np.ndarray,
    settings: AutoencoderPlan,
    seed: int,
    device: str,
    progress: Progress,
    stop: StopToken,
) -> None:
    """Train and save; most steps see 32x32 crops (the model is convolutional), the last sixth whole pictures."""
    ensure_torchvision()
    import torch
    from diffusers import AutoencoderKL

    plan, levels = settings.fit, len(settings.channels)
    torch.manual_seed(seed)
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=settings.channels,
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=64,
    ).to(device, memory_format=torch.channels_last)

    def loss_of(step: int) -> torch.Tensor:
        rng = step_rng(seed, "autoencoder", step)
        whole = step >= plan.steps * 5 // 6
        count = plan.batch_size // 2 if whole else plan.batch_size
        batch = images[rng.integers(len(images), size=count)]
        if not whole:
            y, x = rng.integers(0, 33, size=2)
            batch = batch[:, y : y + 32, x : x + 32]
        pixels = to_tensor(batch).to(device)
        posterior = model.encode(pixels).latent_dist
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32)).to(device)
        decoded = model.decode(posterior.mean + posterior.std * noise).sample
        return (
            (decoded - pixels).square().mean()
            + 0.1 * (decoded - pixels).abs().mean()
            + 2e-5 * posterior.kl().mean() / 256
        )

    fit("autoencoder", model, loss_of, plan, work, progress, stop)
    with torch.no_grad():
        sample = torch.cat(
            [
                model.encode(to_tensor(images[i : i + 64]).to(device)).latent_dist.mean
                for i in range(0, 512, 64)
            ]
        )
    model.register_to_config(scaling_factor=float(1.0 / sample.std()))
    model.half().save_pretrained(folder)
