"""The phase-2 trainer: the diffusion decoder learns to paint pictures from slots; resumable bit for bit.

Objective: Stable Diffusion's own on latents (method notes 4.1), with slots as the only context. Slot noise is drawn
anew at every step, as in phase 1 and at test time, so that the decoder does not learn one draw by heart.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from glass_fast.config.schema import DecoderConfig
from glass_fast.data import atomic
from glass_fast.data.prompts import sample_seed
from glass_fast.data.shards import ShardDataset
from glass_fast.errors import ConfigError
from glass_fast.models.diffusion_decoder import FOLDER, DiffusionDecoder, module_checksum
from glass_fast.models.folders import atomic_folder
from glass_fast.models.glass import Glass
from glass_fast.models.loading import Generator, resolve_device
from glass_fast.progress import Progress, StopToken
from glass_fast.training.data import DEFAULT_REJECT, Chosen
from glass_fast.training.latents import LatentData, PictureFolder, choose_pictures, prepare_latents
from glass_fast.training.loop import FREE_OPTIONS, Run, compare_fingerprints
from glass_fast.training.losses import instance_loss


def train_decoder(
    config: DecoderConfig,
    data: ShardDataset | PictureFolder,
    model: Glass,
    generator: Generator,
    out: Path,
    seed: int = 0,
    device: str | torch.device = "auto",
    stop: StopToken | None = None,
    progress: Progress | None = None,
    *,
    reject: Sequence[str] = DEFAULT_REJECT,
) -> Path:
    """Train a diffusion decoder for ``model``; run again to continue, or to get a finished one back at once.

    Args:
        config: options.
        data: shards or plain pictures; masks are not used.
        model: phase-1 model; it is not changed, also where slot attention learns (a copy does).
        generator: the Stable Diffusion parts that the decoder starts from; not changed either.
        out: folder that becomes a full model folder (the model with ``decoder/``); also holds ``log.jsonl``,
            ``tensorboard/``, ``checkpoints/``.
        seed: fixes order, timesteps, noise and dropped contexts.
        device: ``auto``, ``cpu``, ``cuda`` or a torch device.
        stop: a stop request saves a checkpoint and raises :class:`Stopped`.
        progress: shows steps, rate, time left and loss.
        reject: shard samples with one of these flags are left out.

    Returns:
        ``out``.

    Raises:
        ConfigError: slots and UNet do not go together, ``keep_phase1`` without an MLP decoder, or ``out`` holds
            another run or model.
        DataError: nothing to train on, or damaged samples.
        NumericsError: loss or gradient became non-finite; the offending step is saved.
        Stopped: on request, with everything saved.
    """
    out, progress = Path(out), progress or Progress()
    if config.keep_phase1 and model.decoder is None:
        raise ConfigError(
            "GF-TRAIN-021",
            "decoder.keep_phase1=true, but the model has no MLP decoder whose loss could be kept",
            "use a model of loss glass or unguided, or keep_phase1=false",
        )
    place = resolve_device(device)
    decoder = DiffusionDecoder.from_generator(
        generator,
        model.slot_attention.config.out_size,
        config.init,
        sample_seed(seed, "weights", "unet"),
        config.resolution,
    )
    chosen = choose_pictures(data, reject)
    fingerprint = _fingerprint(config, chosen, model, decoder, generator, seed)
    if _finished(out, fingerprint):
        return out
    prepared = prepare_latents(config, data, chosen, model.encoder, decoder, out / "cache", progress, stop)
    atomic.make_directory(out)
    run = _Run(config, prepared, model, decoder, out, seed, place, fingerprint, generator.checksum)
    return run.to_the_end(stop or StopToken(), progress)


def _fingerprint(
    config: DecoderConfig,
    chosen: Chosen,
    model: Glass,
    decoder: DiffusionDecoder,
    generator: Generator,
    seed: int,
) -> dict[str, Any]:
    options = config.model_dump(mode="json", exclude={*FREE_OPTIONS, "sampling"})
    return {
        **{f"decoder.{name}": value for name, value in options.items()},
        "seed": seed,
        "data": chosen.digest,
        "rows": chosen.rows_hash,
        "encoder": model.encoder.checksum,
        "slot_attention": module_checksum(model.slot_attention),
        "mlp_decoder": module_checksum(model.decoder) if config.keep_phase1 and model.decoder else None,
        "generator": generator.checksum,
        "vae": decoder.vae.checksum,
    }


def _finished(out: Path, fingerprint: dict[str, Any]) -> bool:
    """Whether ``out`` holds the finished model of this very run (``config.json`` is written last).

    Raises:
        ConfigError: GF-TRAIN-007, the run of another configuration; GF-TRAIN-022, a model that phase 2 did not write.
    """
    if not (out / "config.json").is_file():
        return False
    record = out / FOLDER / "run.json"
    if not record.is_file():
        raise ConfigError(
            "GF-TRAIN-022",
            f"{out} already holds a model without decoder; phase 2 writes a full model folder of its own",
            "choose another --out",
        )
    compare_fingerprints(atomic.read_json(record, "run record").get("fingerprint"), fingerprint, out)
    return True


@dataclass(frozen=True)
class _Draws:
    """Everything random about a step, drawn on the CPU."""

    rows: torch.Tensor
    flips: torch.Tensor
    slots: torch.Tensor
    posterior: torch.Tensor
    timesteps: torch.Tensor
    noise: torch.Tensor
    dropped: torch.Tensor

    def part(self, pieces: slice) -> _Draws:
        return _Draws(**{name: value[pieces] for name, value in vars(self).items()})


class _Run(Run):
    """One phase-2 run: the UNet with its null context and, at a lower rate, slot attention."""

    section = "decoder"
    title = "the diffusion decoder"

    def __init__(
        self,
        config: DecoderConfig,
        data: LatentData,
        model: Glass,
        decoder: DiffusionDecoder,
        out: Path,
        seed: int,
        device: torch.device,
        fingerprint: dict[str, Any],
        generator_checksum: str,
    ) -> None:
        self.scalars = ("loss", "diffusion", *(["instance"] if config.keep_phase1 else []), "grad_norm")
        super().__init__(config, len(data), out, seed, device, fingerprint)
        self.config, self.data, self.model = config, data, model
        self.generator_checksum = generator_checksum
        # eval mode throughout: dropout in a network would draw numbers that do not depend on the step
        self.decoder = decoder.to(device).eval()
        self.decoder.unet.to(memory_format=torch.channels_last)  # convolutions: 8 % of a step on a CPU
        self.learns_slots = config.slots == "low_rate"
        self.slot_attention = copy.deepcopy(model.slot_attention).to(device).requires_grad_(self.learns_slots)
        self.mlp_decoder = (
            copy.deepcopy(model.decoder).to(device) if config.keep_phase1 and model.decoder else None
        )
        slow: dict[str, torch.nn.Parameter] = {}
        for part, module in (("slot_attention", self.slot_attention), ("mlp_decoder", self.mlp_decoder)):
            if self.learns_slots and module is not None:
                module.requires_grad_(True)
                slow |= {f"{part}.{name}": parameter for name, parameter in module.named_parameters()}
        fast = {name: parameter.requires_grad_(True) for name, parameter in self.decoder.named_parameters()}
        self.optimize((fast, 1.0), *([(slow, config.slot_rate)] if slow else []))
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()} if config.ema else {}

    def draw(self, step: int) -> _Draws:
        """The random numbers of a step; each kind has a stream of its own, so an option moves no other number."""
        config, rows = self.config, self.rows(step)
        size, latent = len(rows), self.data.latents.shape[3:]

        def stream(purpose: str) -> torch.Generator:
            return self.generator(f"step-{step}", purpose)

        flips = torch.rand(size, generator=stream("flip")) < 0.5
        steps = len(self.decoder.noise_schedule)
        if config.timesteps == "uniform":
            share = torch.rand(size, generator=stream("timesteps"))
        else:
            spread = torch.randn(size, generator=stream("timesteps"))
            share = torch.sigmoid(config.logit_mean + config.logit_std * spread)
        return _Draws(
            rows=rows,
            flips=flips & config.flip,
            slots=self.slot_attention.draw_noise(size, generator=stream("slots")),
            posterior=torch.randn((size, *latent), generator=stream("posterior")),
            timesteps=(share * steps).long().clamp(0, steps - 1),
            noise=torch.randn((size, *latent), generator=stream("noise")),
            dropped=torch.rand(size, generator=stream("context")) < config.context_dropout,
        )

    def losses(self, drawn: _Draws) -> dict[str, torch.Tensor]:
        """Loss terms of a batch or a piece of one."""
        config, device, schedule = self.config, self.device, self.decoder.noise_schedule
        features, mean, deviation = self.data.batch(drawn.rows, drawn.flips, device)
        with torch.set_grad_enabled(self.learns_slots):
            noise = None if self.slot_attention.config.learnable_slot_init else drawn.slots.to(device)
            raw, projected, _ = self.slot_attention(features, noise, grid=self.model.grid)
        clean = mean + deviation * drawn.posterior.to(device) if config.latents == "sample" else mean
        times, spread = drawn.timesteps.to(device), drawn.noise.to(device)
        noisy, target = schedule.add_noise(clean, spread, times), schedule.target(clean, spread, times)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            prediction = self.decoder(noisy, times, projected, drawn.dropped.to(device))
        diffusion = functional.mse_loss(prediction.float(), target)
        if self.mlp_decoder is None:
            return {"loss": diffusion, "diffusion": diffusion}
        instance = instance_loss(self.mlp_decoder(raw)[0], features)
        return {
            "loss": diffusion + config.lambda_instance * instance,
            "diffusion": diffusion,
            "instance": instance,
        }

    def gradients(self, step: int) -> tuple[dict[str, float], torch.Tensor]:
        drawn = self.draw(step)
        size = len(drawn.rows)
        piece = self.config.micro_batch or size
        values: dict[str, float] = {}
        for start in range(0, size, piece):
            losses = self.losses(drawn.part(slice(start, start + piece)))
            (losses["loss"] * (piece / size)).backward()
            for name, value in losses.items():
                values[name] = values.get(name, 0.0) + float(value.detach()) * (piece / size)
        return values, drawn.rows

    def after_step(self) -> None:
        if not self.average:
            return
        # an average over the whole run would remember its first, bad weights; so it begins short
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.values()), [p.detach() for p in self.parameters.values()], 1 - decay
            )

    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.parameters) | {f"ema.{name}": value for name, value in self.average.items()}

    def publish(self) -> Path:
        """The model with its decoder as one folder; ``config.json`` comes last."""
        with torch.no_grad():
            for name, value in self.average.items():
                self.parameters[name].copy_(value)
        model = Glass(
            self.model.encoder,
            self.slot_attention.requires_grad_(False),
            self.mlp_decoder or self.model.decoder,
            self.model.labels,
            self.model.run,
        )
        decoder = self.decoder
        decoder.unet.to(memory_format=torch.contiguous_format)
        decoder.slots_checksum = module_checksum(self.slot_attention)
        decoder.context_dropout = self.config.context_dropout
        decoder.run = self.record() | {
            "data": self.data.record,
            "encoder": {"checksum": self.model.encoder.checksum, "resolution": self.model.encoder.resolution},
            "generator": {"ref": decoder.vae.ref, "checksum": self.generator_checksum},
            "parameters": sum(parameter.numel() for parameter in decoder.parameters()),
        }
        with atomic_folder(self.out, merge_last="config.json") as folder:
            model.eval().save_pretrained(folder)
            decoder.save_pretrained(folder / FOLDER, self.config.saved_dtype)
            # left by a run that died here: a folder cannot be moved onto a full one
            shutil.rmtree(self.out / FOLDER, ignore_errors=True)
        return self.out
