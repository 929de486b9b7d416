"""Schedulers by name, built from the configuration that ships with the model."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Any

from glass_fast.errors import ConfigError

CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
}


def build_scheduler(name: str, shipped: dict[str, Any]) -> Any:
    """A fresh scheduler; prediction type, betas and offsets come from the shipped configuration.

    Args:
        name: ``default`` (the class that ships) or a key of :data:`CLASSES`.
        shipped: content of the model's ``scheduler_config.json``.

    Raises:
        ConfigError: GF-SYN-010, unknown name; GF-SYN-011, the shipped class is unknown or refuses its configuration.
    """
    import diffusers

    if name != "default" and name not in CLASSES:
        raise ConfigError(
            "GF-SYN-010",
            f"synthesis.scheduler={name!r}; expected one of default, {', '.join(CLASSES)}",
            "'default' is the scheduler that ships with the model",
        )
    class_name = str(shipped.get("_class_name", "")) if name == "default" else CLASSES[name]
    cls = getattr(diffusers, class_name, None)
    if cls is None or not hasattr(cls, "from_config"):
        raise ConfigError(
            "GF-SYN-011",
            f"the model's scheduler_config.json names _class_name={class_name!r}, which diffusers "
            f"{diffusers.__version__} does not have",
            f"choose synthesis.scheduler from {', '.join(CLASSES)}",
        )
    try:
        return cls.from_config(dict(shipped))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            "GF-SYN-011",
            f"{class_name} refuses the shipped scheduler configuration: {error}",
            f"choose synthesis.scheduler from {', '.join(CLASSES)}",
        ) from error


def set_steps(scheduler: Any, steps: int, device: Any) -> Any:
    """Set the number of steps; returns the timesteps, one UNet call each (heun: two calls a step).

    Raises:
        ConfigError: GF-SYN-012, the scheduler cannot do that number of steps.
    """
    try:
        scheduler.set_timesteps(steps, device=device)
    except (ValueError, IndexError, AssertionError) as error:
        raise ConfigError(
            "GF-SYN-012",
            f"{type(scheduler).__name__} cannot do synthesis.steps={steps}: {error}",
            f"expected 1 to {getattr(scheduler.config, 'num_train_timesteps', 1000)} steps",
        ) from error
    return scheduler.timesteps


def takes_generator(scheduler: Any) -> bool:
    """Whether ``step`` draws noise (stochastic schedulers)."""
    return "generator" in inspect.signature(scheduler.step).parameters


def identity(scheduler: Any) -> dict[str, str]:
    """Class and configuration hash for provenance; independent of library version and key order."""
    config = {k: v for k, v in dict(scheduler.config).items() if not k.startswith("_")}
    text = json.dumps(config, sort_keys=True, default=str)
    return {"class": type(scheduler).__name__, "config_sha256": hashlib.sha256(text.encode()).hexdigest()}
