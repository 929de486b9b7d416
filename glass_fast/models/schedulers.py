"""Schedulers by name, built from the configuration that ships with the model."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import TYPE_CHECKING, Any

from glass_fast.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

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


def build_scheduler(name: str, shipped: dict[str, Any], section: str = "synthesis") -> Any:
    """A fresh scheduler; prediction type, betas and offsets come from the shipped configuration.

    Args:
        name: ``default`` (the class that ships) or a key of :data:`CLASSES`.
        shipped: content of the model's ``scheduler_config.json``.
        section: section of the configuration that ``name`` stands in, for messages.

    Raises:
        ConfigError: GF-SYN-010, unknown name; GF-SYN-011, the shipped class is unknown or refuses its configuration.
    """
    import diffusers

    if name != "default" and name not in CLASSES:
        raise ConfigError(
            "GF-SYN-010",
            f"{section}.scheduler={name!r}; expected one of default, {', '.join(CLASSES)}",
            "'default' is the scheduler that ships with the model",
        )
    class_name = str(shipped.get("_class_name", "")) if name == "default" else CLASSES[name]
    cls = getattr(diffusers, class_name, None)
    if cls is None or not hasattr(cls, "from_config"):
        raise ConfigError(
            "GF-SYN-011",
            f"the model's scheduler_config.json names _class_name={class_name!r}, which diffusers "
            f"{diffusers.__version__} does not have",
            f"choose {section}.scheduler from {', '.join(CLASSES)}",
        )
    try:
        return cls.from_config(dict(shipped))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(
            "GF-SYN-011",
            f"{class_name} refuses the shipped scheduler configuration: {error}",
            f"choose {section}.scheduler from {', '.join(CLASSES)}",
        ) from error


def set_steps(scheduler: Any, steps: int, device: Any, section: str = "synthesis") -> Any:
    """Set the number of steps; returns the timesteps, one UNet call each (heun: two calls a step).

    Raises:
        ConfigError: GF-SYN-012, the scheduler cannot do that number of steps.
    """
    try:
        scheduler.set_timesteps(steps, device=device)
    except (ValueError, IndexError, AssertionError) as error:
        raise ConfigError(
            "GF-SYN-012",
            f"{type(scheduler).__name__} cannot do {section}.steps={steps}: {error}",
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


class NoiseSchedule:
    """The forward process of a shipped scheduler configuration and what its network has to predict.

    Args:
        shipped: content of ``scheduler_config.json``.

    Attributes:
        alphas_cumprod: float32 (timesteps,), the share of signal variance that is left at each training timestep.
        prediction_type: epsilon (the noise), v_prediction (the velocity) or sample (the clean latents).

    Raises:
        ConfigError: GF-SYN-011, a configuration that diffusers refuses; GF-SYN-013, another prediction type.
    """

    def __init__(self, shipped: dict[str, Any]) -> None:
        scheduler = build_scheduler("ddpm", shipped)
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod.float()
        self.prediction_type = str(scheduler.config.prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ConfigError(
                "GF-SYN-013",
                f"the scheduler's prediction_type is {self.prediction_type!r}; expected epsilon, v_prediction or "
                "sample",
                "use a Stable Diffusion 1.x or 2.x folder",
            )

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def _shares(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        signal = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, *[1] * (like.ndim - 1))
        return signal.sqrt(), (1.0 - signal).sqrt()

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``sqrt(a) clean + sqrt(1 - a) noise`` with ``a`` of each sample's timestep (Ho et al. 2020, eq. 4)."""
        signal, spread = self._shares(timesteps, clean)
        return signal * clean + spread * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network predicts; velocity is ``sqrt(a) noise - sqrt(1 - a) clean`` (Salimans & Ho 2022)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        signal, spread = self._shares(timesteps, clean)
        return signal * noise - spread * clean
