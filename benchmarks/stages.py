"""Rows of the stages of the chain, on PartWorld's shipped small models, by the backends that the ops use.

Providers: ``reference`` (textbook form of every op), ``torch`` (its torch backend where there is one, else the
reference) and ``default`` (what the registry chooses here). All three name the backend of every op in
``GLASS_FAST_BACKENDS``, so that looking a name up costs each of them the same.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.baselines import BASELINE, OURS
from benchmarks.ops import timed_columns
from benchmarks.schema import WRONG, Row
from benchmarks.timing import Clock, Sample, interleave, peak_memory, repeated
from glass_fast import kernels
from glass_fast.config.load import load_config
from glass_fast.config.schema import MasksConfig, RunConfig
from glass_fast.progress import Progress

MAIN = "reference"
TRAIN_STEPS = 4
"""Steps of one sample of the train stage; the first and the last are left out (set-up; checkpoint and model)."""


@dataclass(frozen=True)
class Prepared:
    """A stage that is ready to run.

    Attributes:
        case: what it works on.
        run: does it; returns what ``difference`` compares.
        difference: what is wrong with a result, given that of the reference backends; empty: nothing.
        sample: takes a sample of one call; default: by the clock, around ``run``.
    """

    case: str
    run: Callable[[], Any]
    difference: Callable[[Any, Any], str]
    sample: Callable[[], Sample] | None = None


def settings(device: str) -> dict[str, dict[str, str]]:
    """Backend of every op, by provider."""
    names = {op: {state.name: state for state in kernels.backends(op)} for op in kernels.ops()}

    def serves(op: str, name: str) -> bool:
        state = names[op].get(name)
        return state is not None and state.available and device in state.devices

    return {
        "reference": dict.fromkeys(names, "reference"),
        "torch": {op: "torch" if serves(op, "torch") else "reference" for op in names},
        "default": {op: kernels.choose(op, device) for op in names},
    }


@contextmanager
def backends(setting: Mapping[str, str]) -> Iterator[None]:
    """Run with these backends; what was set before comes back."""
    before = os.environ.get("GLASS_FAST_BACKENDS")
    os.environ["GLASS_FAST_BACKENDS"] = ",".join(f"{op}={name}" for op, name in setting.items())
    try:
        yield
    finally:
        if before is None:
            del os.environ["GLASS_FAST_BACKENDS"]
        else:
            os.environ["GLASS_FAST_BACKENDS"] = before


def _config(*overrides: str) -> RunConfig:
    return load_config("demo", [], list(overrides)).config


def _share_that_differs(found: Any, expected: Any, limit: float) -> str:
    """Integer arrays that may differ in a share of their elements: rounding decides between nearly equal values."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            return f"shape {a.shape}; expected {b.shape}"
        worst = max(worst, float(np.mean(a != b)))
    return f"{worst:.2g} of the values of an array differ; at most {limit:g} may" if worst > limit else ""


class _Steps(Progress):
    """Times training from the end of a step to the end of the next one."""

    def __init__(self, clock: Any) -> None:
        self.clock, self.ends, self.losses = clock, [], []

    def advance(self, count: int = 1, **fields: Any) -> None:
        super().advance(count, **fields)
        if "loss" in fields:
            self.ends.append((self.clock.wall(), self.clock.cpu()))
            self.losses.append(fields["loss"])

    def sample(self) -> Sample:
        """Medians over the steps between the first and the last."""
        spans = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(self.ends[:-2], self.ends[1:-1], strict=True)]
        return Sample(median(wall for wall, _ in spans), median(cpu for _, cpu in spans))


