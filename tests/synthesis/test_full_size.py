"""One captured step of the full-size Stable Diffusion 1.5 and 2.1 UNets (true widths, random weights)."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch

from glass_fast.config.schema import CaptureConfig
from glass_fast.models.denoising import denoise, initial_noise
from glass_fast.models.schedulers import build_scheduler, set_steps
from glass_fast.synthesis.capture import AttentionCapture
from glass_fast.synthesis.layers import native_latent_size

WIDTHS = (320, 640, 1280, 1280)
# published sizes of the two UNets
PARAMETERS = {"sd15": 859_520_964, "sd21": 865_910_724}
CROSS = {"sd15": 768, "sd21": 1024}


def build(tiny_sd: ModuleType, shape: str, size: int) -> Any:
    """The UNet on the meta device, then filled with one repeated block of noise (drawing 860 M numbers takes long)."""
    tiny_sd.ensure_torchvision()
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**tiny_sd.unet_config(shape, WIDTHS, CROSS[shape], size))
    unet = unet.to_empty(device="cpu").requires_grad_(False).eval()
    block = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))  # prime: rows do not repeat
    for name, parameter in unet.named_parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        flat, scale = parameter.data.view(-1), 1.0 / math.sqrt(parameter[0].numel())
        for start in range(0, flat.numel(), block.numel()):
            part = flat[start : start + block.numel()]
            torch.mul(block[: part.numel()], scale, out=part)
    return unet


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("sd15", 32),
        ("sd21", 32),
        pytest.param("sd15", 64, marks=pytest.mark.slow),
        pytest.param("sd21", 64, marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_one_captured_step(tiny_sd: ModuleType, shape: str, size: int) -> None:
    """Latents of 32x32 (256 px) in the usual run, of 64x64 (512 px, native) in the full one."""
    unet = build(tiny_sd, shape, size)
    assert sum(parameter.numel() for parameter in unet.parameters()) == PARAMETERS[shape]
    latent = native_latent_size(unet)
    capture = AttentionCapture(unet, latent, CaptureConfig())
    assert len(capture.choice.self_) == len(capture.choice.cross) == 5
    heads = {layer.heads for layer in capture.choice.self_}, {layer.heads for layer in capture.choice.cross}
    assert heads == (({8}, {8}) if shape == "sd15" else ({10}, {20}))
    draw = torch.Generator().manual_seed(1)
    context, probe = (torch.randn(1, 77, CROSS[shape], generator=draw) for _ in range(2))
    columns = torch.zeros(1, 77, 2)
    columns[0, 1, 0] = 1.0
    columns[0, [2, 3], 1] = 0.5
    scheduler = build_scheduler("ddim", {**tiny_sd.SD_SCHEDULER, "prediction_type": "v_prediction"})
    set_steps(scheduler, 1, "cpu")
    generators = [torch.Generator().manual_seed(2)]
    with capture.attached():
        capture.begin(slice(0, 1), columns, probe)
        latents = denoise(
            unet,
            scheduler,
            initial_noise(generators, 4, latent),
            context,
            None,
            generators,
            guidance_scale=1.0,
            capture=capture,
        )
        maps = capture.finish()
    half, quarter = size // 2, size // 4
    assert latents.isfinite().all()
    assert maps.cross.shape == (1, 2, quarter, quarter) and maps.cross.min() > 0
    assert maps.self_ is not None and maps.self_.shape == (1, half * half, half * half)
    torch.testing.assert_close(maps.self_.sum(-1), torch.ones(1, half * half), rtol=0, atol=1e-5)
    # a class column holds about 1/77 of the attention of a random network; it must not be uniform
    assert 0.2 / 77 < float(maps.cross.mean()) < 5 / 77 and float(maps.cross.std()) > 1e-5
