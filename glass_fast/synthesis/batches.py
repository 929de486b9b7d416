"""Micro-batches of constant shape: padding, out-of-memory back-off, and the retry of non-finite samples.

Every network call of a job sees the same number of rows (the last micro-batch is padded with copies of its last
row), because a matrix product may round a row differently in batches of different size. So a sample's bytes depend
on its seed and text, never on its neighbours.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from glass_fast.config.schema import SynthesisConfig
from glass_fast.errors import ConfigError, NumericsError
from glass_fast.models.denoising import decode, denoise, initial_noise
from glass_fast.models.schedulers import build_scheduler, identity, set_steps
from glass_fast.synthesis.capture import AttentionCapture
from glass_fast.synthesis.masks import class_maps, soft_maps
from glass_fast.synthesis.networks import in_float32, latent_size, use_attention
from glass_fast.synthesis.text import TextRow, check_negative, class_columns, encode_text, text_length

if TYPE_CHECKING:
    from glass_fast.models.loading import Generator

GROW_AFTER = 200
"""Good micro-batches after which a reduced number of rows is doubled again."""


@dataclass(frozen=True)
class Request:
    """One sample to make."""

    seed: int
    text: TextRow


@dataclass(frozen=True)
class Made:
    """One sample as it leaves the networks.

    Attributes:
        image: (H, W, 3) uint8; zeros when not finite.
        maps: (K, h, w) uint8 soft maps of the sample's K classes, refined where that is asked for; zeros when not
            finite.
        peaks: K raw peaks.
        finite: False when latents, maps or image were not finite.
        retried: True when the sample was made again in float32.
    """

    image: NDArray[np.uint8]
    maps: NDArray[np.uint8]
    peaks: tuple[float, ...]
    finite: bool
    retried: bool = False


class BatchRunner:
    """Makes micro-batches with one generator and one configuration.

    Args:
        generator: networks, tokenizer and scheduler configuration.
        config: synthesis options.
        classes: largest number of classes of any sample of the job; all batches are padded to it.
        note: called with a dictionary for events that belong into the run log (back-off, retry).

    Raises:
        ConfigError: unknown scheduler, size, layer or timestep range; GF-SYN-007, refined maps below the captured size.
    """

    def __init__(
        self,
        generator: Generator,
        config: SynthesisConfig,
        classes: int,
        note: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> None:
        self.generator, self.config, self.classes, self.note = generator, config, classes, note
        self.length = text_length(generator.tokenizer, generator.text_encoder)
        self.guided = config.guidance_scale not in (0.0, 1.0)
        if self.guided:
            check_negative(generator.tokenizer, config.negative_prompt, self.length)
        self.size = latent_size(generator, config.height, config.width)
        use_attention(generator.unet, config.attention)
        self.capture = AttentionCapture(
            generator.unet, self.size, config.capture, want_self=config.masks.tau > 0
        )
        self._check_refinement()
        scheduler = build_scheduler(config.scheduler, generator.scheduler_config)
        timesteps = set_steps(scheduler, config.steps, "cpu")
        self.scheduler = identity(scheduler)
        self.captured_steps = sum(self.capture.wants(float(t)) for t in timesteps)
        self.capture.require_steps([float(t) for t in timesteps])
        self.rows = config.batch_size
        self._good = 0

    def _check_refinement(self) -> None:
        """Refined maps finer than tokens are the point; coarser ones would lose what attention has."""
        masks, tokens = self.config.masks, self.capture.choice.self_size
        if masks.refine != "none" and masks.refine_size < max(tokens):
            raise ConfigError(
                "GF-SYN-007",
                f"synthesis.masks.refine_size={masks.refine_size} is below the {max(tokens)} tokens of the captured "
                "maps",
                f"use {max(tokens)} or more, or synthesis.masks.refine=none",
            )

    def run(self, requests: Sequence[Request]) -> list[Made]:
        """Make one planned micro-batch; samples that are not finite are made once more in float32.

        Raises:
            NumericsError: GF-NUM-020, out of memory even with one row.
        """
        made = self._all(requests)
        broken = [index for index, sample in enumerate(made) if not sample.finite]
        if broken and self.generator.unet.dtype != torch.float32:
            self.note({"event": "retry_float32", "rows": broken})
            with in_float32(self.generator):
                again = self._all([requests[index] for index in broken])
            for index, sample in zip(broken, again, strict=True):
                made[index] = Made(sample.image, sample.maps, sample.peaks, sample.finite, retried=True)
        return made

    def _all(self, requests: Sequence[Request]) -> list[Made]:
        made: list[Made] = []
        while len(made) < len(requests):
            chunk = requests[len(made) : len(made) + self.rows]
            try:
                result = self._padded(chunk)
            except torch.OutOfMemoryError as error:
                result, reason = None, str(error).splitlines()[0]
            if result is None:
                self._back_off(reason)  # outside the except block: the traceback keeps the tensors alive
                continue
            made += result
        self._good += 1
        if self.rows < self.config.batch_size and self._good >= GROW_AFTER:
            self.rows, self._good = min(2 * self.rows, self.config.batch_size), 0
            self.note({"event": "grow", "rows": self.rows})
        return made

    def _back_off(self, reason: str) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._good = 0
        if self.rows == 1:
            raise NumericsError(
                "GF-NUM-020",
                f"out of memory with a micro-batch of one row: {reason}",
                "set synthesis.dtype=float16, a smaller synthesis.height and width, or a smaller "
                "synthesis.capture.self_size",
            )
        self.rows = (self.rows + 1) // 2
        self.note({"event": "out_of_memory", "rows": self.rows, "reason": reason})

    @torch.inference_mode()
    def _padded(self, requests: Sequence[Request]) -> list[Made]:
        """One call with exactly ``self.rows`` rows."""
        config, parts = self.config, self.generator
        padded = [*requests, *[requests[-1]] * (self.rows - len(requests))]
        device = next(parts.unet.parameters()).device
        encode = lambda texts: encode_text(parts.tokenizer, parts.text_encoder, texts, self.length)  # noqa: E731
        context = encode([request.text.prompt for request in padded])
        probe = None
        if config.capture.probe == "class_prompt":
            probe = encode([request.text.probe for request in padded]).to(parts.unet.dtype)
        negative = encode([config.negative_prompt]) if self.guided else None
        columns = class_columns([request.text.spans for request in padded], self.length, self.classes).to(
            device
        )
        scheduler = build_scheduler(config.scheduler, parts.scheduler_config)
        set_steps(scheduler, config.steps, device)
        generators = [torch.Generator().manual_seed(request.seed) for request in padded]
        noise = initial_noise(generators, parts.unet.config.in_channels, self.size)
        first = self.rows if self.guided else 0
        with self.capture.attached():
            self.capture.begin(slice(first, first + self.rows), columns, probe)
            latents = denoise(
                parts.unet,
                scheduler,
                noise,
                context,
                negative,
                generators,
                capture=self.capture,
                guidance_scale=config.guidance_scale,
                guidance_rescale=config.guidance_rescale,
            )
            maps = self.capture.finish()
        finite = latents.flatten(1).isfinite().all(dim=1) & maps.cross.flatten(1).isfinite().all(dim=1)
        if maps.self_ is not None:
            finite &= maps.self_.flatten(1).isfinite().all(dim=1)
        raw = class_maps(maps, config.masks.tau)
        del maps  # the self maps go before the VAE needs memory
        images, decoded = decode(parts.vae, latents)
        soft, peaks = soft_maps(raw, config.masks, images)
        good = (finite.cpu() & decoded).tolist()
        return [
            _made(
                images[row].numpy(),
                soft_row.numpy(),
                peak_row.tolist(),
                len(requests[row].text.spans),
                good[row],
            )
            for row, (soft_row, peak_row) in enumerate(zip(soft.cpu(), peaks.cpu(), strict=True))
            if row < len(requests)
        ]


def _made(
    image: NDArray[np.uint8], maps: NDArray[np.uint8], peaks: list[float], classes: int, finite: bool
) -> Made:
    if not finite:
        return Made(np.zeros_like(image), np.zeros_like(maps[:classes]), (0.0,) * classes, False)
    return Made(image.copy(), maps[:classes].copy(), tuple(peaks[:classes]), True)
