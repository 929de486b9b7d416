"""Target machines of ``glass-fast partworld build``: one YAML file each in ``partworld/targets``."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from glass_fast.errors import ConfigError
from glass_fast.partworld.builder.fitting import Fit

Widths = Annotated[tuple[int, ...], Field(min_length=2)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AutoencoderPlan(_Section):
    """Level widths; ``len(channels) - 1`` halvings lie between pixels and latents."""

    channels: Widths
    latent_channels: Annotated[int, Field(ge=1)] = 8
    fit: Fit


class GeneratorPlan(_Section):
    """Level widths of the UNet; every level has self- and cross-attention."""

    channels: Widths
    fit: Fit


class PlainPlan(_Section):
    """A model whose shape is the same on every target."""

    fit: Fit


class Target(_Section):
    """What one target machine trains.

    Attributes:
        pictures: rendered training pictures.
        workers: processes that render them.
        slots, decoder: overrides ("training.steps": 100) of the ``demo`` preset for the default slot model and its
            diffusion decoder.
    """

    pictures: Annotated[int, Field(ge=1)]
    workers: Annotated[int, Field(ge=1)] = 1
    autoencoder: AutoencoderPlan
    generator: GeneratorPlan
    encoder: PlainPlan
    captioner: PlainPlan
    slots: dict[str, Any] = Field(default_factory=dict)
    decoder: dict[str, Any] = Field(default_factory=dict)


def list_targets() -> list[str]:
    """Names of the shipped targets, sorted."""
    folder = files("glass_fast.partworld") / "targets"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def load_target(name: str) -> Target:
    """The plan of a target machine.

    Raises:
        ConfigError: GF-CONFIG-203, unknown target; GF-CONFIG-208, a target file that breaks a rule.
    """
    import yaml

    if name not in list_targets():
        raise ConfigError(
            "GF-CONFIG-203", f"target {name!r} is unknown; expected one of {', '.join(list_targets())}"
        )
    text = (files("glass_fast.partworld") / "targets" / f"{name}.yaml").read_text(encoding="utf-8")
    try:
        return TypeAdapter(Target).validate_python(yaml.safe_load(text))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError("GF-CONFIG-208", f"target {name}: {place}: {first['msg']}") from None
