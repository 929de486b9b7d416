"""A small frozen encoder and small shards of coloured squares with known masks, written by the real writers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from glass_fast.config.schema import TrainingConfig
from glass_fast.data.manifest import write_manifest
from glass_fast.data.plan import ShardPlan
from glass_fast.data.shards import Sample, ShardDataset, open_shards, write_shard
from glass_fast.models.loading import ensure_torchvision

LABELS = ("car", "boat", "cup")
SIDE, GRID = 32, 8
COLOURS = np.array([[40, 60, 50], [220, 40, 30], [30, 60, 230], [240, 220, 60]], np.uint8)


def write_encoder(folder: Path, seed: int = 0) -> Path:
    """A timm ViT of 32 pixels, patch 4, width 24, random weights."""
    ensure_torchvision()
    import timm
    from safetensors.torch import save_file

    size = {"img_size": SIDE, "patch_size": SIDE // GRID, "embed_dim": 24, "depth": 1, "num_heads": 2}
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **size)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": size,
        "pretrained_cfg": {
            "input_size": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
            "first_conv": "patch_embed.proj", "classifier": "head", "num_classes": 0,
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def picture(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask with two squares of different classes, aligned to 2 pixels."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for label in rng.choice(np.arange(1, 4), 2, replace=False):
        side = int(rng.integers(4, 8)) * 2
        y, x = (int(v) * 2 for v in rng.integers(0, (SIDE - side) // 2 + 1, 2))
        mask[y : y + side, x : x + side] = label
    noise = rng.integers(-12, 13, (SIDE, SIDE, 3))
    return np.clip(COLOURS[mask].astype(int) + noise, 0, 255).astype(np.uint8), mask


def sample(index: int, rng: np.random.Generator, flags: tuple[str, ...] = ()) -> Sample:
    image, mask = picture(rng)
    present = [k for k in range(1, 4) if (mask == k).any()]
    maps = np.stack([(mask == k).astype(np.uint8) * 255 for k in present])
    maps = maps.reshape(len(present), 16, 2, 16, 2).astype(np.float64).mean((2, 4)).round().astype(np.uint8)
    mask = mask.copy()
    mask[:8, :4] = 255
    meta = {
        "prompt": "p", "caption": "p", "class_prompt": "p", "classes": [LABELS[k - 1] for k in present],
        "label_ids": present, "dropped": [], "seed": index, "flags": list(flags), "scores": {},
    }  # fmt: skip
    return Sample(f"s{index:04d}", image, mask, maps, meta)


def write_shards(
    folder: Path, count: int = 24, rejected: tuple[int, ...] = (3,), seed: int = 5
) -> ShardDataset:
    plan = ShardPlan(count, 10, 4)
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(
        folder, kind="shards", config={"seed": seed}, plan=plan.as_dict(), labels=LABELS, generator={}
    )
    rng = np.random.default_rng(seed)
    samples = [sample(i, rng, ("empty",) if i in rejected else ()) for i in range(count)]
    for spec in plan.shards:
        write_shard(folder, spec, samples[spec.start : spec.stop])
    return open_shards(folder)


def tiny_config(**changes: object) -> TrainingConfig:
    values: dict[str, object] = {
        "loss": "glass", "steps": 12, "batch_size": 5, "learning_rate": 2e-3, "num_slots": 4, "num_iterations": 2,
        "slot_size": 16, "slot_mlp_size": 16, "out_size": 8, "decoder_hidden": 16, "decoder_layers": 2,
        "bce_reduction": "balanced", "checkpoint_every": 4, "log_every": 5,
    }  # fmt: skip
    return TrainingConfig(**(values | changes))  # type: ignore[arg-type]
