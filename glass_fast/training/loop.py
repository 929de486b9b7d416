"""The resumable loop of both training phases: order of images, rates, logs, checkpoints, stops, failures.

Everything random is a pure function of the seed and the step, so a run that goes on from a checkpoint ends with the
same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
import platform
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

from glass_fast import __version__
from glass_fast.config.schema import DecoderConfig, TrainingConfig
from glass_fast.data.prompts import sample_seed
from glass_fast.errors import ConfigError, NumericsError
from glass_fast.kernels import choices
from glass_fast.progress import Progress, StopToken
from glass_fast.training import checkpoints
from glass_fast.training.runlog import RunLog
from glass_fast.training.schedule import learning_rate

FREE_OPTIONS = ("checkpoint_every", "keep_checkpoints", "log_every")
"""Options that do not change a bit of the result, so they may differ between a run and its continuation."""


def compare_fingerprints(found: Any, wanted: dict[str, Any], out: Path) -> None:
    """Refuse a folder of another configuration, with the first differences named.

    Raises:
        ConfigError: GF-TRAIN-007.
    """
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


class Run(ABC):
    """One training run with its parameters, optimizer and position; a phase adds what a step computes.

    Args:
        config: options of the phase.
        count: number of images.
        out: folder of ``log.jsonl``, ``tensorboard/``, ``checkpoints/`` and the result.
        seed: fixes order and noise.
        device: where it is trained.
        fingerprint: what identifies the run.
    """

    section: str
    """Section of the configuration, for messages."""
    title: str
    """What is trained, for messages."""
    scalars: tuple[str, ...]
    """Names of the values of a step."""

    def __init__(
        self,
        config: TrainingConfig | DecoderConfig,
        count: int,
        out: Path,
        seed: int,
        device: torch.device,
        fingerprint: dict[str, Any],
    ) -> None:
        self.plan, self.count, self.out, self.seed = config, count, out, seed
        self.device, self.fingerprint = device, fingerprint
        self.step = 0
        self.sums = dict.fromkeys(self.scalars, 0.0)
        self.summed = 0
        self.final: dict[str, float] = {}
        self.seconds = 0.0
        self._order_epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def optimize(self, *groups: tuple[dict[str, torch.nn.Parameter], float]) -> None:
        """Make the optimizer: named parameters with the factor of their learning rate."""
        self.parameters = {name: parameter for named, _ in groups for name, parameter in named.items()}
        self.optimizer = torch.optim.AdamW(
            [{"params": list(named.values()), "factor": factor} for named, factor in groups],
            lr=self.plan.learning_rate,
            weight_decay=self.plan.weight_decay,
        )

    @abstractmethod
    def gradients(self, step: int) -> tuple[dict[str, float], torch.Tensor]:
        """Add the gradients of a step to the parameters; returns its scalars (all but ``grad_norm``) and rows."""

    @abstractmethod
    def publish(self) -> Path:
        """Write the result of the finished run."""

    def after_step(self) -> None:  # noqa: B027 - a hook that a phase may leave empty
        """Called when the parameters have moved."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds beside the optimizer; resuming copies into these very tensors."""
        return dict(self.parameters)

    def shown(self, step: int) -> dict[str, float]:
        """Further scalars of the log at a 0-based step."""
        return {}

    def generator(self, item: str, purpose: str) -> torch.Generator:
        """CPU generator whose numbers depend on the seed, ``item`` and ``purpose`` only."""
        return torch.Generator().manual_seed(sample_seed(self.seed, item, purpose))

    def rows(self, step: int) -> torch.Tensor:
        """Image indices of a step: a new permutation each epoch, batches run on across epochs."""
        size = self.plan.batch_size
        rows = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, self.count)
            if epoch != self._order_epoch:
                generator = self.generator(f"epoch-{epoch}", "order")
                self._order_epoch, self._order = epoch, torch.randperm(self.count, generator=generator)
            rows.append(self._order[place])
        return torch.stack(rows)

    def to_the_end(self, stop: StopToken, progress: Progress) -> Path:
        """All remaining steps, then the result."""
        self._resume()
        progress.start(self.plan.steps, "steps", f"train {self.title}", done=self.step)
        try:
            with RunLog(self.out, self.step) as log:
                while self.step < self.plan.steps:
                    self._advance(log, stop, progress)
        finally:
            progress.finish()
        return self.publish()

    def record(self) -> dict[str, Any]:
        """The part of ``run.json`` that all phases share."""
        return {
            "schema": 1,
            "config": self.plan.model_dump(mode="json"),
            "fingerprint": self.fingerprint,
            "seed": self.seed,
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

    def _one_step(self) -> dict[str, float]:
        rate = learning_rate(self.plan, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        values, rows = self.gradients(self.step)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.plan.grad_clip)
        values = values | {"grad_norm": float(norm)}
        if not all(math.isfinite(value) for value in values.values()):
            self._fail(values, rows, rate)
        self.optimizer.step()
        self.after_step()
        self.step += 1
        return values

    def _advance(self, log: RunLog, stop: StopToken, progress: Progress) -> None:
        """One step with its log line, checkpoint and stop request."""
        plan = self.plan
        begin = time.perf_counter()
        values = self._one_step()
        self.seconds += time.perf_counter() - begin
        for name in self.scalars:
            self.sums[name] += values[name]
        self.summed += 1
        last = self.step == plan.steps
        if self.step % plan.log_every == 0 or last:
            self._log(log)
        progress.advance(1, loss=values["loss"])
        if last or stop.stopped or self.step % plan.checkpoint_every == 0:
            checkpoints.save(self.out / "checkpoints", self._checkpoint(), plan.keep_checkpoints)
        if stop.stopped and not last:
            stop.check(f"{self.step} of {plan.steps} steps of {self.title} are saved in {self.out}")

    def _log(self, log: RunLog) -> None:
        self.final = {name: value / self.summed for name, value in self.sums.items()}
        scalars = (
            self.final
            | {"learning_rate": learning_rate(self.plan, self.step - 1)}
            | self.shown(self.step - 1)
        )
        log.write(self.step, scalars, seconds=round(self.seconds, 3))
        self.sums, self.summed = dict.fromkeys(self.scalars, 0.0), 0

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
            f"step {self.step} of {self.title} is not finite ({shown}; learning rate {rate:.3g}); weights "
            f"before it and the batch are in {path}",
            f"lower {self.section}.learning_rate, add {self.section}.warmup_steps, or look at these images",
        )

    def _checkpoint(self, extra: dict[str, Any] | None = None) -> checkpoints.Checkpoint:
        return checkpoints.Checkpoint(
            self.step,
            self.tensors(),
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
        compare_fingerprints(found.state["fingerprint"], self.fingerprint, self.out)
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(found.model[name])
        checkpoints.restore_optimizer(self.optimizer, list(self.parameters), found.optimizer)
        self.step, self.sums, self.summed = found.step, dict(found.state["sums"]), int(found.state["summed"])
        self.final, self.seconds = dict(found.state["final"]), float(found.state["seconds"])
