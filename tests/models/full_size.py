"""Folders of full-size models with cheap random weights, in the layout and with the names of the released ones.

The models are built on the meta device and their state dict is written straight to safetensors, filled with one
repeated block of noise: drawing 860 million numbers would take most of a test's time.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from glass_fast.models.loading import ensure_torchvision

UNET_PARAMETERS = {"sd15": 859_520_964, "sd21": 865_910_724}
TEXT_PARAMETERS = {"sd15": 123_060_480, "sd21": 340_387_840}
VAE_PARAMETERS = 83_653_863
_BLOCK = 1_000_003  # prime, so rows of a matrix do not repeat


def noise_block() -> torch.Tensor:
    """The standard normal numbers that fill every matrix; entry i of a matrix is number i mod length, scaled."""
    return torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0))


def filled(
    module: torch.nn.Module, dtype: torch.dtype, rename: Callable[[str], str] = str
) -> dict[str, torch.Tensor]:
    """State dict of a meta module: matrices N(0, 1 / fan-in), norms one, biases zero.

    Args:
        module: lies on the meta device.
        dtype: dtype of the tensors.
        rename: maps a parameter's name to the name on disk.
    """
    scaled: dict[int, torch.Tensor] = {}
    tensors = {}
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            value = torch.full(parameter.shape, float(name.endswith("weight")), dtype=dtype)
        else:
            fan_in = max(parameter[0].numel(), 1)
            if fan_in not in scaled:
                scaled[fan_in] = (noise_block() / math.sqrt(fan_in)).to(dtype)
            value = torch.empty(parameter.shape, dtype=dtype)
            flat = value.view(-1)
            for start in range(0, flat.numel(), _BLOCK):
                part = flat[start : start + _BLOCK]
                part.copy_(scaled[fan_in][: part.numel()])
        tensors[rename(name)] = value
    return tensors


def free_gb(folder: Path) -> float:
    """Free disk space where ``folder`` lies, in GB."""
    return shutil.disk_usage(folder).free / 1e9


def letter_tokenizer(max_length: int = 77) -> Any:
    """CLIP's tokenizer class with single letters as vocabulary; the real vocabulary is not ours to ship."""
    ensure_torchvision()
    from transformers import CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789,.;-"]
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=max_length
    )


def unet_config(kind: str) -> dict[str, Any]:
    """The released UNet configurations: SD 1.5 (8 heads, 1x1 convolutions) and 2.1 (64-wide heads, linear)."""
    shape: dict[str, Any] = (
        {"attention_head_dim": 8, "cross_attention_dim": 768}
        if kind == "sd15"
        else {
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        }
    )
    return {
        "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, **shape,
    }  # fmt: skip


def _text_config(kind: str) -> Any:
    from transformers import CLIPTextConfig

    shape: dict[str, Any] = (
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        if kind == "sd15"
        else {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
        }
    )
    return CLIPTextConfig(
        vocab_size=49408, max_position_embeddings=77, projection_dim=768 if kind == "sd15" else 512,
        hidden_act="quick_gelu" if kind == "sd15" else "gelu", bos_token_id=0, eos_token_id=2, pad_token_id=1, **shape,
    )  # fmt: skip


def _write(folder: Path, config: dict[str, Any], stem: str, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def build_sd_folder(path: Path, kind: str, dtype: torch.dtype = torch.float16) -> Path:
    """A Stable Diffusion folder in diffusers layout, true widths, without ``model_index.json``.

    Args:
        path: folder to create; about 2.2 GB (sd15) or 2.6 GB (sd21) in half precision.
        kind: ``sd15`` or ``sd21`` (2-1-base: 512 px, epsilon).
        dtype: dtype on disk.
    """
    ensure_torchvision()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    config, text = unet_config(kind), _text_config(kind)
    vae_config = {
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2, "sample_size": 512,
        "block_out_channels": [128, 256, 512, 512], "scaling_factor": 0.18215,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    }  # fmt: skip
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**config), AutoencoderKL(**vae_config)
        encoder = CLIPTextModel(text)
    path.mkdir(parents=True, exist_ok=True)
    weights = "diffusion_pytorch_model"
    _write(path / "unet", {"_class_name": "UNet2DConditionModel", **config}, weights, filled(unet, dtype))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def vae_name(name: str) -> str:
        """The released SD VAEs still carry the attention names of the first diffusers versions."""
        for new, before in old.items():
            if "attentions" in name:
                name = name.replace(new, before)
        return name

    _write(
        path / "vae", {"_class_name": "AutoencoderKL", **vae_config}, weights, filled(vae, dtype, vae_name)
    )
    # released text encoders: prefixed names and a stored index buffer
    tensors = filled(
        encoder, dtype, lambda name: name if name.startswith("text_model.") else f"text_model.{name}"
    )
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    _write(path / "text_encoder", {"architectures": ["CLIPTextModel"], **text.to_dict()}, "model", tensors)
    letter_tokenizer().save_pretrained(path / "tokenizer")
    (path / "scheduler").mkdir()
    scheduler = {
        "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
        "prediction_type": "epsilon",
    }  # fmt: skip
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return path


def build_dinov2_folder(path: Path) -> Path:
    """DINOv2 ViT-B/14 (518 px) as a timm folder with random weights, 346 MB."""
    ensure_torchvision()
    import timm

    with torch.device("meta"):
        model = timm.create_model("vit_base_patch14_dinov2", pretrained=False, num_classes=0)
    config = {
        "architecture": "vit_base_patch14_dinov2", "num_classes": 0, "num_features": 768,
        "pretrained_cfg": {
            "input_size": [3, 518, 518], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
            "interpolation": "bicubic", "first_conv": "patch_embed.proj", "classifier": "head", "num_classes": 0,
        },
    }  # fmt: skip
    _write(path, config, "model", filled(model, torch.float32))
    return path


def blip2_config(layers: int | None = None) -> Any:
    """BLIP-2 with OPT 2.7B (Salesforce/blip2-opt-2.7b); ``layers`` shortens every tower."""
    ensure_torchvision()
    from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig, OPTConfig

    def depth(full: int) -> int:
        return full if layers is None else layers

    return Blip2Config(
        vision_config=Blip2VisionConfig(num_hidden_layers=depth(39)).to_dict(),
        qformer_config=Blip2QFormerConfig(num_hidden_layers=depth(12)).to_dict(),
        text_config=OPTConfig(
            vocab_size=50272, hidden_size=2560, ffn_dim=10240, num_hidden_layers=depth(32), num_attention_heads=32,
            word_embed_proj_dim=2560, max_position_embeddings=2048,
        ).to_dict(),
        image_token_index=50265,
    )  # fmt: skip


def build_blip2_folder(path: Path, layers: int = 2) -> Path:
    """BLIP-2 of true widths with ``layers`` layers a tower, half precision, with its processor files."""
    ensure_torchvision()
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Blip2ForConditionalGeneration, Blip2Processor, PreTrainedTokenizerFast
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    config = blip2_config(layers)
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    tensors = filled(model, torch.float16)
    tensors.setdefault(
        "language_model.lm_head.weight", tensors["language_model.model.decoder.embed_tokens.weight"].clone()
    )
    _write(path, {"architectures": ["Blip2ForConditionalGeneration"], **config.to_dict()}, "model", tensors)
    words = (
        {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
        | {f"w{i}": i for i in range(4, 50265)}
        | {"<image>": 50265}
    )
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    processor = Blip2Processor(
        BlipImageProcessorPil(size={"height": 224, "width": 224}), tokenizer, num_query_tokens=32
    )
    processor.save_pretrained(path)
    return path
