"""The phase-1 trainer: slot attention and MLP decoder on cached features; resumable bit for bit.

Order of images, flips, slot noise and reconstructed patches are pure functions of the seed and the step, and
initial weights of the seed, so the losses ``unguided``, ``semantic`` and ``glass`` see the very same batches.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glass_fast import __version__
from glass_fast.config.schema import TrainingConfig
from glass_fast.data import atomic
from glass_fast.data.prompts import sample_seed
from glass_fast.data.shards import ShardDataset
from glass_fast.errors import ConfigError, NumericsError
from glass_fast.kernels import choices
from glass_fast.models.encoder import Encoder
from glass_fast.models.glass import Glass
from glass_fast.models.loading import resolve_device
from glass_fast.models.mlp_decoder import MLPDecoder, MLPDecoderConfig
from glass_fast.models.slot_attention import SlotAttention, SlotAttentionConfig
from glass_fast.progress import Progress, StopToken
from glass_fast.training import checkpoints
from glass_fast.training.data import (
    DEFAULT_REJECT,
    Chosen,
    GroundTruthData,
    TrainingData,
    check_source,
    choose,
    prepare,
)
from glass_fast.training.losses import instance_loss, semantic_loss
from glass_fast.training.runlog import RunLog
from glass_fast.training.schedule import guidance_weight, learning_rate

_FREE_OPTIONS = ("checkpoint_every", "keep_checkpoints", "log_every")
"""Options that do not change a bit of the result, so they may differ between a run and its continuation."""
SCALARS = ("loss", "instance", "semantic", "grad_norm")


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
    options = {k: v for k, v in config.model_dump(mode="json").items() if k not in _FREE_OPTIONS}
    return {
        **{f"training.{name}": value for name, value in options.items()},
        "seed": seed,
        "data": chosen.digest,
        "rows": chosen.rows_hash,
        "encoder": encoder.checksum,
        "resolution": encoder.resolution,
    }


def _compare(found: Any, wanted: dict[str, Any], out: Path) -> None:
    if found == wanted:
        return
    old = found if isinstance(found, dict) else {}
    keys = [k for k in sorted(set(old) | set(wanted)) if old.get(k) != wanted.get(k)]
    shown = ", ".join(f"{k}: {old.get(k)!r} there, {wanted.get(k)!r} now" for k in keys[:3])
    raise ConfigError(
        "GF-TRAIN-007",
        f"{out} holds a run of another configuration ({shown})",
        "use another output folder, or the old configuration to continue that run",
    )


def _finished(out: Path, fingerprint: dict[str, Any]) -> bool:
    """Whether ``out`` holds the finished model of this very run (``config.json`` is written last)."""
    if not all((out / name).is_file() for name in ("config.json", "run.json", "model.safetensors")):
        return False
    _compare(atomic.read_json(out / "run.json", "run record").get("fingerprint"), fingerprint, out)
    return True


class _Run:
    """One training run with its model, optimizer and position."""

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
        self.config, self.data, self.encoder, self.out, self.seed = config, data, encoder, out, seed
        self.device, self.fingerprint = device, fingerprint
        self.slot_attention, self.decoder = self._build()
        modules: dict[str, torch.nn.Module] = {"slot_attention": self.slot_attention}
        if self.decoder is not None:
            modules["decoder"] = self.decoder
        self.parameters = {
            f"{part}.{name}": parameter
            for part, m in modules.items()
            for name, parameter in m.named_parameters()
        }
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.step = 0
        self.sums = dict.fromkeys(SCALARS, 0.0)
        self.summed = 0
        self.final: dict[str, float] = {}
        self.seconds = 0.0
        self._order_epoch, self._order = -1, torch.empty(0, dtype=torch.long)

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
        slot_attention.reset_parameters(self._generator("weights", "slot_attention"))
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
        decoder.reset_parameters(self._generator("weights", "decoder"))
        return slot_attention.to(self.device), decoder.to(self.device)

    def _generator(self, item: str, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(sample_seed(self.seed, item, purpose))

    def _rows(self, step: int) -> torch.Tensor:
        """Image indices of a step: a new permutation each epoch, batches run on across epochs."""
        size, count = self.config.batch_size, len(self.data)
        rows = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, count)
            if epoch != self._order_epoch:
                generator = self._generator(f"epoch-{epoch}", "order")
                self._order_epoch, self._order = epoch, torch.randperm(count, generator=generator)
            rows.append(self._order[place])
        return torch.stack(rows)

    def _losses(self, step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Loss terms of one step and its image indices."""
        config = self.config
        rows = self._rows(step)
        generator = self._generator(f"step-{step}", "batch")
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

    def _one_step(self) -> dict[str, float]:
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses, rows = self._losses(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.grad_clip)
        values = {name: float(value.detach()) for name, value in losses.items()} | {"grad_norm": float(norm)}
        if not all(math.isfinite(value) for value in values.values()):
            self._fail(values, rows, rate)
        self.optimizer.step()
        self.step += 1
        return values

    def _fail(self, values: dict[str, float], rows: torch.Tensor, rate: float) -> None:
        place = self.out / "failures"
        failed = {
            "values": {name: repr(value) for name, value in values.items()},
            "rows": rows.tolist(),
            "learning_rate": rate,
        }
        path = checkpoints.save(place, self._checkpoint({"failed": failed}), keep=1)
        shown = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
        raise NumericsError(
            "GF-NUM-001",
            f"step {self.step} of loss {self.config.loss!r} is not finite ({shown}; learning rate "
            f"{rate:.3g}); weights "
            f"before it and the batch are in {path}",
            "lower training.learning_rate, add training.warmup_steps, or look at the features of these "
            "images",
        )

    def _checkpoint(self, extra: dict[str, Any] | None = None) -> checkpoints.Checkpoint:
        return checkpoints.Checkpoint(
            self.step,
            dict(self.parameters),
            checkpoints.flatten_optimizer(self.optimizer, list(self.parameters)),
            {
                "fingerprint": self.fingerprint,
                "sums": self.sums,
                "summed": self.summed,
                "final": self.final,
                "seconds": self.seconds,
                **(extra or {}),
            },
        )

    def _resume(self) -> None:
        found = checkpoints.latest(self.out / "checkpoints")
        if found is None:
            return
        _compare(found.state["fingerprint"], self.fingerprint, self.out)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(found.model[name])
        checkpoints.restore_optimizer(self.optimizer, list(self.parameters), found.optimizer)
        self.step, self.sums, self.summed = found.step, dict(found.state["sums"]), int(found.state["summed"])
        self.final, self.seconds = dict(found.state["final"]), float(found.state["seconds"])

    def _save(self) -> None:
        checkpoints.save(self.out / "checkpoints", self._checkpoint(), self.config.keep_checkpoints)

    def to_the_end(self, stop: StopToken, progress: Progress) -> Path:
        """All remaining steps, then the model folder."""
        config = self.config
        self._resume()
        progress.start(config.steps, "steps", f"train {config.loss}", done=self.step)
        try:
            with RunLog(self.out, self.step) as log:
                while self.step < config.steps:
                    self._advance(log, stop, progress)
        finally:
            progress.finish()
        return self._publish()

    def _advance(self, log: RunLog, stop: StopToken, progress: Progress) -> None:
        """One step with its log line, checkpoint and stop request."""
        config = self.config
        begin = time.perf_counter()
        values = self._one_step()
        self.seconds += time.perf_counter() - begin
        for name in SCALARS:
            self.sums[name] += values[name]
        self.summed += 1
        last = self.step == config.steps
        if self.step % config.log_every == 0 or last:
            self._log(log)
        progress.advance(1, loss=values["loss"])
        if last or stop.stopped or self.step % config.checkpoint_every == 0:
            self._save()
        if stop.stopped and not last:
            stop.check(f"{self.step} of {config.steps} steps of loss {config.loss!r} are saved in {self.out}")

    def _log(self, log: RunLog) -> None:
        self.final = {name: value / self.summed for name, value in self.sums.items()}
        scalars = self.final | {
            "learning_rate": learning_rate(self.config, self.step - 1),
            "guidance": guidance_weight(self.config, self.step - 1),
        }
        log.write(self.step, scalars, seconds=round(self.seconds, 3))
        self.sums, self.summed = dict.fromkeys(SCALARS, 0.0), 0

    def _publish(self) -> Path:
        record = {
            "schema": 1,
            "config": self.config.model_dump(mode="json"),
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "data": self.data.record,
            "encoder": {
                "ref": self.encoder.source.ref if self.encoder.source else "",
                "checksum": self.encoder.checksum,
                "resolution": self.encoder.resolution,
            },
            "steps": self.step,
            "final_losses": self.final,
            "device": str(self.device),
            "backends": choices(),
            "seconds": round(self.seconds, 3),
            "ms_per_step": round(1000.0 * self.seconds / max(self.step, 1), 3),
            "versions": {
                "glass_fast": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }
        model = Glass(self.encoder, self.slot_attention, self.decoder, self.data.names, record)
        return model.eval().save_pretrained(self.out)
