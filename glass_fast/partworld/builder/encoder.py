"""Stage ``encoder``: a timm ViT trained by masked autoencoding (He et al. 2022), without labels or text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from glass_fast.data.atomic import write_bytes
from glass_fast.models.loading import ensure_torchvision
from glass_fast.partworld.builder.fitting import Fit, fit, step_rng
from glass_fast.progress import Progress, StopToken

if TYPE_CHECKING:
    import torch

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {"img_size": 64, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4, "mlp_ratio": 3.0}
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SPREAD = 3.0
"""Deviation of every feature channel over the training pictures."""
_DECODER_WIDTH = 96
_VISIBLE = 96


def standardise(vit: torch.nn.Module, images: np.ndarray, device: str) -> None:
    """Give every feature channel mean 0 and deviation :data:`SPREAD` over the pictures, in the final norm.

    A masked autoencoder's final norm leaves channels of different scale, and a reconstruction loss would see the
    largest ones only. The common scale sets the weight of that loss against the mask loss: the method's weights
    (0.7 and 0.9) were chosen for DINOv2, whose features are large, and with deviation 1 the mask loss drowns it.
    """
    import torch

    mean, std = np.array(MEAN, np.float32) * 255, np.array(STD, np.float32) * 255
    blocks = []
    with torch.no_grad():
        for start in range(0, len(images), 64):
            pixels = torch.from_numpy((images[start : start + 64].astype(np.float32) - mean) / std).permute(
                0, 3, 1, 2
            )
            blocks.append(vit.forward_features(pixels.to(device))[:, 1:].flatten(0, 1).double())
        features = torch.cat(blocks)
        centre, spread = features.mean(0).float(), features.std(0).clamp(min=1e-3).float()
        vit.norm.bias.sub_(centre).div_(spread).mul_(SPREAD)
        vit.norm.weight.div_(spread).mul_(SPREAD)


def build_encoder(
    folder: Path,
    work: Path,
    images: np.ndarray,
    plan: Fit,
    seed: int,
    device: str,
    progress: Progress,
    stop: StopToken,
) -> None:
    """Train on pictures alone; ships the ViT (final-norm patch tokens) and drops the decoder."""
    ensure_torchvision()
    import safetensors.torch
    import timm
    import torch
    from timm.models.vision_transformer import Block

    torch.manual_seed(seed)
    vit = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0, **MODEL_ARGS)
    width, grid = MODEL_ARGS["embed_dim"], 16
    parts = torch.nn.ModuleDict(
        {
            "vit": vit,
            "narrow": torch.nn.Linear(width, _DECODER_WIDTH),
            "decoder": torch.nn.Sequential(*[Block(_DECODER_WIDTH, 4, 3.0, qkv_bias=True) for _ in range(2)]),
            "out": torch.nn.Sequential(
                torch.nn.LayerNorm(_DECODER_WIDTH), torch.nn.Linear(_DECODER_WIDTH, 48)
            ),
        }
    )
    parts.register_parameter("hole", torch.nn.Parameter(torch.randn(_DECODER_WIDTH) * 0.02))
    parts.register_parameter("place", torch.nn.Parameter(torch.randn(grid * grid, _DECODER_WIDTH) * 0.02))
    parts.to(device)

    def loss_of(step: int) -> torch.Tensor:
        rng = step_rng(seed, "encoder", step)
        batch = images[rng.integers(len(images), size=plan.batch_size)]
        if rng.random() < 0.5:
            batch = batch[:, :, ::-1]
        mean, std = np.array(MEAN, np.float32) * 255, np.array(STD, np.float32) * 255
        pixels = torch.from_numpy((batch.astype(np.float32) - mean) / std).to(device)
        patches = (
            pixels.reshape(-1, grid, 4, grid, 4, 3)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(len(batch), grid * grid, 48)
        )
        order = torch.from_numpy(rng.random((len(batch), grid * grid)).argsort(1)).to(device)
        visible, hidden = order[:, :_VISIBLE], order[:, _VISIBLE:]

        def pick(tokens: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
            return tokens.gather(1, where[..., None].expand(-1, -1, tokens.shape[-1]))

        embedded = vit.patch_embed(pixels.permute(0, 3, 1, 2)) + vit.pos_embed[:, 1:]
        start = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(batch), -1, -1)
        encoded = vit.norm(vit.blocks(torch.cat([start, pick(embedded, visible)], 1)))[:, 1:]
        tokens = torch.cat([parts["narrow"](encoded), parts.hole.expand(len(batch), hidden.shape[1], -1)], 1)
        tokens = tokens + parts.place[torch.cat([visible, hidden], 1)]
        guess = parts["out"](parts["decoder"](tokens))[:, _VISIBLE:]
        target = pick(patches, hidden)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 0.02).sqrt()
        return (guess - target).square().mean()

    fit("encoder", parts, loss_of, plan, work, progress, stop)
    standardise(vit, images[:2048], device)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().half().contiguous().cpu() for k, v in vit.state_dict().items()}
    write_bytes(folder / "model.safetensors", safetensors.torch.save(state, {"format": "pt"}))
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": width,
        "global_pool": "token",
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {
            "tag": "partworld",
            "custom_load": False,
            "input_size": [3, 64, 64],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": MEAN,
            "std": STD,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    write_bytes(folder / "config.json", json.dumps(config, indent=2).encode())
