"""One resumable training loop for every tiny PartWorld model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glass_fast.data.atomic import write_bytes
from glass_fast.errors import NumericsError
from glass_fast.progress import Progress, StopToken

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Fit:
    """How long and how fast one model is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: samples a step.
        peak: peak learning rate (AdamW, betas 0.9 / 0.99), after ``warmup`` steps, flat until ``flat`` of the
            run, then linear to 3 %.
        ema: decay of the averaged weights that are shipped; 0 ships the last ones.
    """

    steps: int
    batch_size: int
    peak: float
    warmup: int = 60
    flat: float = 0.4
    ema: float = 0.0
    weight_decay: float = 0.01

    def rate(self, step: int) -> float:
        """Learning rate at a 0-based step."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        share = step / self.steps
        if share < self.flat:
            return self.peak
        return self.peak * (1 - 0.97 * (share - self.flat) / (1 - self.flat))


def step_rng(seed: int, stage: str, step: int) -> np.random.Generator:
    """NumPy generator of a step: a resumed run draws the same batches."""
    import numpy as np

    return np.random.default_rng([seed, *stage.encode(), step])


def fit(
    stage: str,
    module: torch.nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    plan: Fit,
    folder: Path,
    progress: Progress,
    stop: StopToken,
    checkpoint_every: int = 250,
) -> None:
    """Train ``module`` in place; continue from ``folder`` when an earlier run stopped.

    Args:
        stage: name for progress and seeds.
        module: everything that is trained.
        loss_of: 0-based step -> scalar loss; must draw its randomness from the step number.
        folder: receives ``checkpoint.safetensors`` and ``losses.jsonl``.

    Raises:
        NumericsError: non-finite loss.
        Stopped: stop token set; the checkpoint is written first.
    """
    import safetensors.torch
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=plan.peak, betas=(0.9, 0.99), weight_decay=plan.weight_decay)
    average = [p.detach().clone() for p in parameters] if plan.ema else []
    first, losses, mean = 0, [], 0.0
    if checkpoint.exists():
        with safetensors.safe_open(checkpoint, "pt") as stored:
            info = json.loads(stored.metadata()["state"])
            first, losses, mean = info["step"], info["losses"], info["mean"]
            module.load_state_dict(
                {k[6:]: stored.get_tensor(k) for k in stored.keys() if k.startswith("model.")}  # noqa: SIM118
            )
            for index, p in enumerate(parameters):
                optimizer.state[p] = {
                    "step": torch.tensor(float(first)),
                    "exp_avg": stored.get_tensor(f"exp_avg.{index}").to(p),
                    "exp_avg_sq": stored.get_tensor(f"exp_avg_sq.{index}").to(p),
                }
            average = (
                [stored.get_tensor(f"average.{i}").to(p) for i, p in enumerate(parameters)]
                if plan.ema
                else []
            )

    def save(step: int) -> None:
        tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
        for index, p in enumerate(parameters):
            tensors[f"exp_avg.{index}"] = optimizer.state[p]["exp_avg"].cpu().contiguous()
            tensors[f"exp_avg_sq.{index}"] = optimizer.state[p]["exp_avg_sq"].cpu().contiguous()
            if plan.ema:
                tensors[f"average.{index}"] = average[index].cpu().contiguous()
        metadata = {"state": json.dumps({"step": step, "losses": losses, "mean": mean})}
        write_bytes(checkpoint, safetensors.torch.save({k: v.clone() for k, v in tensors.items()}, metadata))

    progress.start(plan.steps, "steps", stage, done=first)
    module.train()
    for step in range(first, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        loss = loss_of(step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NumericsError(
                "GF-NUM-101",
                f"loss of stage {stage} is {value} at step {step}; expected a finite number",
                "lower the learning rate of this stage and delete its folder",
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if plan.ema:
            decay = min(plan.ema, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        mean += value
        if (step + 1) % 50 == 0:
            losses.append([step + 1, mean / 50])
            mean = 0.0
        progress.advance(1, loss=losses[-1][1] if losses else value)
        if (step + 1) % checkpoint_every == 0 or step + 1 == plan.steps or stop.stopped:
            save(step + 1)
            stop.check(f"stage {stage} saved at step {step + 1}")
    progress.finish()
    if plan.ema:
        with torch.no_grad():
            for p, a in zip(parameters, average, strict=True):
                p.copy_(a)
    module.eval()
    write_bytes(folder / "losses.json", json.dumps(losses).encode())
