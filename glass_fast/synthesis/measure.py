"""Maps of given pictures: noise them, run the UNet once per timestep with the true caption, and read the attention.

Measures what captured masks are worth on scenes whose masks are known (there is no truth for generated images).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glass_fast.config.schema import CaptureConfig
from glass_fast.data.prompts import Prompt
from glass_fast.errors import ConfigError
from glass_fast.models.denoising import encode
from glass_fast.synthesis.capture import AttentionCapture, AttentionMaps
from glass_fast.synthesis.text import class_columns, encode_text, text_length, text_row

if TYPE_CHECKING:
    from glass_fast.models.loading import Generator


@torch.inference_mode()
def capture_maps(
    generator: Generator,
    images: NDArray[np.uint8] | Tensor | None = None,
    *,
    prompts: Sequence[str],
    class_prompts: Sequence[str],
    classes: Sequence[Sequence[str]],
    timesteps: Sequence[int],
    latents: Tensor | None = None,
    config: CaptureConfig | None = None,
    seeds: Sequence[int] | None = None,
    want_self: bool = True,
) -> AttentionMaps:
    """Mean attention maps of pictures noised to the given timesteps (no guidance, one UNet call a timestep).

    Args:
        generator: networks, tokenizer and scheduler configuration (its noise schedule is used).
        images: (B, H, W, 3) uint8; or give ``latents``.
        prompts: B true captions in prompt form.
        class_prompts: B class prompts.
        classes: class names of each picture in the order of its class prompt.
        timesteps: training timesteps; the configuration's range does not apply.
        latents: (B, C, h, w) scaled clean latents.
        config: sizes, layers and probe; default: :class:`~glass_fast.config.schema.CaptureConfig`.
        seeds: seed of each picture's noise; default 0, 1, ...
        want_self: False skips the self maps.

    Returns:
        Maps; ``cross`` has as many classes as the picture with most, the others are padded with zeros.

    Raises:
        ConfigError: GF-SYN-006, nothing to run on; GF-SYN-002, missing size or layer.
        DataError: a class is cut off or not in its prompt.
    """
    config = config or CaptureConfig()
    if (images is None) == (latents is None) or not len(timesteps):
        raise ConfigError(
            "GF-SYN-006",
            f"capture_maps got images={images is not None}, latents={latents is not None} and "
            f"{len(timesteps)} timesteps; expected exactly one of images and latents, and at least one timestep",
        )
    if latents is None:
        latents = encode(generator.vae, torch.as_tensor(images))
    unet = generator.unet
    device = next(unet.parameters()).device
    latents = latents.to(device, torch.float32)
    config = config.model_copy(update={"timestep_min": 0, "timestep_max": max(timesteps) + 1})
    capture = AttentionCapture(unet, (latents.shape[2], latents.shape[3]), config, want_self)
    length = text_length(generator.tokenizer, generator.text_encoder)
    rows = [
        text_row(
            generator.tokenizer,
            length,
            Prompt(f"picture-{i}", "", tuple(names), prompt, probe, 0, "", ""),
            config.probe,
        )
        for i, (prompt, probe, names) in enumerate(zip(prompts, class_prompts, classes, strict=True))
    ]
    columns = class_columns([row.spans for row in rows], length, max(len(row.spans) for row in rows)).to(
        device
    )

    def encoded(texts: list[str]) -> Tensor:
        return encode_text(generator.tokenizer, generator.text_encoder, texts, length).to(unet.dtype)

    context = encoded([row.prompt for row in rows])
    probe_states = encoded([row.probe for row in rows]) if config.probe == "class_prompt" else None
    draws = [
        torch.Generator().manual_seed(seed) for seed in (seeds if seeds is not None else range(len(rows)))
    ]
    alphas = _alphas_cumprod(generator.scheduler_config)
    with capture.attached():
        capture.begin(slice(0, len(rows)), columns, probe_states)
        for timestep in timesteps:
            noise = torch.cat([torch.randn(1, *latents.shape[1:], generator=draw) for draw in draws]).to(
                device
            )
            kept = float(alphas[timestep])
            noised = kept**0.5 * latents + (1.0 - kept) ** 0.5 * noise
            capture.step(float(timestep))
            unet(noised.to(unet.dtype), timestep, encoder_hidden_states=context, return_dict=False)
        return capture.finish()


def _alphas_cumprod(scheduler_config: dict[str, object]) -> Tensor:
    """Cumulative signal shares of the training schedule, by the library's own training scheduler."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(dict(scheduler_config)).alphas_cumprod
