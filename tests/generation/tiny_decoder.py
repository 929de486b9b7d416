"""A small Stable Diffusion folder and a small Glass model whose slots fit its UNet; shared by the tests of phase 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from glass_fast.config.schema import DecoderConfig
from glass_fast.models.encoder import Encoder
from glass_fast.models.glass import Glass
from glass_fast.models.mlp_decoder import MLPDecoder, MLPDecoderConfig
from glass_fast.models.slot_attention import SlotAttention, SlotAttentionConfig
from tests.synthesis import tiny_sd

WIDTH = 16
"""Context of the UNet of ``tiny_sd``."""
SIDE = 32
"""Pixels: 16 x 16 latents times the VAE's factor 2."""


def write_generator(folder: Path, seed: int = 0, prediction: str = "v_prediction") -> Path:
    """A random generator in diffusers layout; ``seed`` fixes all weights, so another one has another VAE."""
    parts = tiny_sd.generator(seed=seed, scheduler={**tiny_sd.SD_SCHEDULER, "prediction_type": prediction})
    for name in ("tokenizer", "text_encoder", "unet", "vae"):
        getattr(parts, name).save_pretrained(folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(parts.scheduler_config))
    return folder


def model(encoder: Encoder, out_size: int = WIDTH, mlp: bool = True, seed: int = 0) -> Glass:
    """Untrained slots of the tiny encoder."""
    slot_attention = SlotAttention(
        SlotAttentionConfig(
            num_iterations=2, num_slots=4, input_size=encoder.dim, out_size=out_size, slot_size=12,
            mlp_hidden_size=12, input_resolution=encoder.grid[0],
        )
    )  # fmt: skip
    slot_attention.reset_parameters(torch.Generator().manual_seed(seed))
    decoder = MLPDecoder(
        MLPDecoderConfig(
            slot_size=12, feature_size=encoder.dim, num_patches=64, hidden_size=12, hidden_layers=1
        )
    )
    decoder.reset_parameters(torch.Generator().manual_seed(seed))
    return Glass(encoder, slot_attention, decoder if mlp else None, ("car", "boat")).eval()


def config(**changes: Any) -> DecoderConfig:
    values: dict[str, Any] = {
        "steps": 6, "batch_size": 4, "learning_rate": 2e-3, "checkpoint_every": 2, "log_every": 2,
        "sampling": {"steps": 3, "scheduler": "ddim", "guidance_scale": 1.5, "batch_size": 3},
    }  # fmt: skip
    return DecoderConfig.model_validate(values | changes)
