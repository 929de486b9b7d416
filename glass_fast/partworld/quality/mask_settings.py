"""Settings that make masks of captured attention, one factor varied after the other around a configuration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from glass_fast.config.schema import CaptureConfig, MasksConfig, SynthesisConfig
from glass_fast.partworld.renderer import SIZE

TIMESTEPS = tuple(range(50, 1000, 100))
"""Timesteps of a schedule of ten steps; a range takes those that lie in it."""
RANGES = ((0, 1000), (0, 400), (300, 700), (600, 1000))
TAUS = tuple(range(9))
_COMPETITION, _FLOOR = 0.3, 0.5
"""Strengths that are tried where the configuration does not use an option."""
_Range = tuple[int, int]


@dataclass(frozen=True)
class Setting:
    """One way to make masks of captured maps.

    Attributes:
        factor: what is varied.
        value: to what.
        times: timestep range [first, last).
        cross, self_: blocks of the UNet whose maps are averaged.
        masks: everything after the capture.
    """

    factor: str
    value: str
    times: _Range
    cross: tuple[str, ...]
    self_: tuple[str, ...]
    masks: MasksConfig

    @property
    def timesteps(self) -> tuple[int, ...]:
        return tuple(t for t in TIMESTEPS if self.times[0] <= t < self.times[1])


@dataclass(frozen=True)
class Blocks:
    """Transformer blocks of a UNet by size, and those that a configuration captures.

    Attributes:
        sides: side in tokens of every block, in module order.
        cross, self_: blocks of the configured layers.
    """

    sides: dict[str, int]
    cross: tuple[str, ...]
    self_: tuple[str, ...]

    def of(self, side: int) -> tuple[str, ...]:
        return tuple(name for name, own in self.sides.items() if own == side)


def find_blocks(unet: Any, config: CaptureConfig) -> Blocks:
    """Blocks of a square-latent UNet; a block holds one self- and one cross-attention layer."""
    from glass_fast.synthesis.layers import attention_layers, choose_layers, native_latent_size

    latent = native_latent_size(unet)
    layers = attention_layers(unet, latent)
    choice = choose_layers(layers, latent, config)

    def names(chosen: Iterable[Any]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer.name.rpartition(".attn")[0] for layer in chosen))

    sides = {layer.name.rpartition(".attn")[0]: layer.size[0] for layer in layers}
    return Blocks(sides, names(choice.cross), names(choice.self_))


def preset_setting(config: SynthesisConfig, blocks: Blocks) -> Setting:
    """What the configuration does."""
    times = (config.capture.timestep_min, config.capture.timestep_max)
    return Setting("preset", "", times, blocks.cross, blocks.self_, config.masks)


def settings(config: SynthesisConfig, blocks: Blocks) -> list[Setting]:
    """One factor after the other, varied around the configuration (which comes first)."""
    base = preset_setting(config, blocks)
    found = [base]

    def add(factor: str, value: str, masks: dict[str, Any] | None = None, **changes: Any) -> None:
        values = {**base.__dict__, "factor": factor, "value": value, **changes}
        found.append(Setting(**{**values, "masks": base.masks.model_copy(update=masks or {})}))

    for timestep in TIMESTEPS:
        add("timestep", str(timestep), times=(timestep, timestep + 1))
    for times in dict.fromkeys((base.times, *RANGES)):
        add("timestep range", f"{times[0]}-{times[1]}", times=times)
    fine = max(blocks.sides[name] for name in blocks.cross + blocks.self_)
    coarse = max((side for side in blocks.sides.values() if side < fine), default=fine)
    for name in blocks.of(fine):
        add("cross layers", short(name), cross=(name,))
    add("cross layers", "all", cross=blocks.of(fine))
    for name in blocks.of(fine):
        add("self layers", short(name), self_=(name,))
    add("self layers", "all", self_=blocks.of(fine))
    add("resolution", f"{fine}", cross=blocks.of(fine), self_=blocks.of(fine))
    if coarse < fine:
        add("resolution", f"{coarse}", cross=blocks.of(coarse), self_=blocks.of(coarse))
        add(
            "resolution",
            f"{fine} + {coarse}",
            cross=blocks.of(fine) + blocks.of(coarse),
            self_=blocks.of(fine),
        )
    for tau in TAUS:
        add("tau", str(tau), {"tau": tau})
    competition, floor = base.masks.competition or _COMPETITION, base.masks.floor or _FLOOR
    for value, options in (
        ("none", ()),
        ("competition", ("competition",)),
        ("floor", ("floor",)),
        ("pamr", ("refine",)),
        ("pamr + competition", ("refine", "competition")),
        ("pamr + floor", ("refine", "floor")),
        ("all three", ("refine", "competition", "floor")),
    ):
        on = {"competition": competition, "floor": floor, "refine": "pamr"}
        off = {"competition": 0.0, "floor": 0.0, "refine": "none"}
        add("options", value, {name: on[name] if name in options else off[name] for name in on})
    masks = base.masks
    for size in (SIZE // 4, SIZE // 2, SIZE):
        if size >= fine:
            add("refine size", str(size), {"refine": "pamr", "refine_size": size})
    for passes in (
        1,
        max(masks.refine_iterations // 2, 2),
        masks.refine_iterations,
        2 * masks.refine_iterations,
    ):
        add("refine iterations", str(passes), {"refine": "pamr", "refine_iterations": passes})
    for weight in (masks.refine_weight / 2, masks.refine_weight, masks.refine_weight * 2):
        add("refine weight", f"{weight:g}", {"refine": "pamr", "refine_weight": weight})
    return found


def short(block: str) -> str:
    """``up_blocks.1.attentions.0.transformer_blocks.0`` -> ``up 1.0``."""
    parts = block.split(".")
    return parts[0].split("_")[0] + " " + ".".join(part for part in parts[1:-1] if part.isdigit())


def columns(setting: Setting) -> dict[str, Any]:
    """The settings as columns of the table."""
    masks = setting.masks
    refine: str = masks.refine
    if refine != "none":
        spread = "-".join(map(str, masks.refine_dilations))
        refine = f"{refine} {masks.refine_size} x{masks.refine_iterations} d{spread} w{masks.refine_weight:g}"
    if masks.competition:
        refine += f", competition {masks.competition:g}"
    if masks.floor:
        refine += f", floor {masks.floor:g}"
    return {
        "factor": setting.factor,
        "value": setting.value,
        "steps": None,
        "timesteps": f"{setting.times[0]}-{setting.times[1]}",
        "cross_layers": " + ".join(map(short, setting.cross)),
        "self_layers": " + ".join(map(short, setting.self_)),
        "tau": masks.tau,
        "threshold": masks.threshold,
        "refine": refine,
    }
