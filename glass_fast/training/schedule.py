"""Learning rate and guidance weight as pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math

from glass_fast.config.schema import DecoderConfig, TrainingConfig


def learning_rate(config: TrainingConfig | DecoderConfig, step: int) -> float:
    """Rate at ``step`` (0-based): linear warm-up, then constant, or a fall towards 0 at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    span = max(config.steps - config.warmup_steps, 1)
    passed = min((step - config.warmup_steps) / span, 1.0)
    share = 1.0 - passed if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * passed))
    return config.learning_rate * share


def guidance_weight(config: TrainingConfig, step: int) -> float:
    """Factor in [0, 1] of the semantic loss at ``step``.

    0 before ``guidance_start`` of all steps, then a linear rise over ``guidance_ramp`` of all steps. The loss
    ``semantic`` has nothing else to learn from, so it is guided from the first step.
    """
    if config.loss == "unguided":
        return 0.0
    if config.loss == "semantic":
        return 1.0
    start = config.guidance_start * config.steps
    if step < start:
        return 0.0
    ramp = config.guidance_ramp * config.steps
    return min((step - start + 1) / ramp, 1.0) if ramp >= 1 else 1.0