def train_step(work: Path, device: str) -> Prepared:
    """One phase-1 step, glass loss, on cached features: the demo preset's model, 16 scenes a batch.

    True masks of rendered scenes take the place of shards, which would take minutes to make; the step does not see
    where its segments come from. Guidance is on from the first step.
    """
    from benchmarks.timing import HostClock
    from glass_fast.models.loading import load_encoder, resolve_device
    from glass_fast.partworld.renderer import render
    from glass_fast.partworld.shapes import CLASSES
    from glass_fast.training.data import GroundTruthData, prepare
    from glass_fast.training.trainer import train
    from glass_fast.workflow import arm_training

    config = _config(
        f"training.steps={TRAIN_STEPS}", "training.warmup_steps=1", "training.guidance_start=0.0",
        "training.guidance_ramp=0.0",
    )  # fmt: skip
    training = arm_training(config, "upper_bound").model_copy(update={"component_size": 1})
    scenes = [render("train", index) for index in range(32)]
    data = GroundTruthData(
        np.stack([s.image for s in scenes]), np.stack([s.instances for s in scenes]), tuple(CLASSES)
    )
    target = resolve_device(device)
    encoder = load_encoder(config.models.encoder, target, training.resolution)
    prepared = prepare(training, data, encoder)
    # the step ends with its loss on the host, so the host's clock is right on a GPU, too
    clock = HostClock(torch.get_num_threads())

    def steps() -> _Steps:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            watch = _Steps(clock)
            train(training, data, encoder, Path(folder) / "m", 0, target, None, watch, prepared=prepared)
            return watch

    def difference(found: Any, expected: Any) -> str:
        # rounding of the first steps grows: the weights move by the sign of tiny gradients
        error = max(abs(a - b) / abs(b) for a, b in zip(found[:3], expected[:3], strict=True))
        return (
            f"losses of the first steps differ by {error:.2g}; at most 1e-3 is allowed"
            if error > 1e-3
            else ""
        )

    case = f"B{training.batch_size}-N{prepared.labels.shape[1]}-S{training.num_slots}-D{training.slot_size}"
    return Prepared(case, lambda: steps().losses, difference, lambda: steps().sample())


def finish_masks(work: Path, device: str) -> Prepared:
    """Captured attention maps of 4 pictures to label masks: propagation, soft maps, mask; Dataset Diffusion's rule.

    Sizes of Stable Diffusion at 512 pixels with maps of 32 x 32 tokens and 4 classes. The maps are random; tokens
    attend to those near them, as they do in trained networks (else propagation leaves nothing but rounding noise).
    """
    from glass_fast.synthesis.capture import AttentionMaps
    from glass_fast.synthesis.masks import class_maps, mask_from_maps, soft_maps

    pictures, classes, side = 4, 4, 32
    config = MasksConfig()
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(pictures, classes, 5, 5, generator=draw)
    cross = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
    near = (
        -torch.cdist(places, places) / 3
    )  # not its square: products of subnormal numbers are ten times slower
    self_map = (torch.randn(pictures, side**2, side**2, generator=draw) + near).softmax(-1)
    maps = AttentionMaps(cross.to(device), self_map.to(device), (side, side))

    @torch.inference_mode()
    def run() -> list[np.ndarray]:
        soft, _ = soft_maps(class_maps(maps, config.tau), config)
        labels = range(1, classes + 1)
        limits = (config.threshold, config.uncertain_threshold)
        return [mask_from_maps(sample, labels, (512, 512), *limits) for sample in soft]

    # a soft map is stored in bytes: a value between two of them may fall either way
    return Prepared(
        f"B{pictures}-K{classes}-N{side**2}-tau{config.tau}-512px",
        run,
        lambda a, b: _share_that_differs(a, b, 1e-3),
    )


def discover(work: Path, device: str) -> Prepared:
    """Objects in 16 rendered scenes with the shipped slot model: pixels in, label maps and objects out."""
    from glass_fast.engine.discover import discover as find
    from glass_fast.models.glass import Glass
    from glass_fast.partworld.renderer import render

    model = Glass.from_pretrained("partworld:slots", device=device)
    images = [render("test", 50_000 + index).image for index in range(16)]

    def run() -> list[np.ndarray]:
        return [found.label_map for found in find(model, images)]

    return Prepared("16 scenes", run, lambda a, b: _share_that_differs(a, b, 1e-3))


