"""The generator's networks for a job: latent size, precision of a retry, attention of the layers not captured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from glass_fast.errors import ConfigError, EnvironmentProblem
from glass_fast.models.denoising import Size, vae_factor
from glass_fast.synthesis.layers import native_latent_size

if TYPE_CHECKING:
    from glass_fast.models.loading import Generator


def latent_size(generator: Generator, height: int | None, width: int | None) -> Size:
    """Rows and columns of the latents for an image size in pixels; None means the UNet's native size.

    Raises:
        ConfigError: GF-SYN-001, no native size; GF-SYN-005, a size that the VAE cannot make.
    """
    factor = vae_factor(generator.vae)
    if height is not None and width is not None:
        native: Size = (1, 1)
    else:
        native = native_latent_size(generator.unet)
    sides = []
    for name, pixels, default in (("height", height, native[0]), ("width", width, native[1])):
        if pixels is not None and pixels % factor:
            raise ConfigError(
                "GF-SYN-005",
                f"synthesis.{name}={pixels}; expected a multiple of {factor}, the VAE's factor",
                f"use {max(1, round(pixels / factor)) * factor}",
            )
        sides.append(default if pixels is None else pixels // factor)
    return sides[0], sides[1]


@contextmanager
def in_float32(generator: Generator) -> Iterator[None]:
    """Networks in float32 for the time of the block (exact: half-precision values are float32 values)."""
    parts = (generator.text_encoder, generator.unet, generator.vae)
    before = [part.dtype for part in parts]
    for part in parts:
        part.float()
    try:
        yield
    finally:
        for part, dtype in zip(parts, before, strict=True):
            part.to(dtype)


def use_attention(unet: Any, kind: str) -> None:
    """Choose the attention of the layers that are not captured: ``sdpa`` (as loaded) or ``xformers``.

    Raises:
        EnvironmentProblem: GF-ENV-030, xformers is not installed or there is no CUDA device.
    """
    if kind != "xformers":
        return
    import importlib.util

    device = next(unet.parameters()).device
    missing = [
        *(["the package xformers"] if importlib.util.find_spec("xformers") is None else []),
        *([f"a CUDA device (the generator is on {device.type})"] if device.type != "cuda" else []),
    ]
    if missing:
        raise EnvironmentProblem(
            "GF-ENV-030",
            f"synthesis.attention=xformers needs {' and '.join(missing)}",
            "pip install 'glass-fast[xformers]' on a CUDA machine, or synthesis.attention=sdpa",
        )
    unet.enable_xformers_memory_efficient_attention()
