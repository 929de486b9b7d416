"""Masks of generated pictures by number of steps and timestep range, judged by a segmenter trained on renders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from glass_fast.config.schema import SynthesisConfig
from glass_fast.data.prompts import Prompt, sample_seed
from glass_fast.data.spans import join_classes, join_prompt
from glass_fast.partworld.quality.generated import MIN_AREA
from glass_fast.partworld.quality.judge import NUM_CLASSES, Judge, class_areas
from glass_fast.partworld.quality.mask_scores import Curve
from glass_fast.partworld.quality.mask_settings import RANGES, Setting, columns, find_blocks, preset_setting
from glass_fast.progress import Progress, StopToken
from glass_fast.synthesis.batches import BatchRunner, Request
from glass_fast.synthesis.capture import AttentionCapture, AttentionMaps
from glass_fast.synthesis.masks import absent, class_maps, soft_maps
from glass_fast.synthesis.text import text_row

if TYPE_CHECKING:
    from glass_fast.models.loading import Generator

STEPS = (5, 10, 20, 50)
FIRST_SCENE = 5_000
"""First scene of the split whose caption is painted."""


class RangeCapture:
    """Stands in for a runner's capture and keeps the means of several timestep ranges of one denoising run.

    Args:
        capture: captures every step of [0, 1000).
        ranges: timestep ranges [first, last).
    """

    def __init__(self, capture: AttentionCapture, ranges: Sequence[tuple[int, int]]) -> None:
        self.capture, self.ranges = capture, tuple(ranges)
        self.means: list[AttentionMaps | None] = []

    @contextmanager
    def attached(self) -> Iterator[RangeCapture]:
        with self.capture.attached():
            yield self

    def begin(self, rows: slice, columns: Tensor, probe: Tensor | None) -> None:
        self._arguments = (rows, columns, probe)
        self._at: float | None = None
        self._sums: list[AttentionMaps | None] = [None] * len(self.ranges)
        self._counts = [0] * len(self.ranges)

    def step(self, timestep: float) -> None:
        self._bank()
        self.capture.begin(*self._arguments)
        self.capture.step(timestep)
        self._at = timestep

    def _bank(self) -> None:
        if self._at is None:
            return
        maps = self.capture.finish()
        for place, (first, last) in enumerate(self.ranges):
            if first <= self._at < last:
                self._sums[place] = _added(self._sums[place], maps, 1.0)
                self._counts[place] += 1
        self._at = None

    def finish(self) -> AttentionMaps:
        """Means of the first range that has a step; those of all are in ``means`` (None: no step lies there)."""
        self._bank()
        self.means = [
            None if maps is None else _added(None, maps, 1.0 / count)
            for maps, count in zip(self._sums, self._counts, strict=True)
        ]
        return next(maps for maps in self.means if maps is not None)


def _added(total: AttentionMaps | None, maps: AttentionMaps, factor: float) -> AttentionMaps:
    self_ = maps.self_
    if total is None:
        return AttentionMaps(maps.cross * factor, None if self_ is None else self_ * factor, maps.self_size)
    if total.self_ is not None and self_ is not None:
        total.self_.add_(self_, alpha=factor)
    total.cross.add_(maps.cross, alpha=factor)
    return total


def measure_generated(
    generator: Generator,
    config: SynthesisConfig,
    judge: Judge,
    split: str = "test",
    pictures: int = 64,
    progress: Progress | None = None,
    stop: StopToken | None = None,
    steps: Sequence[int] = STEPS,
) -> list[dict[str, Any]]:
    """Rows of generated pictures, one for each number of steps and timestep range.

    Captions are those of held-out scenes, seeds the same for every number of steps. Only prompted classes that the
    judge sees are scored (an absent one has no right mask), and pixels that it gives to a class which was not asked
    for are left out. The absence guard works as in the stage.

    Args:
        generator: loaded generator.
        config: options of the stage; its steps and timestep range are varied.
        judge: segmenter and classifier.
        split: whose captions are used.
        pictures: pictures of each number of steps.
        progress, stop: as everywhere.
        steps: numbers of denoising steps.

    Returns:
        Rows as those of :func:`~glass_fast.partworld.quality.masks.measure_noised`.
    """
    from glass_fast.partworld.builder.generator import class_names
    from glass_fast.partworld.renderer import render

    progress, stop = progress or Progress(), stop or StopToken()
    base = preset_setting(config, find_blocks(generator.unet, config.capture))
    ranges = tuple(dict.fromkeys((base.times, *RANGES)))
    captions = [render(split, FIRST_SCENE + index).caption for index in range(pictures)]
    names = [tuple(class_names(caption)) for caption in captions]
    rows = []
    for count in steps:
        curves = _painted(generator, config, judge, ranges, count, captions, names, progress, stop)
        for times, curve in curves.items():
            setting = Setting(
                "steps", f"{count}, {times[0]}-{times[1]}", times, base.cross, base.self_, base.masks
            )
            rows.append({"source": f"generated {split}", **columns(setting), "steps": count, **curve.row()})
    return rows


def _painted(
    generator: Generator,
    config: SynthesisConfig,
    judge: Judge,
    ranges: Sequence[tuple[int, int]],
    steps: int,
    captions: Sequence[str],
    names: Sequence[tuple[str, ...]],
    progress: Progress,
    stop: StopToken,
) -> dict[tuple[int, int], Curve]:
    """Paint every caption in ``steps`` steps and score the masks of every range that has one."""
    from glass_fast.partworld.shapes import CLASSES

    order = {name: index + 1 for index, name in enumerate(CLASSES)}
    whole = config.capture.model_copy(update={"timestep_min": 0, "timestep_max": 1000})
    most = max(map(len, names))
    runner = BatchRunner(generator, config.model_copy(update={"steps": steps, "capture": whole}), most)
    capture = RangeCapture(runner.capture, ranges)
    runner.capture = cast(AttentionCapture, capture)
    curves: dict[tuple[int, int], Curve] = {}
    progress.start(len(captions), "pictures", f"masks at {steps} steps")
    for start in range(0, len(captions), config.batch_size):
        stop.check("nothing of this table is saved")
        part = range(start, min(start + config.batch_size, len(captions)))
        requests = []
        for index in part:
            prompt = Prompt(
                f"masks-{index}", captions[index], names[index], join_prompt(captions[index], names[index]),
                join_classes(names[index]), 0, "list", "",
            )  # fmt: skip
            text = text_row(generator.tokenizer, runner.length, prompt, config.capture.probe)
            requests.append(Request(sample_seed(0, prompt.id, "noise"), text))
        images = np.stack([made.image for made in runner.run(requests)])
        if runner.rows != config.batch_size:
            raise RuntimeError("the micro-batch was split; its maps are incomplete")
        truth, shares = judge.both(images)
        asked = np.zeros((len(part), NUM_CLASSES + 1), bool)
        labels = torch.zeros(len(part), most, dtype=torch.int64)
        for row, index in enumerate(part):
            numbers = [order[name] for name in names[index]]
            asked[row, numbers] = True
            labels[row, : len(numbers)] = torch.tensor(numbers)
        seen = asked.copy()
        seen[:, 1:] &= (shares >= 0.5) & (class_areas(truth) >= MIN_AREA)
        known = (truth == 0) | np.take_along_axis(asked, truth.reshape(len(part), -1), 1).reshape(truth.shape)
        for times, maps in zip(ranges, capture.means, strict=True):
            if maps is None:
                continue
            pictures = torch.from_numpy(_padded(images, config.batch_size))
            soft, peaks = soft_maps(class_maps(maps, config.masks.tau), config.masks, pictures)
            kept = labels.clone()
            for row, index in enumerate(part):
                gone = absent(peaks[row, : len(names[index])].tolist(), names[index], config.masks)
                kept[row, : len(gone)][torch.tensor(gone)] = 0
            curve = curves.setdefault(times, Curve(config.masks.threshold))
            curve.add(soft[: len(part)], kept, truth, seen, known)
        progress.advance(len(part))
    progress.finish()
    return curves


def _padded(images: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
    """The last micro-batch is padded with copies of its last row, as the runner does."""
    return np.concatenate([images, np.repeat(images[-1:], rows - len(images), axis=0)])