def synthesize(work: Path, device: str) -> Prepared:
    """Four pictures with masks from prompts, written as a shard: the demo preset with 4 denoising steps."""
    from glass_fast.data.label_sets import label_set
    from glass_fast.data.prompts import Prompt
    from glass_fast.data.shards import open_shards
    from glass_fast.models.loading import load_generator, resolve_device
    from glass_fast.synthesis.job import synthesize as make

    config = _config(
        "synthesis.num=4", "synthesis.batch_size=4", "synthesis.shard_size=4", "synthesis.steps=4"
    )
    wanted = (("car", "tree"), ("boat",), ("house", "tree"), ("umbrella",))
    prompts = [
        Prompt(f"p{i}", text := " and ".join(f"a {c}" for c in names), names, text, " ".join(names), i + 1, "list", "")
        for i, names in enumerate(wanted)
    ]  # fmt: skip
    generator = load_generator(config.models.generator, resolve_device(device), config.synthesis.dtype)
    labels = tuple(label_set("partworld").names)
    # four steps make poor pictures, and a job that rejects many ends with an error
    options = config.synthesis.model_copy(
        update={"quality": config.synthesis.quality.model_copy(update={"max_reject_share": 1.0})}
    )

    def run() -> list[np.ndarray]:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            make(prompts, labels, options, generator, Path(folder) / "shards", 0)
            shards = open_shards(Path(folder) / "shards")
            return [array for index in range(4) for array in (shards[index].image, shards[index].mask)]

    return Prepared("4 pictures, 4 steps", run, lambda a, b: _share_that_differs(a, b, 0.02))


STAGES: Mapping[str, Callable[[Path, str], Prepared]] = {
    "train_step": train_step,
    "finish_masks": finish_masks,
    "discover": discover,
    "synthesize": synthesize,
}


def stage_rows(
    names: Sequence[str],
    clock: Clock,
    environment: Mapping[str, Any],
    rounds: int,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Row]:
    """Rows of the named stages (none: all of them).

    Raises:
        KeyError: no stage of that name.
    """
    device = str(environment["device"])
    for name in names or STAGES:
        with tempfile.TemporaryDirectory(prefix="glass-fast-bench-") as work:
            prepared = STAGES[name](Path(work), device)
            say(f"{name} {prepared.case}")
            yield from _rows(name, prepared, clock, environment, rounds)


def _rows(
    name: str, prepared: Prepared, clock: Clock, environment: Mapping[str, Any], rounds: int
) -> Iterator[Row]:
    chosen = settings(str(environment["device"]))
    with backends(chosen[MAIN]):
        expected = prepared.run()
    wrong, samplers, repeats, peaks = {}, {}, {}, {}
    for provider, setting in chosen.items():
        kernels.forget()  # its record of choices names what this provider used
        with backends(setting):
            try:
                wrong[provider] = prepared.difference(prepared.run(), expected)
            except Exception as error:  # one broken backend must not end the run of the others
                wrong[provider] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            if wrong[provider]:
                continue
            if prepared.sample is None:
                inner = repeated(clock, prepared.run)
                sampler, repeats[provider] = inner, inner.repeats
            else:
                sampler, repeats[provider] = prepared.sample, 1
            samplers[provider] = _within(setting, sampler)
            peaks[provider] = peak_memory(prepared.run, str(environment["device"]))
    samples = interleave(samplers, rounds)
    for provider, setting in chosen.items():
        row = Row(
            kind="stage", name=name, op="", case=prepared.case, provider=provider,
            role=BASELINE if provider == MAIN else OURS, mode="step", dtype="float32", **environment,
        )  # fmt: skip
        if wrong[provider]:
            yield replace(row, status=WRONG, note=wrong[provider])
            continue
        row = timed_columns(row, samples[provider], samples.get(MAIN), MAIN)
        peak, method = peaks[provider]
        note = " ".join(f"{op}={backend}" for op, backend in setting.items())
        yield replace(
            row, note=note, peak_bytes=peak, peak_method=method, rounds=rounds, repeats=repeats[provider]
        )


def _within(setting: Mapping[str, str], sampler: Callable[[], Sample]) -> Callable[[], Sample]:
    def take() -> Sample:
        with backends(setting):
            return sampler()

    return take
