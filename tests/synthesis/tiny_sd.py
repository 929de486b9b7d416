"""Random Stable Diffusion models of any width, built from configurations; shared by tests and the kill worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from glass_fast.data.prompts import Prompt
from glass_fast.models.loading import Generator, ModelSource, ensure_torchvision

WORDS = (
    "a",
    "photo",
    "of",
    "and",
    "the",
    "car",
    "boat",
    "cup",
    "tree",
    "house",
    "potted",
    "plant",
    "aero",
    "ugly",
)
SD_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "prediction_type": "epsilon",
}


def tokenizer(max_length: int = 16) -> Any:
    """CLIP's tokenizer class over letters plus one token for each of WORDS ("aeroplane" = aero + 5 letters)."""
    ensure_torchvision()
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789;,.-")
    tokens = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + ("" if word == "aero" else "</w>")]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
            pieces = ["".join(pair), *pieces[2:]]
    names = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={name: index for index, name in enumerate(names)}, merges=merges, model_max_length=max_length
    )


def unet_config(
    shape: str, widths: tuple[int, ...], cross_dim: int, size: int, groups: int = 32
) -> dict[str, Any]:
    """Layout of the SD 1.5 (``sd15``: 8 heads, 1x1 convolutions) or SD 2.1 UNet (``sd21``: growing heads, linear)."""
    attentions = len(widths) - 1
    heads: Any = 8 if shape == "sd15" else tuple(max(1, 5 * w // widths[0]) for w in widths)
    return {
        "sample_size": size,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": widths,
        "cross_attention_dim": cross_dim,
        "norm_num_groups": groups,
        "down_block_types": ("CrossAttnDownBlock2D",) * attentions + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attentions,
        "attention_head_dim": heads,
        "use_linear_projection": shape == "sd21",
        "upcast_attention": shape == "sd21",
    }


def generator(
    unet: dict[str, Any] | None = None,
    *,
    max_length: int = 16,
    scheduler: dict[str, Any] | None = None,
    seed: int = 0,
    vae_widths: tuple[int, ...] = (8, 8),
) -> Generator:
    """A random generator; the default is as small as diffusers allows (16x16 latents, attention at 16 and 8)."""
    ensure_torchvision()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    default = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "cross_attention_dim": 16,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    config = {**default, **(unet or {})}
    tokens = tokenizer(max_length)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=config["cross_attention_dim"],
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=max_length,
                bos_token_id=tokens.bos_token_id,
                eos_token_id=tokens.eos_token_id,
                pad_token_id=tokens.pad_token_id,
            )
        )
        network = UNet2DConditionModel(**config)
        for (
            module
        ) in network.modules():  # random attention is flat; sharper keys make the maps tell something
            if hasattr(module, "to_k") and module.to_k is not None:
                module.to_k.weight.data.mul_(8.0)
        vae = AutoencoderKL(
            block_out_channels=vae_widths,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=32,
            down_block_types=("DownEncoderBlock2D",) * len(vae_widths),
            up_block_types=("UpDecoderBlock2D",) * len(vae_widths),
        )
        vae.decoder.conv_out.weight.data.mul_(4.0)
    for part in (text, network, vae):
        part.requires_grad_(False).eval()
    source = ModelSource("tiny", Path("tiny"))
    return Generator(tokens, text, network, vae, dict(scheduler or SD_SCHEDULER), source, "c" * 64)


LABELS = ("car", "boat", "aeroplane", "potted plant", "cup", "tree", "house")


def prompts() -> list[Prompt]:
    """Four prompts with one, two and no classes, among them a split name and a two-word name."""
    rows = [
        ("a car and a boat", ("car", "boat")),
        ("a photo of a tree", ("tree",)),
        ("the house", ()),
        ("an", ("potted plant", "cup")),
    ]
    return [
        Prompt(
            f"p{index}",
            caption,
            classes,
            "; ".join(part for part in (caption, " ".join(classes)) if part),
            " ".join(classes),
            100 + index,
            "list",
            "",
        )
        for index, (caption, classes) in enumerate(rows)
    ]
