"""The phase-1 trainer: slot attention and MLP decoder on cached features; resumable bit for bit.

Order of images, flips, slot noise and reconstructed patches are pure functions of the seed and the step, and
initial weights of the seed, so the losses ``unguided``, ``semantic`` and ``glass`` see the very same batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glass_fast.config.schema import TrainingConfig
from glass_fast.data import atomic
from glass_fast.data.shards import ShardDataset
from glass_fast.errors import ConfigError
from glass_fast.models.encoder import Encoder
from glass_fast.models.glass import Glass
from glass_fast.models.loading import resolve_device
from glass_fast.models.mlp_decoder import MLPDecoder, MLPDecoderConfig
from glass_fast.models.slot_attention import SlotAttention, SlotAttentionConfig
from glass_fast.progress import Progress, StopToken
from glass_fast.training.data import (
    DEFAULT_REJECT,
    Chosen,
    GroundTruthData,
    TrainingData,
    check_source,
    choose,
    prepare,
)
from glass_fast.training.loop import FREE_OPTIONS, Run, compare_fingerprints
from glass_fast.training.losses import instance_loss, semantic_loss
from glass_fast.training.schedule import guidance_weight


def train(
    config: TrainingConfig,
    data: ShardDataset | GroundTruthData,
    encoder: Encoder,
    out: Path,
    seed: int = 0,
    device: str | torch.device = "auto",
    stop: StopToken | None = None,
    progress: Progress | None = None,
    *,
    prepared: TrainingData | None = None,
    reject: Sequence[str] = DEFAULT_REJECT,
) -> Path:
    """Train a Glass model into ``out``; run again to continue, or to get a finished model back at once.

    Args:
        config: options; ``loss`` chooses unguided (feature reconstruction), semantic (BCE) or glass (both).
        data: shards (``mask_source="captured"``) or :class:`GroundTruthData` (upper bound only).
        encoder: frozen encoder.
        out: folder that becomes the model folder; also holds ``log.jsonl``, ``tensorboard/``,
            ``checkpoints/``.
        seed: fixes initial weights, order, flips and noise.
        device: ``auto``, ``cpu``, ``cuda`` or a torch device.
        stop: a stop request saves a checkpoint and raises :class:`Stopped`.
        progress: shows steps, rate, time left and losses.
        prepared: result of :func:`glass_fast.training.data.prepare` to share between runs on the same data.
        reject: samples with one of these flags are left out.

    Returns:
        ``out``.

    Raises:
        ConfigError: data and ``mask_source`` do not go together, or ``out`` holds a run of another
            configuration.
        DataError: nothing to train on, or damaged samples.
        NumericsError: loss or gradient became non-finite; the offending step is saved.
        Stopped: on request, with everything saved.
    """
    check_source(config, data)
    if config.resolution is not None and config.resolution != encoder.resolution:
        raise ConfigError(
            "GF-TRAIN-006",
            f"training.resolution={config.resolution}, but the encoder was loaded at {encoder.resolution}",
            "load the encoder with resolution=training.resolution",
        )
    out = Path(out)
    progress = progress or Progress()
    # what identifies the run is known before the pictures are encoded, so a finished one comes back at once
    fingerprint = _fingerprint(config, choose(config, data, reject), encoder, seed)
    if _finished(out, fingerprint):
        return out
    prepared = prepared or prepare(config, data, encoder, out / "cache", reject, progress, stop)
    atomic.make_directory(out)
    run = _Run(config, prepared, encoder, out, seed, resolve_device(device), fingerprint)
    return run.to_the_end(stop or StopToken(), progress)


def _fingerprint(config: TrainingConfig, chosen: Chosen, encoder: Encoder, seed: int) -> dict[str, Any]:
    options = {k: v for k, v in config.model_dump(mode="json").items() if k not in FREE_OPTIONS}
    return {
        **{f"training.{name}": value for name, value in options.items()},
        "seed": seed,
        "data": chosen.digest,
        "rows": chosen.rows_hash,
        "encoder": encoder.checksum,
        "resolution": encoder.resolution,
    }


def _finished(out: Path, fingerprint: dict[str, Any]) -> bool:
    """Whether ``out`` holds the finished model of this very run (``config.json`` is written last)."""
    if not all((out / name).is_file() for name in ("config.json", "run.json", "model.safetensors")):
        return False
    compare_fingerprints(
        atomic.read_json(out / "run.json", "run record").get("fingerprint"), fingerprint, out
    )
    return True


class _Run(Run):
    """One phase-1 run: slot attention and, unless the loss is ``semantic``, the MLP decoder."""

    section = "training"
    scalars = ("loss", "instance", "semantic", "grad_norm")

    def __init__(
        self,
        config: TrainingConfig,
        data: TrainingData,
        encoder: Encoder,
        out: Path,
        seed: int,
        device: torch.device,
        fingerprint: dict[str, Any],
    ) -> None:
        super().__init__(config, len(data), out, seed, device, fingerprint)
        self.title = f"loss {config.loss!r}"
        self.config, self.data, self.encoder = config, data, encoder
        self.slot_attention, self.decoder = self._build()
        modules: dict[str, torch.nn.Module] = {"slot_attention": self.slot_attention}
        if self.decoder is not None:
            modules["decoder"] = self.decoder
        named = {
            f"{part}.{name}": parameter
            for part, m in modules.items()
            for name, parameter in m.named_parameters()
        }
        self.optimize((named, 1.0))

    def _build(self) -> tuple[SlotAttention, MLPDecoder | None]:
        config, rows = self.config, self.data.grid[0]
        slot_attention = SlotAttention(
            SlotAttentionConfig(
                num_iterations=config.num_iterations,
                num_slots=config.num_slots,
                input_size=self.encoder.dim,
                out_size=config.out_size,
                slot_size=config.slot_size,
                mlp_hidden_size=config.slot_mlp_size,
                input_resolution=rows,
            )
        )
        slot_attention.reset_parameters(self.generator("weights", "slot_attention"))
        if config.loss == "semantic":
            return slot_attention.to(self.device), None
        decoder = MLPDecoder(
            MLPDecoderConfig(
                slot_size=config.slot_size,
                feature_size=self.encoder.dim,
                num_patches=math.prod(self.data.grid),
                hidden_size=config.decoder_hidden,
                hidden_layers=config.decoder_layers,
            )
        )
        decoder.reset_parameters(self.generator("weights", "decoder"))
        return slot_attention.to(self.device), decoder.to(self.device)

    def gradients(self, step: int) -> tuple[dict[str, float], torch.Tensor]:
        losses, rows = self._losses(step)
        losses["loss"].backward()
        return {name: float(value.detach()) for name, value in losses.items()}, rows

    def shown(self, step: int) -> dict[str, float]:
        return {"guidance": guidance_weight(self.config, step)}

    def _losses(self, step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Loss terms of one step and its image indices."""
        config = self.config
        rows = self.rows(step)
        generator = self.generator(f"step-{step}", "batch")
        flips = torch.rand(len(rows), generator=generator) < 0.5
        if not config.flip:
            flips = torch.zeros_like(flips)
        noise = self.slot_attention.draw_noise(len(rows), generator=generator)
        patches = self._patches(generator)
        features, segments, counts, valid = self.data.batch(rows, flips, self.device)
        slots, _, masks = self.slot_attention(features, noise, grid=self.data.grid)
        zero = masks.new_zeros(())
        instance, semantic = zero, zero
        if self.decoder is not None:
            reconstruction, _ = self.decoder(slots, patches=patches)
            instance = instance_loss(reconstruction, features if patches is None else features[:, patches])
        weight = guidance_weight(config, step)
        if weight > 0:
            semantic, _ = semantic_loss(
                masks, segments, counts, valid, config.bce_reduction, config.matching_cost
            )
        loss = config.lambda_instance * instance + weight * config.lambda_semantic * semantic
        return {"loss": loss, "instance": instance, "semantic": semantic}, rows

    def _patches(self, generator: torch.Generator) -> torch.Tensor | None:
        total = math.prod(self.data.grid)
        count = max(1, round(self.config.reconstruction_share * total))
        drawn = torch.randperm(total, generator=generator)  # drawn always: the share moves no other number
        return None if count == total else drawn[:count].sort().values.to(self.device)

    def publish(self) -> Path:
        record = self.record() | {
            "data": self.data.record,
            "encoder": {
                "ref": self.encoder.source.ref if self.encoder.source else "",
                "checksum": self.encoder.checksum,
                "resolution": self.encoder.resolution,
            },
        }
        model = Glass(self.encoder, self.slot_attention, self.decoder, self.data.names, record)
        return model.eval().save_pretrained(self.out)
